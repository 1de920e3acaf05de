"""Products of a decode step's few rows with a model's weights, and its norms, by CPU kernels instead of torch.

Once attention is sparse, most of a step on a CPU is these products, and torch is far from the speed of memory there;
its norms are six operations each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..ops.cpu import library, product
from .norms import install_norms, remove_norms

PARAMETER = torch.nn.Parameter  # one lookup less in each call


class FewRowsLinear(torch.nn.Linear):
    """A `torch.nn.Linear` that multiplies a few rows by the CPU kernel, and everything else as before."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., K]` -> `[..., N]`."""
        # Not by attribute: that takes a sixth of the call.
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        # Quantized while it is installed, a weight is of another class, whose memory holds something else.
        if type(weight) is not PARAMETER or not (bias is None or type(bias) is PARAMETER):
            return super().forward(input)
        found = product(input, weight, bias)
        return super().forward(input) if found is None else found

    def _get_name(self) -> str:
        return "Linear"


def install_products(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Let the plain linear modules of `model` and its norms take a few rows to the kernels, where there are some.

    Modules of other classes, quantized weights and modules whose `forward` somebody else has taken stay as they are.

    Returns:
        What `remove_products` needs to put everything back.
    """
    if library() is None:
        return []
    found = [module for module in model.modules() if _is_plain(module)]
    for module in found:
        module.__class__ = FewRowsLinear
    return found + install_norms(model)


def remove_products(modules: Iterable[torch.nn.Module]) -> None:
    """Undo `install_products`."""
    modules = list(modules)
    remove_norms(modules)
    for module in modules:
        if type(module) is FewRowsLinear:
            module.__class__ = torch.nn.Linear  # type: ignore[assignment]


@contextmanager
def products(model: torch.nn.Module) -> Iterator[None]:
    """`install_products` for the length of a block."""
    installed = install_products(model)
    try:
        yield
    finally:
        remove_products(installed)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is torch.nn.Linear
        and type(module.weight) is torch.nn.Parameter
        and module.weight.device.type == "cpu"
        and (module.bias is None or type(module.bias) is torch.nn.Parameter)
        and (module.bias is None or module.bias.dtype == module.weight.dtype)
        and "forward" not in module.__dict__
    )
