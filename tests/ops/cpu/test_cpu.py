"""The CPU kernels against the fp64 reference, on every instruction set that this machine has."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import (
    TAILS,
    Span,
    best_path,
    causal_mask,
    chunked_attention,
    cpu,
    cpu_attention,
    reference_attention,
)

from ..test_attention import tensors, tolerance

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")


@pytest.fixture(params=cpu.ISAS)
def isa(request):
    library = cpu.library()
    wanted = cpu.ISAS.index(request.param)
    if library.gs_set_isa(wanted) != wanted:
        library.gs_set_isa(-1)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.gs_set_isa(-1)


def budgets(heads, keys):
    return [max(1, n) for n in itertools.islice(itertools.cycle([1, 3, 17, keys // 2, keys, keys + 9]), heads)]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 15), (1, 16), (1, 17), (1, 333), (1, 1025), (37, 37), (5, 53)]
)
def test_equals_reference(isa, tail, heads, kv_heads, queries, keys):
    for dim in (64, 40):
        q, k, v = tensors(2, heads, kv_heads, queries, keys, dim)
        n_keep = budgets(heads, keys)
        fast = cpu_attention(q, k, v, n_keep, tail=tail, scaling=0.2)
        true = reference_attention(q, k, v, n_keep, tail=tail, scaling=0.2)
        assert torch.equal(fast.kept, true.kept)
        assert (fast.output - true.output).abs().max() <= tolerance(v)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("queries", [1, 33])
@pytest.mark.parametrize("dim", [128, 256])
def test_masks_caps_sinks_and_blind_rows(isa, tail, queries, dim):
    q, k, v = tensors(3, 6, 2, queries, 97, dim)
    mask = causal_mask(queries, 97).expand(3, 1, queries, 97).clone()
    mask[1, :, :, :30] = False
    mask[2] = False
    sink = torch.linspace(-2, 2, 6)
    for extra in ({}, {"sink": sink}, {"softcap": 3.0}):
        arguments = {"tail": tail, "scaling": 0.1, "mask": mask, **extra}
        fast = cpu_attention(q, k, v, [1, 2, 5, 40, 97, 200], **arguments)
        true = reference_attention(q, k, v, [1, 2, 5, 40, 97, 200], **arguments)
        assert torch.equal(fast.kept, true.kept)
        assert (fast.output - true.output).abs().max() <= tolerance(v)
        assert fast.output[2].abs().max() == 0


@pytest.mark.parametrize("few", [True, False], ids=["few kept", "much kept"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "dim", "value_dim"),
    [
        (2, 2, 67, 67, 20, 40),
        (9, 3, 40, 40, 64, 64),
        (9, 3, 29, 133, 64, 32),
        (10, 2, 16, 16, 80, 64),
        (26, 1, 16, 19, 64, 64),
    ],
)
def test_blocks_of_queries(isa, few, heads, kv_heads, queries, keys, dim, value_dim):
    """Queries that are scored together: parts of a tile, of a panel, left padding, windows, groups above a tile."""
    q, k, _ = tensors(2, heads, kv_heads, queries, keys, dim)
    v = tensors(2, heads, kv_heads, queries, keys, value_dim, seed=1)[2]
    n_keep = [1 + head % 5 for head in range(heads)] if few else budgets(heads, keys)
    tail = [TAILS[head % len(TAILS)] for head in range(heads)]
    sink = torch.linspace(-2, 2, heads)
    cases = (
        (Span(), {}),
        (Span((0, 11)), {"sink": sink, "softcap": 3.0}),
        (Span((3, 0)), {"selector": "lowbit"}),
        (Span((0, 0), 21), {"sink": sink}),
        (Span((0, 0), 40), {"selector": "sink_recent"}),
    )
    for span, extra in cases:
        arguments = {"tail": tail, "scaling": 0.2, "mask": span, **extra}
        fast = cpu_attention(q, k, v, n_keep, **arguments)
        true = reference_attention(q, k, v, n_keep, **arguments)
        assert torch.equal(fast.kept, true.kept)
        assert (fast.output - true.output).abs().max() <= tolerance(v)


@pytest.mark.parametrize("n", [3, 60])
def test_a_value_that_is_not_finite_stays_with_the_queries_that_see_it(isa, n):
    q, k, v = tensors(1, 6, 2, 90, 90, 64)
    v[:, :, 50] = torch.nan
    clean = v.nan_to_num(0.0)
    for tail in TAILS:
        fast, true = (cpu_attention(q, k, part, [n] * 6, tail=tail, scaling=0.2).output for part in (v, clean))
        assert torch.equal(fast[:, :, :50], true[:, :, :50])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 20])
def test_half_precision_is_rounded_once(isa, dtype, queries):
    q, k, v = tensors(2, 6, 2, queries, 200, 64, dtype=dtype)
    for tail in TAILS:
        fast = cpu_attention(q, k, v, [1, 2, 8, 50, 199, 400], tail=tail, scaling=0.125)
        true = reference_attention(q, k, v, [1, 2, 8, 50, 199, 400], tail=tail, scaling=0.125)
        assert fast.output.dtype == dtype
        # Inputs are exact in fp32, so all that is lost is the rounding of the output.
        error = (fast.output.double() - true.output).abs()
        assert torch.all(error <= torch.finfo(dtype).eps * true.output.abs() + tolerance(v.float()))


def test_strided_views_of_poisoned_buffers(isa):
    q, k, v = tensors(2, 6, 2, 1, 70, 64)
    key = torch.full((2, 2, 100, 64), torch.nan)
    value = torch.full((2, 2, 100, 64), torch.nan)
    key[:, :, :70], value[:, :, :70] = k, v
    for tail in TAILS:
        fast = cpu_attention(q, key[:, :, :70], value[:, :, :70], [9] * 6, tail=tail, scaling=0.1)
        plain = cpu_attention(q, k, v, [9] * 6, tail=tail, scaling=0.1)
        assert torch.equal(fast.output, plain.output)
    swapped = q.expand(2, 6, 3, 64).transpose(1, 2).contiguous().transpose(1, 2)[:, :, :1]
    assert torch.equal(
        cpu_attention(swapped, k, v, [9] * 6, tail="drop", scaling=0.1).output,
        cpu_attention(q, k, v, [9] * 6, tail="drop", scaling=0.1).output,
    )


def test_known_value_sum_is_used(isa):
    q, k, v = tensors(1, 4, 2, 1, 80, 64)
    plain = cpu_attention(q, k, v, [4] * 4, tail="centroid", scaling=0.1).output
    cpu.remember_value_sum(v, v.double().sum(2))
    assert (cpu_attention(q, k, v, [4] * 4, tail="centroid", scaling=0.1).output - plain).abs().max() <= tolerance(v)
    cpu.remember_value_sum(v, v.double().sum(2) + 80)
    assert (cpu_attention(q, k, v, [4] * 4, tail="centroid", scaling=0.1).output - plain).abs().max() > 0.1


@given(st.integers(1, 200), st.integers(1, 220), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60)
def test_ties_go_to_the_left_like_in_the_torch_path(keys, n, seed, one_query):
    generator = torch.Generator().manual_seed(seed)
    q = torch.ones(1, 2, 1 if one_query else 3, 1)
    k = torch.randn(1, 1, keys, 1, generator=generator).round()
    v = torch.randn(1, 1, keys, 4, generator=generator)
    if one_query is False and keys < 3:
        return
    fast = cpu_attention(q, k, v, [n, 1], tail="renormalize", scaling=1.0)
    slow = chunked_attention(q, k, v, [n, 1], tail="renormalize", scaling=1.0)
    assert torch.equal(fast.kept, slow.kept)
    assert (fast.output - slow.output).abs().max() <= tolerance(v)


def test_nan_scores_are_not_hidden(isa):
    q, k, v = tensors(1, 2, 1, 1, 64, 64)
    q[0, 0] = torch.nan
    output = cpu_attention(q, k, v, [4, 4], tail="centroid", scaling=1.0).output
    assert torch.isnan(output[0, 0]).any()
    assert torch.isfinite(output[0, 1]).all()


def test_dispatch():
    q, k, v = tensors(1, 2, 1, 1, 8, 4)
    assert best_path(q, k, v, None) == "cpu"
    assert best_path(q, k, v, torch.zeros(1)) == "torch"
    assert best_path(q.double(), k, v, None) == "torch"
    assert best_path(q.requires_grad_(), k, v, None) == "torch"


def decoded(tensors_of_call):
    q, k, v = tensors_of_call
    return cpu_attention(q, k, v, budgets(9, k.shape[2]), tail="centroid", scaling=0.2).output


def test_calls_of_several_threads_share_the_helpers():
    calls = [tensors(1, 9, 3, 1, 200 + 37 * i, 64) for i in range(8)]
    # The number of threads is each thread's own; with one there would be no helpers.
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(3,)) as pool:
        alone = [pool.submit(decoded, call).result() for call in calls]
        together = list(pool.map(decoded, calls * 50))
    assert all(torch.equal(got, alone[i % 8]) for i, got in enumerate(together))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_its_own_helpers():
    # In a process of its own: the fork of a process with many threads is asking for trouble of other kinds.
    code = """
import os, torch
from geosparse.ops import cpu_attention
torch.set_num_threads(2)
q, k, v = torch.randn(1, 9, 1, 64), torch.randn(1, 3, 4000, 64), torch.randn(1, 3, 4000, 64)
decoded = lambda: cpu_attention(q, k, v, [64] * 9, tail="centroid", scaling=0.2).output
expected = decoded()
child = os.fork()
same = all(torch.equal(decoded(), expected) for _ in range(20))
if not child:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
