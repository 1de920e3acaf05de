"""What a CUDA graph asks of decode, checked without one: no host reads, the same launches whatever the lengths."""

import inspect
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from geosparse.ops import SELECTORS, triton
from geosparse.ops.tails import TailShares
from geosparse.ops.triton import buffers, page_sums, stages
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, passes_of
from geosparse.sparsify import compiled  # whose operator is called "attend" too

from .material import DEVICE, needs_kernels, tensors

pytestmark = needs_kernels
PAGED = (TailShares(pages=1.0), "drop", TailShares(0.3, -0.2, 0.4, 0.7), "renormalize")
SERVED = [*((selector, "centroid") for selector in SELECTORS), ("paged", "blend50"), ("sink_recent", "blend50")]
SERVED += [("lowbit", PAGED), ("paged", PAGED)]


class NoHostReads(TorchDispatchMode):
    """Raises where a value leaves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert name not in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"), name
        moved = name == "aten::_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device)
        assert not moved, "a copy to another device"
        return func(*args, **(kwargs or {}))


class Tape(NoHostReads):
    """What a CUDA graph holds of the code under it: every launch and every operation, at fixed places in memory."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.entries = []
        for module in (stages, page_sums, buffers):
            monkeypatch.setattr(module, "launch", partial(self.launched, module.launch))

    def launched(self, launch, *args, **constants):
        """Note a launch; what triton's interpreter does in it is no operation of ours."""
        self.entries.append((launch, args, constants, ()))
        with _disable_current_modes():
            launch(*args, **constants)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        given = {part.untyped_storage().data_ptr() for part in tree_leaves(args) if isinstance(part, torch.Tensor)}
        made = [part for part in tree_leaves(out) if part.untyped_storage().data_ptr() not in given]
        if "empty" not in func.name():
            self.entries.append((func, args, kwargs or {}, made))
        return out

    def replay(self):
        """Do it again, at the same places, without the code."""
        for run, args, kwargs, made in self.entries:
            fresh = [part for part in tree_leaves(run(*args, **kwargs)) if isinstance(part, torch.Tensor)]
            for place, value in zip(made, fresh, strict=False):
                place.copy_(value)


def step(layer, query, budgets, passes):
    """What one captured step does in a layer."""
    layer.rows.advance_()
    layer.append(query[:, :2, None], query[:, 2:4, None])
    return decode(query, layer.keys, budgets, passes, 0.1)


def material(lengths, capacity=200):
    layer = LayerBuffers(VisibleRows.of([0, 3], lengths, DEVICE), capacity, 2, 64, 64, torch.float32)
    query = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return layer, query, torch.tensor([[3, 9, 17, 30]], dtype=torch.int32, device=DEVICE)


@pytest.fixture
def launches(monkeypatch):
    """Every launch: kernel, grid, and all arguments that are no tensors."""
    seen = []

    def record(kernel, grid, *args, **constants):
        numbers = [arg if not isinstance(arg, torch.Tensor) else (arg.dtype, arg.shape) for arg in args]
        seen.append((kernel.fn if hasattr(kernel, "configs") else kernel, grid, numbers, sorted(constants.items())))

    for module in (stages, page_sums, buffers, triton.prefill):
        monkeypatch.setattr(module, "launch", record)
    return seen


@pytest.mark.parametrize(("selector", "tail"), SERVED)
def test_launches_do_not_depend_on_what_is_in_the_buffers(launches, selector, tail):
    found = []
    for lengths in ([17, 20], [99, 160]):
        layer, query, budgets = material(lengths)
        with NoHostReads():
            step(layer, query, budgets, passes_of(4, tail, selector, DEVICE))
        found.append(list(launches))
        launches.clear()
    assert found[0] == found[1]
    assert len(found[0]) >= 4


@pytest.mark.parametrize("tail", ["centroid", "blend50", PAGED])
def test_a_cache_that_grows_compiles_nothing_again(launches, tail):
    """In eager decoding the tensors grow; what triton compiles for must not: constants, and numbers by divisibility."""
    keys = []
    for length in (497, 1009, 1010, 1500):
        q, k, v = tensors(1, 4, 2, length, 64)
        k, v = (torch.zeros(1, 2, 2048, 64, device=DEVICE)[:, :, :length] for _ in range(2))
        triton.triton_attention(q, k, v, [8] * 4, tail=tail, scaling=0.1, selector="lowbit")
        keys.append([])
        for kernel, _, numbers, constants in launches:
            given = kernel.kwargs if hasattr(kernel, "kwargs") else vars(kernel)
            free = set(given.get("do_not_specialize") or [])
            names = list(inspect.signature(kernel.fn).parameters)
            kinds = [
                (number == 1, number % 16 == 0) if isinstance(number, int) and name not in free else type(number)
                for name, number in zip(names, numbers, strict=False)
            ]
            keys[-1].append((kernel, kinds, constants))
        launches.clear()
    for each in keys[1:]:
        assert each == keys[0]


@pytest.mark.parametrize("tail", ["drop", "blend50", PAGED])
def test_the_stages_are_operators_of_a_graph(tail):
    layer, query, budgets = material([40, 60], capacity=64)
    assert callable(compiled.attend)
    passes = passes_of(4, tail, "paged", DEVICE)
    plain = decode(query, layer.keys, budgets, passes, 0.1)
    traced = torch.compile(
        lambda asked: decode(asked, layer.keys, budgets, passes, 0.1), backend="eager", fullgraph=True
    )
    for ours, theirs in zip(traced(query), plain, strict=True):
        assert torch.equal(ours, theirs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output, kept = decode(mode.from_tensor(query), layer.keys, budgets, passes, 0.1)
    assert (output.shape, kept.shape) == (query.shape, (2, 4))


@pytest.mark.parametrize(("selector", "tail"), SERVED)
def test_what_one_step_launched_replays_while_the_context_grows(monkeypatch, selector, tail):
    """As a CUDA graph would: the launches of a single step, with the arguments they had, serve the steps after it."""
    passes = passes_of(4, tail, selector, DEVICE)
    layer, query, budgets = material([40, 60], capacity=96)
    tape = Tape(monkeypatch)
    with tape:
        captured = step(layer, query, budgets, passes)
    launches = len(tape.entries)
    monkeypatch.undo()
    twin, _, _ = material([40, 60], capacity=96)
    step(twin, query, budgets, passes)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        query.copy_(torch.randn(query.shape, generator=generator))
        tape.replay()
        output, kept = step(twin, query, budgets, passes)
        assert torch.equal(captured[0], output)
        assert torch.equal(captured[1], kept)
    assert layer.rows.length.tolist() == [61, 81]
    assert len(tape.entries) == launches


@pytest.mark.gpu
@pytest.mark.parametrize(("selector", "tail"), SERVED)
def test_one_graph_replays_while_the_context_grows(selector, tail):
    passes = passes_of(4, tail, selector, DEVICE)
    layer, query, budgets = material([40, 60])
    step(layer, query, budgets, passes)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, query, budgets, passes)
    twin, _, _ = material([40, 60])
    step(twin, query, budgets, passes)
    for _ in range(50):
        query.copy_(torch.randn_like(query))
        graph.replay()
        output, kept = step(twin, query, budgets, passes)
        assert torch.equal(captured[0], output)
        assert torch.equal(captured[1], kept)
    assert layer.rows.length.tolist() == [91, 111]
