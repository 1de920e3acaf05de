"""The presses of kvpress as methods: of a densely read prompt they keep a part of the keys and values.

A press works in a hook after each attention module of the prompt's pass and changes nothing of that pass but the cache.
So the pass is run once for all presses, and each press's own hook is called with what the module was called with.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError
from geosparse.hf.loading import reason
from geosparse.integrations.export import export_plan

from ..harness.methods import Method, Prompt, seen_of

PLAN_PRESS = "lukv"
# AdaKV and LU-KV mask keys per head by a key that no query of a call may attend to: easy to find for one query only.
SINGLE_TOKEN_PRESSES = ("adakv", "lukv")
MASK_ATTRIBUTE = "masked_key_indices"


class Press(Method):
    """One press at one share of tokens kept.

    The tokens that follow the prompt are all kept, on top of the share: that is how the presses are used, and it is to
    their advantage.
    """

    shrinks = True

    def __init__(self, id: str, name: str, density: float, plan: Plan | None = None) -> None:
        """Prepare a press.

        Args:
            id: Of the variant.
            name: A key of `PRESSES`.
            density: Share of the prompt that is kept.
            plan: For lukv, the plan whose export it is fed with.
        """
        super().__init__(id)
        self.name = name
        self.density = density
        self.budgets = plan
        self.most_per_call = 1 if name in SINGLE_TOKEN_PRESSES else None
        self._masks: list[Any] = []

    def about(self) -> dict[str, Any]:
        """The press, its version, and the plan it is fed with."""
        from importlib import metadata

        fed = {} if self.budgets is None else seen_of(self.budgets)
        return {"peer": self.name, "density": self.density, "kvpress": metadata.version("kvpress")} | fed

    def shrunken_cache(self, model: Any, prompt: Prompt) -> Any:
        """What the press leaves of the prompt's cache; keys that it only masks are masked while decoding."""
        cache = copy.deepcopy(prompt.cache)
        press = self._press()
        with torch.no_grad(), press(model):
            for module, keywords in prompt.calls.items():
                press.forward_hook(module, [], keywords | {"past_key_values": cache}, [None, None])
        self._masks = [
            (module, getattr(module, MASK_ATTRIBUTE))
            for module in model.modules()
            if getattr(module, MASK_ATTRIBUTE, None)
        ]
        _unmask(model)
        return cache

    @contextmanager
    def decoding(self, model: Any, counted: bool = True, own_products: bool = False) -> Iterator[None]:
        """With the masks of the press in place; kvpress leaves them on the modules otherwise."""
        for module, mask in self._masks:
            setattr(module, MASK_ATTRIBUTE, mask)
        try:
            yield
        finally:
            _unmask(model)

    def _press(self) -> Any:
        try:
            import kvpress
        except ImportError as error:
            raise GeosparseError(
                f"The presses need kvpress ({reason(error)}): give the recipe `environment: peers`, which installs it."
            ) from error
        press = PRESSES[self.name](kvpress, 1.0 - self.density)
        if self.name == PLAN_PRESS:
            assert self.budgets is not None
            press._budget_curves = _curve(self.budgets)
        return press


def _unmask(model: Any) -> None:
    for module in model.modules():
        if getattr(module, MASK_ATTRIBUTE, None) is not None:
            setattr(module, MASK_ATTRIBUTE, None)


def _curve(plan: Plan) -> Any:
    """The budgets of a plan as `geosparse export --to kvpress` writes them."""
    import numpy

    with tempfile.TemporaryDirectory(prefix="geosparse-") as folder:
        export = export_plan(plan, "kvpress", Path(folder) / "curve.npy")
        return numpy.load(export.files[0])


PRESSES: dict[str, Callable[[Any, float], Any]] = {
    "snapkv": lambda kvpress, ratio: kvpress.SnapKVPress(ratio),
    "tova": lambda kvpress, ratio: kvpress.TOVAPress(ratio),
    "expected_attention": lambda kvpress, ratio: kvpress.ExpectedAttentionPress(ratio),
    "streaming_llm": lambda kvpress, ratio: kvpress.StreamingLLMPress(ratio),
    "adakv": lambda kvpress, ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    # The scorer is the very one above, so that only the budgets differ. LUKVPress' own default gives it epsilon=2e-2,
    # with which the norm of values decides in a long context: a nat worse here, whatever the budgets (results/LOG.md).
    "lukv": lambda kvpress, ratio: kvpress.LUKVPress(kvpress.ExpectedAttentionPress(), ratio),
}
