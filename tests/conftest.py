"""No test has a deadline. Without a GPU, Triton runs in its interpreter, asked for before triton is imported.

The marker `slow` goes to every test of a real model and of Triton's interpreter by itself.
"""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Tests of kernels that the interpreter runs, by folder.
INTERPRETED = "triton"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    gpu = torch.cuda.is_available()
    for item in items:
        if not gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("real") or (not gpu and INTERPRETED in item.path.parts):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _process_state_is_as_before():
    """A test that leaves other threads or another dtype to the next one fails, and not the next one."""
    before = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()
    yield
    after = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()
    torch.set_num_threads(before[0])
    torch.set_default_dtype(before[1])
    os.chdir(before[2])
    assert after == before
