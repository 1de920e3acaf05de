"""The one place where Triton kernels are launched: each launch is held against what its kernel touches."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..buffers import has_memory
from .contracts import check_launch

# Launches whose sizes fit, by all that `check_launch` looks at; forgotten together when there are too many.
_checked: set[tuple[Any, ...]] = set()
MAX_CHECKED = 4096


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel`; not on tensors without data, on which a stage only says what shapes it makes.

    Args:
        kernel: A function of Triton, named in CONTRACTS.
        grid: Programs.
        args: Its tensors and numbers, in its order.
        constants: What it is compiled for.

    Raises:
        GeosparseError: A tensor is none that the kernel can follow, or smaller than what it would touch.
    """
    if any(has_no_data(arg) for arg in args):
        return
    key = (id(kernel), grid, tuple([_form(arg) for arg in args]), tuple(constants.values()))
    if key not in _checked:
        check_launch(name_of(kernel), dict(zip(kernel.arg_names, args, strict=False)) | constants, grid)
        if len(_checked) >= MAX_CHECKED:
            _checked.clear()
        _checked.add(key)
    kernel[grid](*args, **constants)


def _form(arg: Any) -> Any:
    """All that makes `arg` right or wrong for a kernel, without what is in it."""
    if isinstance(arg, torch.Tensor):
        return type(arg), arg.dtype, arg.shape, arg.stride(), arg.device, has_memory(arg)
    return arg


def name_of(kernel: Any) -> str:
    """The name of the Python function that is in `kernel`, whatever is wrapped around it."""
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return str(kernel.__name__)


def has_no_data(arg: Any) -> bool:
    """Whether `arg` is one of torch's fake tensors; their module is heavy and loaded by whoever makes one."""
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(arg, fake.FakeTensor)
