"""Independent jobs side by side: one thread of Python for each thread of torch, which then computes with one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def mapped(function: Callable[[Job], Result], jobs: Iterable[Job], *, parallel: bool = True) -> Iterator[Result]:
    """`function` of every job, in the order of the jobs, without gradients; at most two jobs a thread are drawn ahead.

    Many small operations gain little from torch's own threads. Every job computes with one of them, so its numbers do
    not depend on how many there are. What a job raises is raised here.

    Args:
        function: Called from several threads at once.
        jobs: Drawn one after the other, in this thread.
        parallel: False to run them here, one by one: on a GPU, threads only wait for each other.
    """
    threads = torch.get_num_threads() if parallel else 1
    if threads == 1:
        with torch.no_grad():
            yield from map(function, jobs)
        return

    def alone(job: Job) -> Result:
        with torch.no_grad():
            return function(job)

    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(alone, job))
                    if len(waiting) >= 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # what other threads start with
