"""What a model was made of when something was found out about it: what is remembered holds for as long as that does."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Signature:
    """The modules of a model, their parameters, and its configuration; without holding on to them."""

    def __init__(self, model: Any) -> None:
        """Note what `model` is made of.

        Args:
            model: A model of transformers.
        """
        self._parts = [(weakref.ref(part), form) for part, form in _parts(model)]
        self._config = model.config.to_dict()

    def holds(self, model: Any) -> bool:
        """Whether `model` is still made of the same."""
        parts = _parts(model)
        same = len(parts) == len(self._parts) and all(
            ref() is part and form == was for (ref, was), (part, form) in zip(self._parts, parts, strict=True)
        )
        return same and bool(model.config.to_dict() == self._config)


def _parts(model: Any) -> list[tuple[Any, Any]]:
    """Every module, every parameter with its dtype, device and shape."""
    parts: list[tuple[Any, Any]] = []
    for module in model.modules():
        parts.append((module, None))
        parts += [
            (weight, (weight.dtype, weight.device, weight.shape))
            for weight in module._parameters.values()
            if weight is not None
        ]
    return parts


class Remembered(Generic[T]):
    """What a function found out about each model; found out anew where the model has changed since."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        """Remember nothing yet.

        Args:
            find: What is remembered per model: a function of it.
        """
        self.find = find
        self._known: weakref.WeakKeyDictionary[Any, tuple[Signature, T]] = weakref.WeakKeyDictionary()

    def __call__(self, model: Any) -> T:
        """What the function says of `model`."""
        known = self._known.get(model)
        if known is None or not known[0].holds(model):
            found = self.find(model)  # which refuses what is no model
            known = self._known[model] = (Signature(model), found)
        return known[1]

    def known(self, model: Any) -> T | None:
        """What the function once said of `model`, if anything; the model is not run."""
        known = self._known.get(model)
        return None if known is None else known[1]
