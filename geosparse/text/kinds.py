"""The built-in kinds of text: what a model may be asked to read, from short passages and a seeded generator.

Passages are the openings of books in the public domain (Carroll, Dickens, Thoreau, Stevenson; Grimm, Voltaire,
Cervantes, Collodi) and a little code and markup written for this purpose; the rest is made (`made`). Nothing depends on
the machine or on Python's version.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from ..errors import GeosparseError, did_you_mean
from . import made
from .documents import JOIN, TooShort, adds_bos, token_windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LANGUAGES = ("german", "french", "spanish", "italian")
SEED = 20240317
COLUMNS = 68
"""Characters of a line of the wrapped kinds."""
TITLES = (
    ("ALICE'S ADVENTURES", "IN WONDERLAND", "BY", "LEWIS CARROLL"),
    ("A TALE OF TWO CITIES", "A STORY OF", "THE FRENCH REVOLUTION", "BY CHARLES DICKENS"),
)
READINGS = "readings"
MIXED = "mixed"
TYPICAL = 1024
"""Tokens of the shortest texts, about."""


class Kind(NamedTuple):
    """A kind of text.

    Attributes:
        what: In a few words.
        text: Makes the text.
    """

    what: str
    text: Callable[[], str]


def kind_text(kind: str) -> str:
    """The whole text of one of `KINDS`.

    Raises:
        GeosparseError: No kind has that name.
    """
    if kind not in KINDS:
        raise GeosparseError(f"Unknown text 'builtin:{kind}'; {did_you_mean(kind, KINDS)}")
    return _text(kind)


def kind_windows(tokenizer: PreTrainedTokenizerBase, kind: str, length: int, count: int) -> torch.Tensor:
    """Token windows of a kind of text, as `token_windows` cuts them.

    A window of second readings is half a window of text, read twice.

    Args:
        tokenizer: The model's tokenizer.
        kind: One of `KINDS`.
        length: Tokens per window, 8 or more.
        count: Most windows to take.

    Returns:
        int64 [windows, length].

    Raises:
        GeosparseError: No such kind, or its text is shorter than one window.
    """
    text = kind_text(kind)
    if kind != READINGS:
        return token_windows(tokenizer, text, length, count)
    return read_twice(tokenizer, text, length, count)


def built_in_windows(
    tokenizer: PreTrainedTokenizerBase, kinds: Sequence[str], length: int
) -> list[tuple[str, torch.Tensor]]:
    """One window of each kind; the kinds whose text is shorter than a window follow one another in mixed ones.

    Args:
        tokenizer: The model's tokenizer.
        kinds: Words of `KINDS`.
        length: Tokens per window.

    Returns:
        Names (of a kind, or `MIXED`) and windows, int64 `[length]` each. Of mixed windows there are as many as hold
        about `TYPICAL` tokens of each short kind, at least one; none where all short kinds together are too short.
    """
    windows, short = [], []
    for kind in kinds:
        try:
            windows.append((kind, kind_windows(tokenizer, kind, length, 1)[0]))
        except TooShort:
            short.append(kind)
    texts = [kind_text(kind) for kind in short]
    if short:
        wanted = max(1, round(len(short) * TYPICAL / length))
        with suppress(TooShort):
            windows += [(MIXED, window) for window in token_windows(tokenizer, texts, length, wanted)]
    return windows


def read_twice(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], length: int, count: int) -> torch.Tensor:
    """Windows of which the second half repeats the first half of the text, int64 `[windows, length]`; arguments as in
    `token_windows`."""
    import torch

    tokens = token_windows(tokenizer, texts, length // 2 + 1, count)
    # A BOS token that starts every window is not read a second time.
    passage = tokens[:, int(adds_bos(tokenizer)) :]
    repeated: torch.Tensor = torch.cat([tokens, passage], 1)[:, :length]
    return repeated


@cache
def _text(kind: str) -> str:
    return KINDS[kind].text()


def _passage(name: str) -> str:
    return resources.files(__package__).joinpath("passages", f"{name}.txt").read_text(encoding="utf-8").strip()


def _languages() -> str:
    """A paragraph of each language in turn."""
    turns = zip_longest(*(_passage(language).split(JOIN) for language in LANGUAGES))
    return JOIN.join(paragraph for turn in turns for paragraph in turn if paragraph is not None)


def _wrapped(text: str) -> str:
    return JOIN.join(textwrap.fill(paragraph, COLUMNS) for paragraph in text.split(JOIN))


def _carriage_returns() -> str:
    return _wrapped(_passage("prose")).replace("\n", "\r\n")


def _title_pages() -> str:
    """Title pages of many blank lines, a table of contents, and the text that follows."""
    half = len(_passage("prose")) // 2
    parts = []
    for index, title in enumerate(TITLES):
        page = "\n" * 12 + "".join(line.center(COLUMNS).rstrip() + "\n" * 6 for line in title) + "\n" * 12
        contents = "CONTENTS\n\n\n" + "".join(f"CHAPTER {number}.\n\n" for number in range(1, 13))
        parts.append(page + contents + "\n" * 8 + _wrapped(_passage("prose")[index * half : (index + 1) * half]))
    return "\n".join(parts)


KINDS: dict[str, Kind] = {
    "prose": Kind("English prose", lambda: _passage("prose")),
    "code": Kind("Python, C, JavaScript, SQL and shell", lambda: _passage("code")),
    "markup": Kind("HTML, CSS, XML, Markdown and LaTeX", lambda: _passage("markup")),
    "languages": Kind("German, French, Spanish and Italian prose", _languages),
    "carriage-returns": Kind("prose in lines that end with CR LF", _carriage_returns),
    "capitals": Kind("prose in capital letters", lambda: _passage("prose").upper()),
    "title-pages": Kind("title pages of blank lines, contents, prose", _title_pages),
    "dialogue": Kind("questions of a user, answers of an assistant", lambda: made.dialogue(SEED)),
    "tables": Kind("rows with tabs, commas or bars between the columns", lambda: made.table(SEED)),
    "records": Kind("JSON, indented and in lines", lambda: made.records(SEED)),
    "logs": Kind("log lines of services", lambda: made.log(SEED)),
    "patterns": Kind("hexadecimal, columns of numbers, and lines that repeat", lambda: made.patterns(SEED)),
    READINGS: Kind("a passage of prose and code that is read a second time", lambda: _passage("prose")),
}
"""In the order in which they are profiled."""
