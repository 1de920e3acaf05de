"""What a linear module does, whatever holds its weights: found by letting it act on unit vectors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .held import FLOATS, is_plain
from .modes import evaluating


class Taken(NamedTuple):
    """What a module was given when the model ran on a few tokens.

    Attributes:
        dtype: Of its input.
        device: Of its input.
        size: The largest absolute value of its input.
    """

    dtype: torch.dtype
    device: torch.device
    size: float


def takes_rows(module: torch.nn.Module) -> bool:
    """Whether `module` has weights of its own, or acts as one module with those that it wraps."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True  # also modules of peft, whose parts are modules, and those that keep their weights where none sees
    leaf = next(module.children(), None) is None
    own = next(module.parameters(recurse=False), None) is not None or not is_plain(module)
    return own and (leaf or "parametrizations" in module._modules)


def action_of(module: torch.nn.Module, width: int, taken: Taken) -> torch.Tensor:
    """The matrix `[out, width]` fp32 of a module that is linear but for a bias, adapters included.

    Where a module rounds what it is given - to int8, say - the matrix is exact where the scale is found from each
    input, because unit vectors round to themselves; where the scale is fixed, within half a step of it: at most 1 %.

    Args:
        module: The module; evaluated as in evaluation mode, without gradients.
        width: The length of its input.
        taken: What it was given in the model.
    """
    unit = torch.eye(width, dtype=dtype_of(module, taken), device=device_of_module(module, taken.device))[None]
    # A fixed scale of activations saturates above what it was made for. A power of two changes no other rounding.
    rounds = not all(map(is_plain, module.modules())) and 0 < taken.size < math.inf
    scale = 2.0 ** math.floor(math.log2(taken.size)) if rounds else 1.0
    with torch.no_grad(), evaluating(module):
        bias = module(torch.zeros_like(unit[:, :1]))
        matrix: torch.Tensor = (module(unit * scale) - bias)[0].float().T / scale
    return matrix


def nonlinearity(module: torch.nn.Module, width: int, taken: Taken) -> float:
    """The largest of `f(x + y) - f(x) - f(y) + f(0)` for random rows of the size taken, over the largest `f`; 0 for
    modules with plain weights."""
    if all(map(is_plain, module.modules())):
        return 0.0
    device = device_of_module(module, taken.device)
    rows = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu") * (
        taken.size / 4
    )
    rows = torch.cat([rows, rows.sum(0, keepdim=True), torch.zeros(1, 4, width, dtype=torch.float32, device="cpu")]).to(
        device, dtype_of(module, taken)
    )
    with torch.no_grad(), evaluating(module):
        one, other, both, bias = (module(row[None]).float() for row in rows)
    return float((both - one - other + bias).abs().max() / both.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def dtype_of(module: torch.nn.Module, taken: Taken) -> torch.dtype:
    """The dtype of what a module takes: that of its weights where they are floating, for they may have been converted
    since the model ran, or what it took then."""
    weight = next(module.parameters(), None)
    return weight.dtype if weight is not None and weight.dtype in FLOATS else taken.dtype


def device_of_module(module: torch.nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module's input goes; the CPU for weights that a `device_map` keeps elsewhere until they are used.

    Args:
        module: A module with weights.
        otherwise: The answer where the module keeps them where none sees.
    """
    first = next(module.parameters(), next(module.buffers(), None))
    return otherwise if first is None else torch.device("cpu") if first.is_meta else first.device
