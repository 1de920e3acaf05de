"""Text for measuring: files, data sets, the documentation that Python brings; and token windows cut from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GeosparseError, did_you_mean
from ..utils.bounds import check_whole
from ..utils.files import os_errors_as

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PARTS = ("calibration", "planning", "test")
JOIN = "\n\n"
PARAGRAPH = 40
"""Characters from which a repeated paragraph of the documentation counts as a copy (shorter ones are phrases)."""


class TooShort(GeosparseError):
    """A text has less than one window."""


def load_texts(source: str | Path) -> list[str]:
    """Read documents.

    Args:
        source: A `.jsonl` file (an object or a string per line; of an object its "text", else its longest string),
            any other text file (one document), `hf:owner/name[:config][:split]` (a data set, split "test" unless
            given), `pydoc:calibration`, `pydoc:planning`, `pydoc:test` (disjoint parts of Python's documentation), or
            `builtin:KIND` (a kind of text in `kinds.KINDS`). Line ends are kept as they are: CR LF stays CR LF.

    Returns:
        The documents that are not blank, in order.

    Raises:
        GeosparseError: Nothing there, no text in it, not UTF-8, half a surrogate pair, a bad line, or an unknown part.
    """
    name = str(source)
    if name.startswith("hf:"):
        texts = _from_dataset(name)
    elif name.startswith("pydoc:"):
        texts = _from_pydoc(name.removeprefix("pydoc:"))
    elif name.startswith("builtin:"):
        from .kinds import kind_text

        texts = [kind_text(name.removeprefix("builtin:"))]
    else:
        texts = _from_file(Path(source).expanduser())
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise GeosparseError(f"{name} holds no text: everything in it is blank; give a text with words in it.")
    return texts


def text_sha256(texts: str | Iterable[str]) -> str:
    """The sha256 (hex) of the documents, joined as `token_windows` joins them."""
    return hashlib.sha256(_joined(texts).encode("utf-8", "surrogatepass")).hexdigest()


def token_windows(
    tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], length: int, count: int | None
) -> torch.Tensor:
    """Cut text into token windows that do not overlap.

    The documents are joined by blank lines and tokenized once. Where the tokenizer itself starts a text with its BOS
    token, every window starts with BOS, followed by `length - 1` tokens of text.

    Args:
        tokenizer: The model's tokenizer.
        texts: One document or several.
        length: Tokens per window, 2 or more.
        count: Most windows to take, evenly spaced over the text, the first one included; None takes all.

    Returns:
        int64 [windows, length]; fewer than `count` windows where the text has no more.

    Raises:
        GeosparseError: `length` or `count` too small, no text, or less of it than one window.
    """
    import torch

    length = check_whole("length", length)
    if length < 2:
        raise GeosparseError(f"A window of {length} token(s) has nothing to predict; give a length of 2 or more.")
    if count is not None and check_whole("count", count) < 1:
        raise GeosparseError(f"Cannot take {count} windows; give a count of 1 or more.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts, 1):
        check_text(text, "The text" if len(texts) == 1 else f"Document {number} of {len(texts)}")
    first = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    # verbose=False: the whole text is longer than the model's context, on purpose.
    ids = tokenizer(_joined(texts), add_special_tokens=False, verbose=False)["input_ids"]
    step = length - len(first)
    available = len(ids) // step
    if not available:
        raise TooShort(f"The text has {len(ids)} tokens, a window needs {step}; give longer text or a smaller length.")
    taken = available if count is None else min(count, available)
    windows = torch.tensor(ids[: available * step], dtype=torch.int64, device="cpu").view(available, step)
    windows = windows[[index * available // taken for index in range(taken)]]
    return torch.cat([torch.tensor(first, dtype=torch.int64, device="cpu").expand(taken, -1), windows], dim=1)


def check_text(text: Any, what: str) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        GeosparseError: It is no str, or holds half a surrogate pair, as bytes that are not UTF-8 leave it.
    """
    if not isinstance(text, str):
        raise GeosparseError(f"{what} is not text but a {type(text).__name__}: give a str.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GeosparseError(
            f"{what} is not Unicode text: character {error.start + 1} is {text[error.start]!a}, half a surrogate "
            "pair, which no tokenizer takes; remove it, or decode the text with errors='replace'."
        ) from None


def _joined(texts: str | Iterable[str]) -> str:
    return texts if isinstance(texts, str) else JOIN.join(texts)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer, left to itself, starts a text with its BOS token."""
    bos = tokenizer.bos_token_id
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return bos is not None and whole != plain and whole[0] == bos


def _from_file(path: Path) -> list[str]:
    if path.is_dir():
        raise GeosparseError(f"{path} is a folder, not a text; give a .txt or .jsonl file in it.")
    with os_errors_as("read the text", path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GeosparseError(
            f"{path} is not a text file in UTF-8: byte {error.start} does not decode; convert it to UTF-8."
        ) from error
    if "\0" in text:
        raise GeosparseError(f"{path} is a binary file: it has zero bytes; give a text file in UTF-8.")
    return _from_lines(path, text) if path.suffix == ".jsonl" else [text]


def _from_lines(path: Path, text: str) -> list[str]:
    """The documents of JSON lines; blank lines are skipped."""
    texts = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut at U+2028 inside a string
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise GeosparseError(f"{where} is not JSON; give one JSON object or string per line.") from error
        texts.append(_document(row, where))
    return texts


def _document(row: Any, where: str) -> str:
    """The text of one row: itself, its "text", or its longest string."""
    text = _text_of(row, where)
    check_text(text, where)
    return text


def _text_of(row: Any, where: str) -> str:
    if isinstance(row, str):
        return row
    fields = row if isinstance(row, dict) else {}
    if isinstance(fields.get("text"), str):
        return str(fields["text"])
    strings = [value for value in fields.values() if isinstance(value, str)]
    if not strings:
        described = f"an object with fields {', '.join(map(str, fields))}" if fields else f"a {type(row).__name__}"
        raise GeosparseError(f'{where} has no string: it is {described}; give a string or an object with a "text".')
    return max(strings, key=len)


def _from_dataset(name: str) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise GeosparseError(f"{name} needs the datasets library; pip install geosparse[lm-eval].") from error
    owner, *rest = name.removeprefix("hf:").split(":")
    if not owner or len(rest) > 2 or not all(rest):
        raise GeosparseError(f"{name} is not a data set's name; write hf:owner/name, hf:owner/name:config:split.")
    config, split = rest[0] if len(rest) == 2 else None, rest[-1] if rest else None
    try:
        if len(rest) == 1 and rest[0] not in datasets.get_dataset_split_names(owner):
            config, split = rest[0], None
        rows = datasets.load_dataset(owner, config, split=split or "test")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise GeosparseError(
            f"Cannot load the data set {name}: {reason}; check name, config, split and network, or give a text file."
        ) from error
    return [_document(row, f"{name}, row {number}") for number, row in enumerate(rows)]


def _from_pydoc(part: str) -> list[str]:
    if part not in PARTS:
        raise GeosparseError(f"Unknown text 'pydoc:{part}'; {did_you_mean(part, PARTS)}")
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise GeosparseError("This Python comes without pydoc_data; give a text file instead of pydoc:.") from error
    return _split(topics)[PARTS.index(part)]


def _split(topics: dict[str, str]) -> list[list[str]]:
    """Share topics out over the parts, longest first, each to the part that is shortest so far.

    Topics quote one another at length, so a paragraph stays only in the longest topic that has it: beyond headings
    and phrases, no part contains what another one contains.
    """
    seen: set[str] = set()
    parts: list[dict[str, str]] = [{} for _ in PARTS]
    for topic in sorted(topics, key=lambda topic: (-len(topics[topic]), topic)):
        text = JOIN.join(_unseen(topics[topic], seen))
        if len(text) > PARAGRAPH:
            min(parts, key=lambda part: sum(map(len, part.values())))[topic] = text
    return [[part[topic] for topic in sorted(part)] for part in parts]


def _unseen(text: str, seen: set[str]) -> list[str]:
    """The paragraphs of `text` without the longer ones in `seen`, which learns them."""
    kept = []
    for paragraph in text.split(JOIN):
        joined = " ".join(paragraph.split())
        if joined and joined not in seen:
            kept.append(paragraph)
        if len(joined) > PARAGRAPH:
            seen.add(joined)
    return kept
