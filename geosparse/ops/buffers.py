"""What kernels in C++ and Triton are handed: memory made for them, and tensors looked at before their addresses go.

A kernel knows addresses and numbers, and follows them. So whatever it writes to has the dtype, device and layout that
are named here, whatever torch's defaults are at that moment: another thread may be loading a model, which sets them for
the whole process. And whatever it reads is held against what the call says of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import GeosparseError

CPU = torch.device("cpu")
# Subclasses keep their numbers elsewhere, or mean something else by them.
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
    """Contiguous memory for a kernel to write to."""
    return torch.empty(shape, dtype=dtype, device=device, layout=torch.strided, memory_format=torch.contiguous_format)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
    """The same, zeroed."""
    return torch.zeros(shape, dtype=dtype, device=device, layout=torch.strided)


def numbers(values: Sequence[Any], dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
    """Numbers, or rows of them, for a kernel to read; made on the CPU, which is faster than on a GPU."""
    return torch.tensor(values, dtype=dtype, device=CPU).to(device)


def check(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device = CPU,
    strided: bool = False,
) -> None:
    """Raise GeosparseError unless a kernel can read `tensor` as the call describes it.

    Args:
        name: For the error.
        tensor: To hand over.
        dtype: The one that the kernel takes.
        shape: The one that the kernel takes.
        device: Where the kernel runs.
        strided: The kernel is told all strides but the last one, which is 1; otherwise the tensor is contiguous.
    """
    if (
        tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.device == device
        and (tensor.is_contiguous() or (strided and tensor.stride(-1) == 1))
        and type(tensor) in PLAIN
        and has_memory(tensor)
    ):
        return
    form = "contiguous in the last dimension" if strided else "contiguous"
    raise GeosparseError(
        f"The attention kernels take {name} as {_words(dtype, shape, device)}, {form}, found "
        f"{_words(tensor.dtype, tuple(tensor.shape), tensor.device)} with strides {list(tensor.stride())} as a "
        f"{type(tensor).__name__}: pass such a plain tensor, or choose path='torch'."
    )


def check_layout(
    name: str,
    tensor: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    device: torch.device,
) -> None:
    """Raise GeosparseError unless `tensor` lies in memory where a kernel looks for it.

    Args:
        name: For the error.
        tensor: To hand over.
        dtypes: Those that the kernel takes.
        shape: The one that the kernel takes.
        strides: Where the kernel looks, in elements; None: contiguous.
        device: Where the kernel runs.
    """
    if (
        tensor.dtype in dtypes
        and tensor.shape == shape
        and tensor.device == device
        and (tensor.is_contiguous() if strides is None else _lies(tensor, strides))
        and type(tensor) in PLAIN
        and has_memory(tensor)
    ):
        return
    form = "contiguous" if strides is None else f"with strides {list(strides)}"
    raise GeosparseError(
        f"The attention kernels take {name} as {_words(dtypes[0], shape, device)}, {form}, found "
        f"{_words(tensor.dtype, tuple(tensor.shape), tensor.device)} with strides {list(tensor.stride())} as a "
        f"{type(tensor).__name__}: pass such a plain tensor, or choose path='torch'."
    )


def _lies(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the elements of `tensor` are these steps apart; where there is only one, there is no step."""
    pairs = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(size == 1 or here == told for size, here, told in pairs)


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether there are numbers where a plain tensor says that it has some, and they are what it means."""
    try:
        return (tensor.data_ptr() != 0 or tensor.numel() == 0) and not tensor.is_neg()
    except RuntimeError:  # a tensor of torch.func, which has no memory of its own
        return False


def _words(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"
