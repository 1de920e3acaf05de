"""Calibration windows: cut from the text that is given and from the built-in kinds of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..artifacts.profile import BUILT_IN, OWN_KIND
from ..errors import GeosparseError, did_you_mean
from ..text import text_sha256, token_windows
from ..text.kinds import KINDS, built_in_windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from .profiler import ProfileConfig

Texts = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""One text, or documents that are joined; or several kinds of text by name, each of these."""
KIND_LENGTH = 1024
"""Tokens of the windows of built-in kinds, where a profile has several lengths: the longest of them up to this."""


class CalibrationWindow(NamedTuple):
    """One window to measure.

    Attributes:
        number: Place among the windows of its kind and length, for its random numbers.
        kind: Name of its kind of text; of a built-in one with `BUILT_IN` before it.
        tokens: `[L]` token ids.
    """

    number: int | str
    kind: str
    tokens: torch.Tensor

    @property
    def built_in(self) -> bool:
        """Whether the text is a built-in kind."""
        return self.kind.startswith(BUILT_IN)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise GeosparseError unless all are different names of built-in kinds."""
    for kind in kinds:
        if kind not in KINDS:
            raise GeosparseError(f"Unknown kind of text {kind!r}: {did_you_mean(kind, KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise GeosparseError(f"kinds are different names, found {list(kinds)}.")


def texts_by_kind(texts: Texts) -> dict[str, list[str]]:
    """The documents of every kind that was given; one text without a name is called OWN_KIND.

    Raises:
        GeosparseError: No text, or a name that is that of a built-in kind.
    """
    named = texts if isinstance(texts, Mapping) else {OWN_KIND: texts}
    if not named:
        raise GeosparseError("There is no text to profile on: give one or more.")
    for name in named:
        if name.startswith(BUILT_IN):
            raise GeosparseError(f"A text cannot be called {name!r}, which names a built-in kind: call it differently.")
    return {name: [text] if isinstance(text, str) else list(text) for name, text in named.items()}


def calibration_windows(
    tokenizer: PreTrainedTokenizerBase, kinds: Mapping[str, Sequence[str]], config: ProfileConfig
) -> list[CalibrationWindow]:
    """All windows of a profile, ascending in length: of each kind that was given, then one of each built-in kind.

    Raises:
        GeosparseError: A text that was given is shorter than a window.
    """
    lengths = config.lengths
    kind_length = max((length for length in lengths if length <= KIND_LENGTH), default=lengths[0])
    found = []
    for length in lengths:
        for place, (kind, texts) in enumerate(kinds.items()):
            for index, window in enumerate(token_windows(tokenizer, texts, length, config.windows_of(length))):
                found.append(CalibrationWindow(f"{place} {index}" if place else index, kind, window))
        if length == kind_length:
            for index, (kind, window) in enumerate(built_in_windows(tokenizer, config.kinds, length)):
                found.append(CalibrationWindow(f"{BUILT_IN}{index}", f"{BUILT_IN}{kind}", window))
    return found


def calibration_json(
    kinds: Mapping[str, Sequence[str]], windows: Sequence[CalibrationWindow], lengths: Sequence[int]
) -> dict[str, Any]:
    """What a profile says of its text: the hash of what was given, windows, lengths, and where there are several, the
    kind of each window."""
    documents = [text for texts in kinds.values() for text in texts]
    about: dict[str, Any] = {"sha256": text_sha256(documents), "windows": len(windows), "lengths": list(lengths)}
    names = [window.kind for window in windows]
    return about if set(names) == {OWN_KIND} else about | {"kinds": names}
