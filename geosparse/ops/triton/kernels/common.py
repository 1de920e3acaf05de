"""What the kernels share: logits, an order of floats, where the rows of scores end, and the shares of tails.

Tokens are counted from the first visible one: token r of a row lies at key `first + r`. "Rows" are what selections are
made in, per query head: all visible tokens, all complete pages, or the tokens of listed pages.
"""

import triton
import triton.language as tl

from ...key_index import PAGE as INDEX_PAGE

PAGE = tl.constexpr(INDEX_PAGE)
TOKENS = tl.constexpr(0)
PAGES = tl.constexpr(1)
LISTED = tl.constexpr(2)
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
ORDER_OF_NAN = tl.constexpr(0x7FFFFFFF)
ORDER_OF_NOTHING = tl.constexpr(-2139095041)


@triton.jit
def tanh(x):
    """Of fp32: a series where the quotient of exponentials would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    y = x * x
    near = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0, -far, far))


@triton.jit
def logit_of(dots, scaling, softcap, CAPPED: tl.constexpr):
    """From dot products to logits."""
    logits = dots * scaling
    if CAPPED:
        logits = softcap * tanh(logits / softcap)
    return logits


@triton.jit
def order_of(scores):
    """int32 that sort as the fp32 scores do: zeros are equal, NaN comes out on top, -inf is ORDER_OF_NOTHING."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(scores != scores, ORDER_OF_NAN, order)


@triton.jit
def is_kept(scores, places, least, last_tie):
    """Whether scores at `places` of a row are above the threshold, or equal to it and early enough."""
    order = order_of(scores)
    return (order > ORDER_OF_NOTHING) & ((order > least) | ((order == least) & (places <= last_tie)))


@triton.jit
def shares_of(tails, head):
    """The shares mean, kept, weighted and pages of a head's tail (`ops.tails`), and whether it renormalizes."""
    mean = tl.load(tails + head * 4)
    kept = tl.load(tails + head * 4 + 1)
    weighted = tl.load(tails + head * 4 + 2)
    pages = tl.load(tails + head * 4 + 3)
    return mean, kept, weighted, pages, (mean == 0.0) & (kept == 0.0) & (weighted == 1.0) & (pages == 0.0)


@triton.jit
def visible_of(first, length, b):
    """How many tokens batch row b sees."""
    return tl.maximum(tl.load(length + b) - tl.load(first + b), 0)


@triton.jit
def row_size(first, length, count, b, pair, ROWS: tl.constexpr):
    """How many scores a row holds; `pair` counts pairs of batch row and KV head."""
    if ROWS == LISTED:
        size = tl.load(count + pair) * PAGE
    else:
        size = visible_of(first, length, b)
        if ROWS == PAGES:
            size = size // PAGE
    return size


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Matrix product with fp32 sums. "ieee" multiplies in fp32; "tf32", and "half" as `b` is, on tensor cores."""
    if PRECISION == "ieee":
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    elif PRECISION == "tf32":
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32")
    else:
        result = tl.dot(a.to(b.dtype), b)
    return result
