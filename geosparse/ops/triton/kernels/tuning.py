"""A few configurations per kernel, timed at its first call for a shape and kept in triton's cache."""

import triton
from triton import knobs


def tuned(blocks, key, warps=(4, 8)):
    """Decorator: choose BLOCK and the number of warps once per value of the arguments `key` (and per dtype).

    Lengths are no part of the key, so that nothing is tuned or compiled again while a context grows. The first call
    times kernels and cannot be captured in a graph.
    """
    if knobs.runtime.interpret:
        return triton.autotune([triton.Config({"BLOCK": blocks[0]})], key=[])
    configs = [triton.Config({"BLOCK": block}, num_warps=count) for block in blocks for count in warps]
    return triton.autotune(configs, key=list(key), cache_results=True)
