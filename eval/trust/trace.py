"""The way of one query through the package: which files it stays in between the door of a layer and the kernel.

    python -m eval.trust.trace

A stay begins where a function is called from another file, and goes on while calls lead into the same file. A file is
entered twice where two stays in it have another one in between. What runs after the kernel call is not on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import geosparse
from geosparse.ops import AttentionCall, HeadRules, IndexSlot, Terms, cpu, remember_index
from geosparse.ops.budgets import Budgets
from geosparse.sparsify.attention import SparseAttention
from geosparse.sparsify.receipt import Receipt
from geosparse.utils.console import Parser, json_text, run_command

PACKAGE = Path(geosparse.__file__).parent
# The function in C that calls the kernel of a decode step, and the one in Python for all others.
FAST_CALL, LIBRARY_CALL = "decode", ("ops/cpu/library.py", "run")
MAX_STAYS = 8
HEADS, KV_HEADS, DIM, KEYS = 6, 2, 64, 300


def stays_of(run: Callable[[], object]) -> list[str]:
    """The files of the package that `run` stays in, in order, up to the first kernel call."""
    stays: list[str] = []
    arrived = False

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal arrived
        if event == "c_call" and getattr(argument, "__name__", "") == FAST_CALL:
            arrived = True
        if event != "call" or arrived:
            return
        place, caller = Path(frame.f_code.co_filename), frame.f_back
        if not place.is_relative_to(PACKAGE):
            return
        name = str(place.relative_to(PACKAGE))
        if (name, frame.f_code.co_name) == LIBRARY_CALL:
            arrived = True
            return
        inside = caller is not None and caller.f_code.co_filename == frame.f_code.co_filename
        if not inside and stays[-1:] != [name]:
            stays.append(name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return stays


def queries(selector: str) -> dict[str, Callable[[], object]]:
    """A decode query and a prompt through `SparseAttention.serve`, warmed up."""
    generator = torch.Generator().manual_seed(0)
    asked = {"decode": 1, "prefill": KEYS}
    budgets = Budgets(torch.full((1, HEADS), 16, dtype=torch.int64, device="cpu"))
    layer = SparseAttention(0, HeadRules.of(budgets.of(0), "blend50", selector), Receipt(budgets, ["layer"]))
    runs: dict[str, Callable[[], object]] = {}
    for name, count in asked.items():
        query, key, value = (
            torch.randn(1, heads, length, DIM, generator=generator, dtype=torch.float32, device="cpu")
            for heads, length in ((HEADS, count), (KV_HEADS, KEYS), (KV_HEADS, KEYS))
        )
        remember_index(key, IndexSlot())
        call = AttentionCall(query, key, value, None, None, Terms(DIM**-0.5))

        def run(call: AttentionCall = call) -> torch.Tensor:
            with torch.no_grad():
                return layer.serve(call)

        run()
        runs[name] = run
    return runs


def traced() -> dict[str, list[str]]:
    """Query and selector -> its stays."""
    return {
        f"{name}, {selector}": stays_of(run)
        for selector in ("topn", "lowbit")
        for name, run in queries(selector).items()
    }


def faults(stays: list[str]) -> list[str]:
    """What is wrong with the way of a query, in words."""
    twice = sorted({name for name in stays if stays.count(name) > 1})
    said = [f"{name} is entered twice" for name in twice]
    return said if len(stays) <= MAX_STAYS else [f"{len(stays)} stays", *said]


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 1 where a query stays too often."""
    return run_command("eval.trust.trace", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m eval.trust.trace", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the place of lines")
    options = parser.parse_args(arguments)
    assert cpu.library() is not None, "the kernels are not built"
    ways = traced()
    wrong = {name: said for name, stays in ways.items() if (said := faults(stays))}
    if options.json:
        print(json_text({"ways": ways, "faults": wrong}), end="")
    else:
        for name, stays in ways.items():
            print(f"{name}: {len(stays)} stays: {' > '.join(stays)}")
            for fault in wrong.get(name, []):
                print(f"  {fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
