"""Windows that are done, kept on disk until all are: a run that was stopped goes on, and processes share the work."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..artifacts.interplay import Interplay
from ..artifacts.profile import ARRAYS, MAX_HEADER, MOMENTS
from ..artifacts.tail_moments import TAIL_ARRAYS
from ..errors import GeosparseError
from ..geometry.moments import Moments
from ..utils.files import check_header, dump_json, write_atomic


class Window(NamedTuple):
    """One window that was measured: its arrays, its moments `[layers, Hq, ...]`, and its mean loss."""

    arrays: dict[str, torch.Tensor]
    moments: Moments
    nll: float


# Where launchers say which process this is, and of how many.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
ATTEMPTS = 5
LONGEST_WAIT = timedelta(days=7)
_GROUPS = itertools.count()


class Parts:
    """A folder with one file per finished window of one run; files of any other run in it do not count."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        """Name the run.

        Args:
            folder: Where the files are; made when the first window is saved.
            run: Everything that decides the numbers, as JSON.
        """
        self.folder = folder
        self.key = hashlib.sha256(dump_json(run).encode()).hexdigest()

    def load(self, index: int) -> Window | None:
        """The window, or None where it is not there, not as it was written, or of another run."""
        content = self._read(f"window-{index:05d}")
        if content is None:
            return None
        tensors, nll = content
        moments = Moments(**{item.name: tensors[MOMENTS + item.name] for item in fields(Moments)})
        if not tensors.keys() >= {*ARRAYS, *TAIL_ARRAYS}:
            return None
        return Window({name: tensors[name] for name in (*ARRAYS, *TAIL_ARRAYS)}, moments, float.fromhex(nll))

    def save(self, index: int, window: Window) -> None:
        """Write one window, atomically."""
        sums = {MOMENTS + item.name: getattr(window.moments, item.name) for item in fields(Moments)}
        self._write(f"window-{index:05d}", window.arrays | sums, window.nll.hex())

    def load_second(self, index: int) -> Interplay | None:
        """A window of the second pass; None as in `load`."""
        content = self._read(f"second-{index:05d}")
        return None if content is None else Interplay(**content[0])

    def save_second(self, index: int, interplay: Interplay) -> None:
        """Write one window of the second pass, atomically."""
        self._write(f"second-{index:05d}", vars(interplay), "")

    def _read(self, name: str) -> tuple[dict[str, torch.Tensor], str] | None:
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{name}.safetensors"
        try:
            check_header(path, MAX_HEADER)
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("run") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return (tensors, header["nll"]) if header.get("digest") == _digest(tensors, header["nll"]) else None
        except (OSError, SafetensorError, GeosparseError, KeyError, ValueError):
            return None

    def _write(self, name: str, tensors: dict[str, torch.Tensor], nll: str) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        blob = save(tensors, {"run": self.key, "nll": nll, "digest": _digest(tensors, nll)})
        for attempt in range(ATTEMPTS):
            try:
                write_atomic(self.folder / f"{name}.safetensors", lambda temporary: temporary.write_bytes(blob))
                return
            except GeosparseError as error:
                # Another process with the same output was done first and removed the folder.
                if not isinstance(error.__cause__, FileNotFoundError) or attempt == ATTEMPTS - 1:
                    raise


def _digest(tensors: dict[str, torch.Tensor], nll: str) -> str:
    """The sha256 (hex) of the loss and all tensors: their types, shapes and bytes."""
    digest = hashlib.sha256(nll.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
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
    if process_rank()[1] == 1:
        return
    from torch import distributed

    with process_group():
        group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        try:
            distributed.barrier(group)
        finally:
            distributed.destroy_process_group(group)


@contextmanager
def process_group() -> Iterator[None]:
    """The launcher's processes as a group of torch, for the length of a block: the caller's, if there is one, else one
    that is destroyed at the end, whatever happens."""
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    rank, processes = process_rank()
    if processes == 1 or distributed.is_initialized():
        yield
        return
    # Of every use its own: what an earlier group left behind would be taken for this one's.
    store = PrefixStore(f"geosparse-{next(_GROUPS)}", _store(rank, processes))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@cache
def _store(rank: int, processes: int) -> Any:
    """Where the processes meet; kept, as another one might still be asking the first for the end of a group."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://", rank, processes, timeout=LONGEST_WAIT)))[0]
