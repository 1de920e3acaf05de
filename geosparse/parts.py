"""Windows that are done, kept on disk until all are: a run that was stopped goes on, and processes share the work."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from .artifact import check_header, dump_json, write_atomic
from .errors import GeosparseError
from .profile import ARRAYS, MAX_HEADER

Window = tuple[dict[str, torch.Tensor], float]  # the arrays of one window, and its mean loss

# Where launchers say which process this is, and of how many.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
ATTEMPTS = 5
LONGEST_WAIT = timedelta(days=7)


class Parts:
    """A folder with one file per finished window of one run; files of any other run in it do not count."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        """Args: the folder, made when the first window is saved; everything that decides the numbers, as JSON."""
        self.folder = folder
        self.key = hashlib.sha256(dump_json(run).encode()).hexdigest()

    def _path(self, index: int) -> Path:
        return self.folder / f"window-{index:05d}.safetensors"

    def load(self, index: int) -> Window | None:
        """The window, or None where it is not there, not as it was written, or of another run."""
        from safetensors import SafetensorError, safe_open

        try:
            check_header(self._path(index), MAX_HEADER)
            with safe_open(self._path(index), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("run") != self.key:
                    return None
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
            window = arrays, float.fromhex(header["nll"])
            return window if header.get("digest") == _digest(window) else None
        except (OSError, SafetensorError, GeosparseError, KeyError, ValueError, OverflowError):
            return None

    def save(self, index: int, window: Window) -> None:
        """Write one window, atomically."""
        from safetensors.torch import save

        arrays, nll = window
        header = {"run": self.key, "nll": nll.hex(), "digest": _digest(window)}
        blob = save({name: array.contiguous() for name, array in arrays.items()}, header)
        for attempt in range(ATTEMPTS):
            try:
                write_atomic(self._path(index), lambda temporary: temporary.write_bytes(blob))
                return
            except GeosparseError as error:
                # Another process with the same output was done first and removed the folder.
                if not isinstance(error.__cause__, FileNotFoundError) or attempt == ATTEMPTS - 1:
                    raise


def _digest(window: Window) -> str:
    """The sha256 (hex) of the loss and all arrays: their types, shapes and bytes."""
    arrays, nll = window
    digest = hashlib.sha256(nll.hex().encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def process_rank() -> tuple[int, int]:
    """This process's place among those that a launcher (`accelerate launch`, `torchrun`, `mpirun`) started, and their
    number."""
    for rank, size in LAUNCHERS:
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def wait_for_all() -> None:
    """Return when every process of the launcher has come here."""
    rank, processes = process_rank()
    if processes == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=processes, timeout=LONGEST_WAIT)
    distributed.barrier(distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
