"""Times of device work, without the time of the calls that start it: everything is replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

REPEATS = 20
WARM_UP_CALLS = 3


def gpu() -> torch.device:
    """Where everything is measured."""
    return torch.device("cuda")


def free_bytes() -> int:
    """Memory of the GPU that nothing uses."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def captured(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """`run` as a graph; it is called first outside of one, so that kernels are compiled and tuned."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def microseconds(calls: Sequence[Callable[[], Any]], graphed: bool = True) -> dict[str, float]:
    """p20, p50 and p80 of the time of one call; the calls follow each other, so that no cache holds their data."""

    def run() -> None:
        for call in calls:
            call()

    if graphed:
        run = captured(run).replay
    else:
        for _ in range(WARM_UP_CALLS):
            run()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop) / len(calls))
    quantiles = (
        torch.tensor(times, dtype=torch.float32, device="cpu")
        .quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float32, device="cpu"))
        .tolist()
    )
    return dict(zip(("p20", "p50", "p80"), quantiles, strict=True))


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that a sum over a gigabyte reads."""
    buffer = torch.ones(1 << 28, device=device, dtype=torch.float32)
    return buffer.numel() * 4 / (microseconds([buffer.sum])["p50"] * 1e-6)
