"""Where a result comes from: versions, device and command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    installed = {"python": platform.python_version()}
    for package in ("geosparse", "torch", "triton", "transformers", "lm_eval"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words, e.g. "cpu, 2 threads" or the name of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.processor() or platform.machine())}, {cores} cores"


def command_line() -> str:
    """The command that runs, without the folder of the program."""
    program = sys.argv[0].rsplit("/", 1)[-1]
    return shlex.join([program, *sys.argv[1:]])
