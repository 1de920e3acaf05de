"""Compile every kernel as decode, buffers and prefill launch it down to machine code for a GPU that is not here.

Run as a program, without triton's interpreter; prints one line per compiled kernel.
"""

from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from geosparse.ops import SELECTORS, AttentionCall, HeadRules, Terms
from geosparse.ops.tails import TailShares
from geosparse.ops.triton import buffers, exact, page_sums, prefill, stages
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, dense, passes_of

TARGET = GPUTarget("cuda", 90, 32)
SHARED = 227 << 10  # bytes of an H100's multiprocessor that a program may use
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
NAMES |= {torch.int32: "i32", torch.uint8: "u8"}
done = set()


def compile_only(kernel, grid, *args, **constants):
    """In the place of `launch`: types and alignment as triton's own launcher finds them."""
    options = {"num_warps": constants.pop("num_warps", 4)}
    if hasattr(kernel, "configs"):
        config = kernel.configs[0]
        options, constants, kernel = {"num_warps": config.num_warps}, constants | config.kwargs, kernel.fn
    signature, attributes = {}, {}
    free = set(kernel.do_not_specialize)
    for place, (name, arg) in enumerate(zip(kernel.arg_names, args, strict=False)):
        aligned = not isinstance(arg, float) and name not in free
        if isinstance(arg, torch.Tensor):
            signature[name] = "*" + NAMES[arg.dtype]
        elif isinstance(arg, float):
            signature[name] = "fp32"
        elif arg == 1 and name not in free:
            signature[name], constants = "constexpr", constants | {name: 1}
        else:
            signature[name] = "i32"
            aligned = aligned and arg % 16 == 0
        if aligned and signature[name] != "constexpr":
            attributes[(place,)] = [["tt.divisibility", 16]]
    missing = set(kernel.arg_names) - set(signature) - set(constants)
    assert not missing, missing
    signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    key = (kernel.fn.__name__, tuple(signature.items()), tuple(sorted(constants.items())), tuple(sorted(attributes)))
    if key in done:
        return
    done.add(key)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=TARGET, options=options)
    assert made.metadata.shared <= SHARED, (key, made.metadata.shared)
    print(
        kernel.fn.__name__, {name: constants[name] for name in ("G", "D", "PRECISION") if name in constants}, flush=True
    )


SHAPES = (  # heads per KV head, dim, dtype, selectors, soft cap and learned sinks
    (4, 128, torch.bfloat16, SELECTORS, False),
    (3, 64, torch.float32, ("lowbit",), True),
    (8, 256, torch.bfloat16, ("paged+lowbit",), True),
)
TAILS = ("centroid", "blend50", TailShares(0.3, -0.2, 0.4, 0.7))


def main():
    """All selectors in the common shape; in others those that between them use the largest kernels.

    Shares for all need all that any tail needs, "blend50" what serves where no head gives mass to pages, "centroid"
    what serves where none gives it to its kept tokens either.
    """
    for module in (stages, page_sums, buffers, prefill, exact):
        module.launch = compile_only
    for group, dim, dtype, selectors, terms in SHAPES:
        heads = 2 * group
        layer = LayerBuffers(VisibleRows.of([0, 0], [50, 60], "cpu"), 4096, 2, dim, dim, dtype)
        layer.append(torch.zeros(2, 2, 1, dim, dtype=dtype), torch.zeros(2, 2, 1, dim, dtype=dtype))
        buffers.encode_index(layer.key, layer.low, layer.high, layer.codes, *layer.rows.ends)
        buffers.average_values(layer.value, layer.means, *layer.rows.ends)
        query, budgets = torch.zeros(2, heads, dim, dtype=dtype), torch.ones(1, heads, dtype=torch.int32)
        softcap, sink = (5.0, torch.zeros(heads)) if terms else (None, None)
        tails = TAILS if selectors is SELECTORS else TAILS[::2]
        for selector, tail in product(selectors, tails):
            decode(
                query,
                layer.keys,
                budgets,
                passes_of(heads, (tail,) * heads, selector, query.device),
                0.1,
                softcap,
                sink,
            )
        dense(query, layer.keys, 0.1, softcap, sink)
        prompt = torch.zeros(1, heads, 200, dim, dtype=dtype)
        cache = (layer.key[:1, :, :200], layer.value[:1, :, :200])
        call = AttentionCall(prompt, *cache, None, None, Terms(0.1, softcap, sink))
        prefill.block_prefill(call, [1, 1], 64)
        for tail in tails:
            for coded in (None, cache[0].contiguous()):
                exact.exact_prefill(call, HeadRules([9] * heads, [tail] * heads), coded)


if __name__ == "__main__":
    main()
