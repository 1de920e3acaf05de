"""Root mean square norms of a decode step by the CPU kernel: recognised by what they compute, not by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..ops.cpu import rms_norm
from ..ops.cpu.rms_norm import KINDS

TERMS = "_geosparse_norm"
EPS = ("variance_epsilon", "eps")
PROBES = 4
PARAMETER = torch.nn.Parameter  # one lookup less in each call
_MADE: dict[type[torch.nn.Module], type[torch.nn.Module]] = {}


def install_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Let the modules of `model` that are root mean square norms take few rows to the kernel, where there is one.

    A module is one if it has nothing but a vector of weights and an epsilon, and gives for random rows, up to rounding,
    what the kernel gives. Modules whose `forward` somebody else has taken stay as they are.

    Returns:
        What `remove_norms` needs to put everything back.
    """
    found = []
    for module in model.modules():
        terms = _terms_of(module)
        if terms is not None:
            module.__dict__[TERMS] = terms
            module.__class__ = _few_rows(type(module))
            found.append(module)
    return found


def remove_norms(modules: Iterable[torch.nn.Module]) -> None:
    """Undo `install_norms`."""
    for module in modules:
        if module.__dict__.pop(TERMS, None) is not None:
            module.__class__ = type(module).__mro__[1]


def _few_rows(norm: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class `norm`, but for few rows; the same one each time."""
    if norm in _MADE:
        return _MADE[norm]

    class FewRows(norm):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            weight = self._parameters.get("weight")
            if type(weight) is PARAMETER and len(args) == 1 and not kwargs and not torch.compiler.is_compiling():
                found = rms_norm(args[0], weight, *self.__dict__[TERMS])
                if found is not None:
                    return found
            return super().forward(*args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _blank, (norm,), self.__dict__

        def _get_name(self) -> str:
            return norm.__name__

    return _MADE.setdefault(norm, FewRows)


def _blank(norm: type[torch.nn.Module]) -> torch.nn.Module:
    """An object without content, which copies and pickles fill."""
    made = _few_rows(norm)
    return made.__new__(made)


def _terms_of(module: torch.nn.Module) -> tuple[float, str] | None:
    """Epsilon and kind of a norm, as `rms_norm` takes them; None for other modules."""
    eps = next((value for name in EPS if isinstance(value := getattr(module, name, None), float)), None)
    parameters = dict(module.named_parameters())
    if eps is None or list(parameters) != ["weight"] or list(module.buffers()) or "forward" in module.__dict__:
        return None
    weight = parameters["weight"]
    if weight.dim() != 1 or type(weight) is not torch.nn.Parameter or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    # Rows of very different size show where epsilon is added, and whether anything is subtracted.
    rows = torch.randn(PROBES, len(weight), generator=generator, dtype=torch.float32, device="cpu") + 0.5
    rows = (rows * torch.logspace(-3, 1, PROBES, dtype=torch.float32, device="cpu")[:, None]).to(weight.dtype)
    with torch.no_grad():
        try:
            expected = module(rows)
        except Exception:  # noqa: BLE001 - whatever it needs, it is no norm of one tensor
            return None
        if not isinstance(expected, torch.Tensor) or expected.shape != rows.shape or expected.dtype != rows.dtype:
            return None
        off = {kind: _largest_difference(rms_norm(rows, weight, eps, kind), expected) for kind in KINDS}
    kind = min(off, key=lambda each: off[each])
    # In units of the last place: the root and its inverse, two products, and half of what the mean, summed in another
    # order, and epsilon are off by; `expected` may be off by as much.
    return (eps, kind) if off[kind] <= 4 else None


def _largest_difference(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    """In units of the last place of `expected`; infinite where there is nothing to compare."""
    if found is None:
        return torch.inf
    unit = torch.finfo(expected.dtype).eps * expected.float().abs() + torch.finfo(expected.dtype).tiny
    return float(((found.float() - expected.float()).abs() / unit).nan_to_num(torch.inf).max())
