"""Every kernel compiles for a GPU: the interpreter accepts what the compiler refuses."""

import os
import subprocess
import sys

import pytest

from geosparse.ops.triton.library import installed

KERNELS = {
    "score_bounds",
    "score_tokens",
    "find_threshold",
    "list_pages",
    "list_tokens",
    "attend_part",
    "combine_parts",
}
KERNELS |= {
    "spread_pages",
    "average_pages",
    "append_token",
    "encode_pages",
    "score_blocks",
    "attend_blocks",
    "attend_exactly",
}


@pytest.mark.skipif(not installed(), reason="triton is not installed")
def test_every_kernel_compiles_to_machine_code():
    quiet = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.triton.ahead_of_time"]
    result = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert {line.split()[0] for line in result.stdout.splitlines()} == KERNELS
