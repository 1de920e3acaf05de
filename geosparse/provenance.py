"""Where a result comes from: versions, device and command."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("geosparse", "torch", "triton", "transformers", "lm_eval"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words, e.g. "cpu, 2 threads" or the name of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def command_line() -> str:
    """The command that runs, without the folder of the program."""
    program = sys.argv[0].rsplit("/", 1)[-1]
    return shlex.join([program, *sys.argv[1:]])
