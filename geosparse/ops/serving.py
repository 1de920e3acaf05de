"""Which path serves, and why: said once where the fast one is missing, and in every result."""

from __future__ import annotations

import platform
import sys
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from . import cpu
from .cpu.library import library, load_error
from .triton.library import installed

NO_TRITON = "triton is not installed"
BUILT_FOR = ("linux", "darwin")
"""Systems for which an installation compiles the kernels."""


class SlowPathWarning(RuntimeWarning):
    """Kernels that this platform should have are missing: attention is right, and many times slower."""


class Serving(NamedTuple):
    """A path of `ops.PATHS` in words, and why it is that one."""

    path: str
    why: str


def serving(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Serving:
    """What serves sparse attention on a device, without autograd and additive biases."""
    kind = torch.device(device).type
    if kind == "cuda":
        return Serving("triton", "its kernels run on this device") if installed() else Serving("torch", NO_TRITON)
    if kind != "cpu":
        return Serving("torch", f"there are no kernels for {kind}")
    if library() is None:
        return Serving("torch", f"the C++ kernels are {load_error()}")
    if dtype not in cpu.DTYPES:
        return Serving("torch", f"the C++ kernels do not take {str(dtype).removeprefix('torch.')}")
    return Serving(f"cpu (C++ {cpu.isa()})", "the C++ kernels are there")


def missing_kernels(device: torch.device | str) -> str | None:
    """One sentence with the remedy where kernels for this platform are expected and missing, else None."""
    kind = torch.device(device).type
    if kind == "cuda" and sys.platform == "linux" and not installed():
        return (
            "Sparse attention on this GPU runs through plain PyTorch, many times slower, because triton is not "
            "installed: pip install geosparse[triton]."
        )
    if kind != "cpu" or not sys.platform.startswith(BUILT_FOR) or library() is not None:
        return None
    package = Path(__file__).parents[1]
    if (package.parent / "pyproject.toml").exists():
        remedy = f"run `pip install -e {package.parent}`, or start Python in another folder than this source tree"
    else:
        remedy = "install a C++ compiler, then geosparse again"
    return (
        f"Sparse attention runs through plain PyTorch, many times slower, because {package} has no compiled kernels "
        f"for {platform.machine()} ({load_error()}): {remedy}."
    )


_said: set[str] = set()
_lock = threading.Lock()


def first_mention(device: torch.device | str) -> str | None:
    """`missing_kernels`, once per process and kind of device; None afterwards."""
    kind = torch.device(device).type
    with _lock:
        if kind in _said:
            return None
        _said.add(kind)
    return missing_kernels(device)


def warn_once(device: torch.device | str) -> None:
    """`first_mention` as a warning, for those who call from Python."""
    if sentence := first_mention(device):
        warnings.warn(sentence, SlowPathWarning, stacklevel=3)
