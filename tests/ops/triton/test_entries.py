"""Triton kernels give the same numbers whatever torch's defaults are, and every launch is held against its memory."""

import ast
import os
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers

from geosparse.errors import GeosparseError
from geosparse.ops import triton
from geosparse.ops.triton import launch as launching
from geosparse.ops.triton.contracts import CONTRACTS, Launch

from ...tiny import tiny_model
from .entries import ENTRIES, SHARES, all_results, attended, forget
from .material import needs_kernels

pytestmark = needs_kernels
SOURCES = Path(triton.__file__).parent
SECONDS = float(os.environ.get("GEOSPARSE_LOADING_SECONDS", "2"))


@pytest.fixture(scope="module")
def expected():
    return all_results()


@pytest.fixture
def _defaults():
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels whose launches were checked, each time from the beginning."""
    seen = []
    check = launching.check_launch
    monkeypatch.setattr(launching, "check_launch", lambda name, *rest: seen.append(name) or check(name, *rest))
    launching._checked.clear()
    return seen


def differing(found, expected):
    """The entries whose tensors are others."""
    return [
        entry
        for entry, tensors in expected.items()
        if not all(
            ours.device == theirs.device and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
            for ours, theirs in zip(found[entry], tensors, strict=True)
        )
    ]


def kernels():
    """Functions of the package that Triton compiles and that some launch names; those only called by others do not."""
    names = set()
    for path in (SOURCES / "kernels").glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                names.add(node.name)
    return names


def launches():
    """(file, name of the kernel) of each call of `launch` in the sources."""
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "launch":
                kernel = node.args[0]
                yield path.name, kernel.attr if isinstance(kernel, ast.Attribute) else kernel.id


def test_no_launch_goes_past_the_checks():
    """`kernel[grid](...)` stands in launch.py alone, once; there and nowhere else a subscript is called."""
    called = [
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.parents[1].rglob("*.py")
        if "triton" in path.parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    # `run[stage](...)` in decode.py calls a function of Python.
    assert [name for name in called if name != "decode.py"] == ["launch.py"]
    source = (SOURCES / "decode.py").read_text("utf-8")
    assert all(
        isinstance(node.func.value, ast.Name) and node.func.value.id == "run"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    )


def test_every_kernel_has_a_contract_and_an_entry():
    named = {kernel for _, kernel in launches()}
    assert named <= kernels()
    assert named == set(CONTRACTS) == set().union(*(names for names, _ in ENTRIES.values()))


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_an_entry_launches_what_it_says(launched, entry):
    forget()
    names, call = ENTRIES[entry]
    call()
    assert set(launched) == names


def test_a_shape_is_checked_once_and_another_again(launched):
    attended(1, "topn", "centroid")
    first = len(launched)
    attended(1, "topn", "centroid")
    assert len(launched) == first > 0
    attended(1, "topn", "centroid", dtype=torch.bfloat16)
    # Those that read floating-point keys or values; the others get the fp32 scores again.
    assert launched[first:] == ["score_tokens", "attend_part", "combine_parts"]
    launching._checked.clear()
    launching._checked.update({(place,) for place in range(launching.MAX_CHECKED)})
    attended(1, "topn", "centroid")
    assert len(launching._checked) <= first


def spoilt(tensor):
    """What a kernel cannot follow where it is told of `tensor`: (in words, another tensor)."""
    yield "another dtype", tensor.to(torch.complex64)
    yield "a row less", tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] - 1))
    yield "a dimension more", tensor[None]
    yield "gaps", tensor.new_empty((*tensor.shape[:-1], 2 * tensor.shape[-1]))[..., ::2]
    yield "no memory", tensor.to("meta")
    yield "a subclass", torch.Tensor._make_subclass(type("Other", (torch.Tensor,), {}), tensor)
    if tensor.is_floating_point():
        yield "signs that are not in memory", torch._neg_view(tensor)


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_what_a_kernel_cannot_follow_is_refused(monkeypatch, entry):
    """Every tensor of every launch, one at a time: nothing runs."""
    launched, tried = [], 0
    true = launching.check_launch
    monkeypatch.setattr(launching, "check_launch", lambda *launch: launched.append(launch))
    launching._checked.clear()
    forget()
    ENTRIES[entry][1]()
    launching._checked.clear()  # of what was not checked
    for name, arguments, grid in launched:
        touched, axis, unit = CONTRACTS[name]
        launch = Launch(arguments, grid)
        launch.batch = grid[axis] // getattr(launch, unit)
        for pointer, *_ in touched(launch):
            for words, other in spoilt(arguments[pointer]):
                if pointer == "first" and words == "no memory":
                    continue  # `first` says on which device the others are
                with pytest.raises(GeosparseError):
                    true(name, arguments | {pointer: other}, grid)
                tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    ("kernel", "number", "other"),
    [
        ("score_tokens", "row", 16),
        ("score_tokens", "k_s", 33),
        ("score_tokens", "WIDTH", 16),
        ("list_tokens", "segments", 2),
        ("find_threshold", "budgets_b", 3),
        ("attend_part", "parts", 2),
        ("attend_part", "row", 16),
        ("spread_pages", "row", 16),
        ("spread_pages", "budgets_b", 3),
        ("spread_pages", "m_h", 17),
        ("combine_parts", "page_parts", 9),
    ],
)
def test_numbers_that_lead_out_of_memory_are_refused(monkeypatch, kernel, number, other):
    launched = {}
    true = launching.check_launch
    monkeypatch.setattr(launching, "check_launch", lambda name, *rest: launched.setdefault(name, rest))
    launching._checked.clear()
    selector = "lowbit" if number == "WIDTH" else "sink_recent" if kernel == "spread_pages" else "topn"
    attended(1, selector, SHARES)
    launching._checked.clear()
    arguments, grid = launched[kernel]
    true(kernel, arguments, grid)
    with pytest.raises(GeosparseError):
        true(kernel, arguments | {number: other}, grid)


def test_a_launch_that_lacks_a_number_is_refused():
    with pytest.raises(GeosparseError, match="lacks row"):
        _ = Launch({}, (1,)).row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.usefixtures("_defaults")
def test_another_default_dtype(expected, dtype):
    torch.set_default_dtype(dtype)
    assert differing(all_results(), expected) == []


@pytest.mark.usefixtures("_defaults")
def test_another_default_device(expected):
    torch.set_default_device("meta")
    assert differing(all_results(), expected) == []
    with torch.device("meta"):
        assert differing(all_results(), expected) == []


def test_inference_mode(expected):
    with torch.inference_mode():
        assert differing(all_results(), expected) == []


def test_uninitialised_memory_is_written(expected):
    """torch fills with NaN what it hands out, if asked to."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert differing(all_results(), expected) == []
    finally:
        torch.use_deterministic_algorithms(before)


def test_while_another_thread_loads_a_model(tmp_path, expected):
    """`from_pretrained` sets the default dtype of the whole process while it builds a model."""
    tiny_model("llama", num_hidden_layers=4).to(torch.bfloat16).save_pretrained(tmp_path)
    ended, loads = threading.Event(), []

    def load():
        while not ended.is_set():
            loads.append(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype)

    loader = threading.Thread(target=load)
    loader.start()
    wrong, rounds, end = [], 0, time.monotonic() + SECONDS
    try:
        while time.monotonic() < end or not loads or not rounds:
            wrong += differing(all_results(), expected)
            rounds += 1
            if not loader.is_alive():
                break
    finally:
        ended.set()
        loader.join()
    assert wrong == []
    assert loads
