"""How the model is run: densely, or by a plan; baselines extend the class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from geosparse.artifacts.plan import DECISIVE, Plan
from geosparse.sparsify.patch import sparsified

if TYPE_CHECKING:
    import torch

DENSE = "dense"


class Prompt(NamedTuple):
    """A prompt after one dense pass.

    Attributes:
        cache: Keys and values of all its tokens.
        calls: Attention module -> the keyword arguments it was called with, where they were asked for.
        ids: `[1, T]`, its tokens.
    """

    cache: Any
    calls: dict[Any, dict[str, Any]]
    ids: torch.Tensor


def seen_of(plan: Plan) -> dict[str, Any]:
    """What the model sees of a plan; `Plan.digest` is the hash of it."""
    data = plan.to_json()
    return {"plan": {key: data[key] for key in DECISIVE if key in data}}


class Method:
    """The dense model, or one that follows a plan.

    Attributes:
        id: The variant's, or "dense".
        plan: What it follows; None for the dense model.
        shrinks: It wants the prompt before it decodes: to keep a part of its keys and values, or to look at them.
        most_per_call: Tokens that a call behind the prompt may have; None: any number.
        counted: Tokens kept and visible since `forget`.
    """

    shrinks = False
    most_per_call: int | None = None

    def __init__(self, id: str = DENSE, plan: Plan | None = None) -> None:
        self.id = id
        self.plan = plan
        self.forget()

    def forget(self) -> None:
        """Start counting anew."""
        self.counted = (0, 0)

    def about(self) -> dict[str, Any]:
        """What decides its numbers: of the plan, what the model sees of it."""
        return {"method": self.id} if self.plan is None else seen_of(self.plan)

    @contextmanager
    def decoding(self, model: Any, counted: bool = True, own_products: bool = True) -> Iterator[None]:
        """The model runs this way inside the block; what it keeps is added to `counted`, unless told otherwise."""
        if self.plan is None:
            yield
            return
        with sparsified(model, self.plan, own_products=own_products) as receipt:
            yield
            kept, visible = int(receipt.kept.sum()), int(receipt.visible.sum())
        if counted:
            self.counted = self.counted[0] + kept, self.counted[1] + visible

    def shrunken_cache(self, model: Any, prompt: Prompt) -> Any:
        """What a method that `shrinks` leaves of the cache of a densely read prompt, which itself stays as it is."""
        raise NotImplementedError
