"""Memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process that is in RAM at this moment."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it ever was."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
