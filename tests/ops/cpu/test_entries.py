"""Kernels give the same numbers whatever torch's defaults are: another dtype or device, another thread's doing."""

import ast
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers

from geosparse.ops import cpu
from geosparse.ops.cpu.fast_call import direct
from geosparse.ops.cpu.library import KERNELS, library

from ...tiny import tiny_model
from .entries import ENTRIES, IN_C, all_results

pytestmark = pytest.mark.skipif(library() is None, reason=f"CPU kernels: {cpu.load_error()}")
SOURCES = Path(cpu.__file__).parent / "csrc"
# Seconds that kernels run while another thread loads models; .ci/sanitize and patient people ask for more.
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


def test_no_kernel_is_left_out():
    source = (SOURCES / "kernels.cpp").read_text(encoding="utf-8")
    exported = set(re.findall(r"^int64_t (gs_\w+)\(const", source, flags=re.MULTILINE))
    methods = set(
        re.findall(r'^    \{"(\w+)", ', (SOURCES / "fast_call.c").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert exported == set(KERNELS)
    # Norms are only served through fast_call.c.
    assert {kernel for kernel, _ in ENTRIES if kernel in KERNELS} == exported - {"gs_norm"}
    assert methods - {"bind"} == {name for name, _ in IN_C}


def test_no_kernel_is_called_past_the_checks():
    """Only `run` and `direct` reach into the library."""
    for path in SOURCES.glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        reached = {name for name in names if name.startswith("gs_")}
        allowed = {
            "library.py": {"gs_abi", "gs_isa", "gs_set_isa"},
            "direct.py": {"gs_decode", "gs_product", "gs_norm"},
        }
        assert reached <= allowed.get(path.name, set()), path.name


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
    print(f"{rounds} rounds of {len(ENTRIES)} entries while {len(loads)} models were loaded: {len(wrong)} wrong")
    assert wrong == []
    assert loads


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_process_that_starts_with_another_default_dtype(dtype):
    """What is made at import or remembered from the first call is right, too."""
    code = (
        f"import torch; torch.set_default_dtype(torch.{dtype})\n"
        "from tests.ops.cpu.entries import all_results\n"
        "found = all_results(); torch.set_default_dtype(torch.float32)\n"
        "same = all_results()\n"
        "assert all(torch.equal(a, b) for entry in same for a, b in zip(same[entry], found[entry], strict=True))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[3])


def test_calls_in_c_are_served_in_c():
    if direct() is None:
        pytest.skip("fast_call.c was not built, or torch is older than 2.10")
    for (name, _), call in IN_C.items():
        assert all(isinstance(part, torch.Tensor) for part in call()), name
