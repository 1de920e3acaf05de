"""Speed of one layer's decode step on the CPU: `python -m eval.speed [--contexts 8192] [--out FILE]`.

With `--device cuda` as the first arguments, kernels and whole models on a GPU: the options are those of `eval.gpu`.

Every variant passes a correctness gate against the fp64 reference first. Each call, of whichever variant, takes the
buffers of the next of many layers, so that the processor's cache does not hide memory traffic. Variants take turns,
some calls in a row each, as a step makes them layer by layer; the first call of a row, whose code and threads another
variant has put to sleep, is told apart. Ratios are within one run; medians with p20 and p80.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from geosparse.artifact import dump_json, write_json
from geosparse.errors import GeosparseError
from geosparse.ops import Selector, Tail, cpu, reference_attention
from geosparse.ops.index import PAGE
from geosparse.plan import Plan
from geosparse.progress import track
from geosparse.provenance import device_name, versions

from .calls import overhead, prefill_time, raggedness
from .layers import DTYPES, SHAPES, Layer, layers_of, ours_with, seconds

SCHEMA = "geosparse.speed.kernel/2"
REPEATS = 20
ROW = 5  # calls of one variant in a row, the first told apart


class Variant(NamedTuple):
    """What is timed, and the bytes that it must read."""

    run: Callable[[Layer], torch.Tensor]
    bytes: int
    n_keep: int | None
    selector: Selector | None


def variants_of(
    shape: tuple[int, int, int], context: int, dtype: torch.dtype, keeps: Sequence[int]
) -> dict[str, Variant]:
    """SDPA and two products as torch has them, our dense kernel, and our selectors."""
    heads, kv_heads, dim = shape
    row = dim * dtype.itemsize
    dense = 2 * kv_heads * context * row
    scaling = dim**-0.5

    def sdpa(layer: Layer) -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        output: torch.Tensor = attend(*layer, enable_gqa=heads != kv_heads)
        return output

    def products(layer: Layer) -> torch.Tensor:
        query = layer.query.view(1, kv_heads, heads // kv_heads, dim)
        weights = (query @ layer.key.transpose(-1, -2) * scaling).softmax(-1)
        output: torch.Tensor = (weights @ layer.value).view(1, heads, 1, dim)
        return output

    def ours(n: int, selector: Selector, tail: Tail) -> Callable[[Layer], torch.Tensor]:
        return ours_with((n,) * heads, selector, tail, scaling)

    result: dict[str, Variant] = {
        "sdpa": Variant(sdpa, dense, None, None),
        "bmm": Variant(products, dense, None, None),
        "own dense": Variant(ours(context, "topn", "drop"), dense, context, "topn"),
    }
    bounds, codes = 2 * 2 * dim // PAGE, dim // 2
    for n in keeps:
        kept = heads * n * row
        choices: tuple[tuple[Selector, Tail, int], ...] = (
            ("topn", "centroid", kv_heads * context * row + kept),
            ("lowbit", "centroid", kv_heads * context * (bounds + codes) + 2 * kept),
            ("paged", "renormalize", kv_heads * context * bounds + 2 * kept),
        )
        for selector, tail, read in choices:
            result[f"{selector} N={n}"] = Variant(ours(n, selector, tail), read, n, selector)
    return result


def gate(layer: Layer, variant: Variant, scaling: float) -> float:
    """Largest difference from the fp64 reference; raises GeosparseError where rounding cannot explain it."""
    heads, context = layer.query.shape[1], layer.key.shape[2]
    n, selector = variant.n_keep or context, variant.selector or "topn"
    tail: Tail = "centroid" if selector == "lowbit" or (selector == "topn" and n < context) else "renormalize"
    true = reference_attention(*layer, [n] * heads, tail=tail, scaling=scaling, selector=selector).output
    error = float((variant.run(layer).double() - true).abs().max())
    allowed = 64 * torch.finfo(torch.float32).eps + 4 * torch.finfo(layer.query.dtype).eps
    if not error <= allowed * float(layer.value.abs().max()):
        raise GeosparseError(f"{selector} at N = {n} is off by {error:.1e} from the reference: nothing was timed.")
    return error


def bandwidth() -> float:
    """Bytes per second that a sum over a large buffer reads, best of several."""
    buffer = torch.ones(64 << 20)
    best = min(seconds(buffer.sum) for _ in range(8))
    return buffer.numel() * 4 / best


def measure(shape_name: str, context: int, dtype_name: str, keeps: Sequence[int], repeats: int = 0) -> dict[str, Any]:
    """Times of all variants on one shape, in turns."""
    shape, dtype = SHAPES[shape_name], DTYPES[dtype_name]
    layers = layers_of(shape, context, dtype)
    variants = variants_of(shape, context, dtype, keeps)
    errors = {name: gate(layers[0], variant, shape[2] ** -0.5) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    firsts: dict[str, list[float]] = {name: [] for name in variants}
    turns = cycle(layers)
    for _ in range(repeats or REPEATS):
        for name, variant in variants.items():
            first, *others = (seconds(partial(variant.run, next(turns))) for _ in range(ROW))
            firsts[name].append(first)
            times[name] += others
    sdpa, own = (median(times[name]) for name in ("sdpa", "own dense"))
    rows = []
    for name, variant in variants.items():
        p20, p50, p80 = torch.tensor(times[name]).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
        first = median(firsts[name])
        rows.append(
            {
                "variant": name,
                "us": {"p20": p20 * 1e6, "p50": p50 * 1e6, "p80": p80 * 1e6},
                "bytes": variant.bytes,
                "gb_per_second": variant.bytes / p50 / 1e9,
                "over_sdpa": sdpa / p50,
                "over_own_dense": own / p50,
                "first_us": first * 1e6,
                "first_over_sdpa": median(firsts["sdpa"]) / first,
                "error": errors[name],
            }
        )
    return {"shape": shape_name, "heads": list(shape), "context": context, "dtype": dtype_name, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:2] == ["--device", "cuda"]:
        from .gpu.__main__ import main as main_on_gpu

        return main_on_gpu(["--stages", "correctness", "kernels", "models", "prefill", *given[2:]])
    parser = argparse.ArgumentParser(prog="python -m eval.speed", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[8192])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--keep", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--repeats", type=int, default=0, help=f"of every variant, default {REPEATS}")
    parser.add_argument("--prefill", type=int, metavar="N", help="also time exact prefill keeping N tokens")
    parser.add_argument("--plan", type=Path, help="also time this plan's budgets against even ones")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(given[2:] if given[:2] == ["--device", "cpu"] else given)
    cases = [(s, c, d) for s in options.shapes for c in options.contexts for d in options.dtypes]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "device": f"{device_name('cpu')}, {torch.get_num_threads()} threads, {cpu.isa()}",
        "read_gb_per_second": bandwidth() / 1e9,
        "provenance": versions(),
        "cases": [measure(*case, options.keep, options.repeats) for case in track(cases, "speed", not options.json)],
    }
    if options.plan:
        plan = Plan.load(options.plan)
        result["ragged"] = [raggedness(*case, plan, "lowbit") for case in cases]
    if options.prefill:
        result["prefill"] = [prefill_time(*case, options.prefill) for case in cases]
    result["overhead_us"] = overhead()  # last: libgomp puts its threads to sleep sooner once their number has changed
    if options.out:
        write_json(options.out, result)
    if options.json:
        print(dump_json(result), end="")
        return 0
    print(f"{result['device']}; a sum reads {result['read_gb_per_second']:.1f} GB/s")
    print("a call on one token: " + ", ".join(f"{word} {us:.1f} us" for word, us in result["overhead_us"].items()))
    for case in result["cases"]:
        print(f"{case['shape']} {case['heads']}, context {case['context']}, {case['dtype']}")
        for row in case["rows"]:
            print(
                f"  {row['variant']:<14} {row['us']['p50']:9.0f} us {row['gb_per_second']:7.1f} GB/s "
                f"{row['over_sdpa']:7.2f} x SDPA {row['over_own_dense']:6.2f} x own dense; "
                f"first of a row {row['first_us']:.0f} us, {row['first_over_sdpa']:.2f} x SDPA"
            )
    for case in result.get("prefill", []):
        print(f"{case['dtype']} prefill: exact takes {case['exact_over_sdpa']:.2f} x SDPA ({case['sdpa_s']:.2f} s)")
    for case in result.get("ragged", []):
        print(f"{case['dtype']} {case['selector']}: the plan's budgets take {case['ragged_over_even']:.2f} x even ones")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
