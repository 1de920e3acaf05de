"""Speed of one layer's decode step on the CPU: `python -m eval.speed [--contexts 8192] [--out FILE]`.

With `--device cuda` as the first arguments, kernels and whole models on a GPU: the options are those of `eval.gpu`.

Every variant passes a correctness gate against the fp64 reference first. Each call, of whichever variant, takes the
buffers of the next of many layers, so that the processor's cache does not hide memory traffic. Variants take turns,
some calls in a row each, as a step makes them layer by layer; the first call of a row, whose code and threads another
variant has put to sleep, is kept apart. Ratios are within one run; medians with p20 and p80.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError
from geosparse.ops import Selector, Tail, cpu, huge_pages, reference_attention
from geosparse.ops.cpu.bandwidth import read_rows
from geosparse.ops.key_index import PAGE
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import write_json
from geosparse.utils.progress import track
from geosparse.utils.provenance import device_name, versions

from .benchmarks.cpu_calls import overhead, prefill_time, uneven_budgets
from .benchmarks.layers import BYTES_IN_TURN, DTYPES, SHAPES, Layer, layers_of, ours_with, seconds

SCHEMA = "geosparse.speed.kernel/3"
REPEATS = 20
READ_BYTES = 16 << 20  # bytes of random rows, read at once
CALLS_IN_A_ROW = 5  # calls of one variant in a row, the first kept apart


class KernelVariant(NamedTuple):
    """What is timed, and the bytes that it must read: in the order of memory, and in runs of some bytes anywhere."""

    run: Callable[[Layer], torch.Tensor]
    streamed: int
    gathered: int
    run_bytes: int
    n_keep: int | None
    selector: Selector | None

    @property
    def bytes(self) -> int:
        return self.streamed + self.gathered


class Memory(NamedTuple):
    """Bytes per second: of a sum over a large buffer, and of rows read in any order, by their bytes."""

    stream: float
    rows: dict[int, float]

    def floor(self, variant: KernelVariant, run_bytes: int | None = None) -> float:
        """Seconds that the variant's bytes take, with runs of that many bytes (default: as long as its own)."""
        gathered = variant.gathered / self.rows[run_bytes or variant.run_bytes] if variant.gathered else 0.0
        return variant.streamed / self.stream + gathered


def variants_of(
    shape: tuple[int, int, int], context: int, dtype: torch.dtype, keeps: Sequence[int]
) -> dict[str, KernelVariant]:
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

    result: dict[str, KernelVariant] = {
        "sdpa": KernelVariant(sdpa, dense, 0, row, None, None),
        "bmm": KernelVariant(products, dense, 0, row, None, None),
        "own dense": KernelVariant(ours(context, "topn", "drop"), dense, 0, row, context, "topn"),
    }
    bounds, codes = 2 * 2 * dim // PAGE, dim // 2
    for n in keeps:
        kept = heads * n * row
        choices: tuple[tuple[Selector, Tail, int, int, int], ...] = (
            ("topn", "centroid", kv_heads * context * row, kept, row),
            ("lowbit", "centroid", kv_heads * context * (bounds + codes), 2 * kept, row),
            ("paged", "renormalize", kv_heads * context * bounds, 2 * kept, PAGE * row),
        )
        for selector, tail, streamed, gathered, run_bytes in choices:
            variant = KernelVariant(ours(n, selector, tail), streamed, gathered, run_bytes, n, selector)
            result[f"{selector} N={n}"] = variant
    return result


def gate(layer: Layer, variant: KernelVariant, scaling: float) -> float:
    """Largest difference from the fp64 reference; raises GeosparseError where rounding cannot explain it."""
    heads, context = layer.query.shape[1], layer.key.shape[2]
    n = context if variant.n_keep is None else variant.n_keep
    selector = "topn" if variant.selector is None else variant.selector
    tail: Tail = "centroid" if selector == "lowbit" or (selector == "topn" and n < context) else "renormalize"
    true = reference_attention(*layer, [n] * heads, tail=tail, scaling=scaling, selector=selector).output
    error = float((variant.run(layer).double() - true).abs().max())
    allowed = 64 * torch.finfo(torch.float32).eps + 4 * torch.finfo(layer.query.dtype).eps
    if not error <= allowed * float(layer.value.abs().max()):
        raise GeosparseError(f"{selector} at N = {n} is off by {error:.1e} from the reference: nothing was timed.")
    return error


def bandwidth() -> float:
    """Bytes per second that a sum over a large buffer reads, best of several."""
    buffer = torch.ones(64 << 20, dtype=torch.float32, device="cpu")
    best = min(seconds(buffer.sum) for _ in range(8))
    return buffer.numel() * 4 / best


