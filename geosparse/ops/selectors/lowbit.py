"""Near-exact: every key is scored as its few-bit code has it; only the kept keys are read."""

from __future__ import annotations

from .rule import selector
from .view import Choice, SelectorView


@selector(
    "the N highest scores of 4-bit codes of the keys",
    reads="a code of every key: about a fifth of the bytes of fp32 keys",
    scans=("codes", "bounds"),
    coded=True,
    ranks="coarse",
    kernel=1,
    prefill_kernel=True,
)
def lowbit(view: SelectorView) -> Choice:
    """The N highest logits of coded keys (exact ones where no page is complete yet); they also say the tail's mass."""
    return view.highest(view.coarse, view.coarse)