def random_bandwidth(run_bytes: int) -> float:
    """Bytes per second of rows of `run_bytes` read in random order from memory, best of several."""
    table = huge_pages.empty((BYTES_IN_TURN // run_bytes, run_bytes // 4), torch.float32).fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    orders = [
        torch.randint(len(table), (READ_BYTES // run_bytes,), generator=generator, dtype=torch.int64, device="cpu")
        for _ in range(8)
    ]
    best = min(seconds(partial(read_rows, table, order)) for order in orders)
    return len(orders[0]) * run_bytes / best


def memory_speed(shapes: Sequence[str], dtypes: Sequence[str]) -> Memory:
    """What the machine's memory gives to the variants of these cases."""
    rows = {SHAPES[shape][2] * DTYPES[dtype].itemsize for shape in shapes for dtype in dtypes}
    return Memory(bandwidth(), {size: random_bandwidth(size) for size in sorted(rows | {PAGE * row for row in rows})})


def measure(
    shape_name: str, context: int, dtype_name: str, keeps: Sequence[int], speed: Memory, repeats: int | None = None
) -> dict[str, Any]:
    """Times of all variants on one shape, in turns, beside what their bytes take at the speed of memory."""
    shape, dtype = SHAPES[shape_name], DTYPES[dtype_name]
    layers = layers_of(shape, context, dtype)
    variants = variants_of(shape, context, dtype, keeps)
    errors = {name: gate(layers[0], variant, shape[2] ** -0.5) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    firsts: dict[str, list[float]] = {name: [] for name in variants}
    turns = cycle(layers)
    for _ in range(REPEATS if repeats is None else repeats):
        for name, variant in variants.items():
            first, *others = (seconds(partial(variant.run, next(turns))) for _ in range(CALLS_IN_A_ROW))
            firsts[name].append(first)
            times[name] += others
    sdpa, own_dense = (median(times[name]) for name in ("sdpa", "own dense"))
    rows = []
    for name, variant in variants.items():
        p20, p50, p80 = (
            torch.tensor(times[name], dtype=torch.float32, device="cpu")
            .quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float32, device="cpu"))
            .tolist()
        )
        first = median(firsts[name])
        rows.append(
            {
                "variant": name,
                "us": {"p20": p20 * 1e6, "p50": p50 * 1e6, "p80": p80 * 1e6},
                "bytes": variant.bytes,
                "gb_per_second": variant.bytes / p50 / 1e9,
                "floor_us": speed.floor(variant) * 1e6,
                "share_of_floor": speed.floor(variant) / p50,
                "share_of_floor_by_rows": speed.floor(variant, shape[2] * dtype.itemsize) / p50,
                "over_sdpa": sdpa / p50,
                "over_own_dense": own_dense / p50,
                "first_us": first * 1e6,
                "first_over_sdpa": median(firsts["sdpa"]) / first,
                "error": errors[name],
            }
        )
    return {"shape": shape_name, "heads": list(shape), "context": context, "dtype": dtype_name, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    return run_command("eval.speed", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:2] == ["--device", "cuda"]:
        from .gpu.__main__ import main as main_on_gpu

        return main_on_gpu(["--stages", "correctness", "kernels", "models", "prefill", *given[2:]])
    parser = Parser(prog="python -m eval.speed", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2"])
    parser.add_argument("--contexts", nargs="+", type=whole(1), default=[8192])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--keep", nargs="+", type=whole(1), default=[64, 256])
    parser.add_argument("--repeats", type=whole(1), help=f"of every variant, default {REPEATS}")
    parser.add_argument("--prefill", type=whole(1), metavar="N", help="also time exact prefill keeping N tokens")
    parser.add_argument("--plan", type=Path, help="also time this plan's budgets against even ones")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(given[2:] if given[:2] == ["--device", "cpu"] else given)
    cases = [(s, c, d) for s in options.shapes for c in options.contexts for d in options.dtypes]
    speed = memory_speed(options.shapes, options.dtypes)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "device": f"{device_name('cpu')}, {torch.get_num_threads()} threads, {cpu.isa()}",
        "read_gb_per_second": speed.stream / 1e9,
        "random_gb_per_second": {str(size): rate / 1e9 for size, rate in speed.rows.items()},
        "provenance": versions(),
        "cases": [
            measure(*case, options.keep, speed, options.repeats) for case in track(cases, "speed", not options.json)
        ],
    }
    if options.plan is not None:
        plan = Plan.load(options.plan)
        result["ragged"] = [uneven_budgets(*case, plan, "lowbit") for case in cases]
    if options.prefill is not None:
        result["prefill"] = [prefill_time(*case, options.prefill) for case in cases]
    result["overhead_us"], result["outside_kernel_us"] = (
        overhead()
    )  # last: libgomp puts its threads to sleep sooner once their number has changed
    if options.out is not None:
        write_json(options.out, result)
    if options.json:
        print(json_text(result), end="")
        return 0
    rows = ", ".join(f"{size} bytes {rate:.1f}" for size, rate in result["random_gb_per_second"].items())
    print(f"{result['device']}; a sum reads {result['read_gb_per_second']:.1f} GB/s, random rows of {rows}")
    calls = ((kind, us, result["outside_kernel_us"][kind]) for kind, us in result["overhead_us"].items())
    print(
        "a call on one token: "
        + ", ".join(f"{kind} {us:.1f} us ({less:.1f} outside the kernel)" for kind, us, less in calls)
    )
    for case in result["cases"]:
        print(f"{case['shape']} {case['heads']}, context {case['context']}, {case['dtype']}")
        for row in case["rows"]:
            print(
                f"  {row['variant']:<14} {row['us']['p50']:9.0f} us {row['gb_per_second']:7.1f} GB/s "
                f"{row['over_sdpa']:7.2f} x SDPA {row['over_own_dense']:6.2f} x own dense, "
                f"bytes alone {row['floor_us']:.0f} us ({row['share_of_floor']:.0%}); "
                f"first of a row {row['first_us']:.0f} us, {row['first_over_sdpa']:.2f} x SDPA"
            )
    for case in result.get("prefill", []):
        print(f"{case['dtype']} prefill: exact takes {case['exact_over_sdpa']:.2f} x SDPA ({case['sdpa_s']:.2f} s)")
    for case in result.get("ragged", []):
        print(f"{case['dtype']} {case['selector']}: the plan's budgets take {case['ragged_over_even']:.2f} x even ones")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
