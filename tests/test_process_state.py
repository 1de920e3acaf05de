"""Nothing here sets what belongs to the whole process, or relies on it: torch's defaults, the working directory, ..."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from geosparse.ops import cpu
from geosparse.profile import checkpoints

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "geosparse").rglob("*.py"), *(ROOT / "eval").rglob("*.py")])
KERNELS = ROOT / "geosparse/ops/triton/kernels"

FACTORIES = {
    *("empty", "zeros", "ones", "full", "arange", "range", "tensor", "as_tensor", "asarray", "scalar_tensor", "eye"),
    *("rand", "randn", "randint", "randperm", "normal", "linspace", "logspace", "empty_strided", "tril_indices"),
    *("triu_indices", "hann_window", "complex", "sparse_coo_tensor"),
}
# What changes the process, by the end of its name.
STATE = re.compile(
    r"(os\.(chdir|fchdir|umask|putenv|unsetenv|nice)|os\.environ\.(setdefault|update|pop|clear|popitem)"
    r"|torch\.(set_\w+|manual_seed|seed|use_deterministic_algorithms)|torch\.(cuda|random)\.(manual_seed\w*|seed\w*)"
    r"|random\.(seed|setstate|set_state|set_rng_state)|locale\.setlocale|signal\.(signal|alarm|setitimer|pthread_sigmask)"
    r"|warnings\.(simplefilter|filterwarnings)|sys\.(setrecursionlimit|setswitchinterval)|resource\.setrlimit)$"
)
# Where a process is its own: commands, studies' programs, children; or where it is put back. Each says which.
ALLOWED = {
    "geosparse/cli/main.py": {"os.environ.setdefault", "signal.signal"},  # the command's; handlers are put back
    "geosparse/cli/commands/lm_eval.py": {"os.environ.setdefault"},  # the command's
    "geosparse/integrations/lm_eval/harness.py": {  # random states go back to what loading a task left behind
        *("random.setstate", "numpy.random.set_state", "torch.random.set_rng_state"),
    },
    "geosparse/utils/parallel.py": {"torch.set_num_threads"},  # of threads of its own; new ones' put back
    "eval/benchmarks/profile_cost.py": {"torch.set_num_threads"},  # the program's
    "eval/run.py": {"os.environ.setdefault"},  # the program's
    "eval/tasks/lm_eval.py": {"random.seed", "numpy.random.seed"},  # lm-eval's tasks draw from these
    "eval/trust/commands.py": {"signal.signal"},  # a child's, before it becomes another program
    "eval/trust/architecture_checks.py": {"torch.manual_seed"},  # a child's
    "eval/trust/architectures.py": {
        "resource.setrlimit",
        "torch.set_num_threads",
        "warnings.filterwarnings",
    },  # a child's
    "eval/trust/crashes.py": {"torch.manual_seed"},  # the program's
    "eval/harness/threads.py": {"torch.set_num_threads"},  # put back
    "eval/trust/gradients.py": {"torch.manual_seed"},  # the program's
    "eval/trust/mutation.py": {"os.chdir", "signal.alarm"},  # forked children's; the program's
}


def name_of(node):
    """`a.b.c` of an expression of names; empty for others."""
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def changes(tree):
    """What a module does to its process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and STATE.search(name_of(node.func)):
            yield name_of(node.func)
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        for target in targets:
            if isinstance(target, ast.Subscript) and name_of(target.value) == "os.environ":
                yield "os.environ[]"
            if name_of(target).startswith("torch.backends."):
                yield "torch.backends"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_process_is_left_alone(path):
    found = set(changes(ast.parse(path.read_text(encoding="utf-8"))))
    assert found <= ALLOWED.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tensors_name_their_dtype_and_device(path):
    """torch's defaults are another's: `from_pretrained` sets the whole process's dtype while it builds a model."""
    if path.is_relative_to(KERNELS):
        return
    bare = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not name_of(node.func).startswith("torch."):
            continue
        name = name_of(node.func).removeprefix("torch.")
        words = {word.arg for word in node.keywords}
        if name in FACTORIES and not {"dtype", "device"} <= words:
            bare.append(f"{node.lineno}: {ast.unparse(node)}")
        assert name not in {"get_default_dtype", "get_default_device", "Tensor", "FloatTensor"}, node.lineno
    assert bare == []


def test_the_scans_see_what_they_look_for():
    code = "os.chdir(a)\nos.environ['A'] = 'b'\ntorch.set_default_dtype(x)\ntorch.backends.mkldnn.enabled = False"
    assert sorted(changes(ast.parse(code))) == ["os.chdir", "os.environ[]", "torch.backends", "torch.set_default_dtype"]
    assert set(ALLOWED) <= {str(path.relative_to(ROOT)) for path in SOURCES}


def test_every_source_of_the_kernels_is_built_from():
    """A source that is not listed leaves an old kernel where it has changed."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        modules = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    listed = {Path(name).name for module in modules for name in (*module["sources"], *module["depends"])}
    sources = Path(cpu.__file__).parent / "csrc"
    assert listed == {path.name for path in sources.iterdir()}
    for module in modules:
        included, pending = set(), [Path(name).name for name in module["sources"]]
        while pending:
            name = pending.pop()
            text = (sources / name).read_text(encoding="utf-8")
            more = set(re.findall(r'"(\w+\.(?:inc|h))"', text)) - included
            included |= more
            pending += more
        assert included == {Path(name).name for name in module["depends"]}, module["name"]


GROUPS = """
import sys, torch
from torch import distributed
from geosparse.profile.checkpoints import process_group, wait_for_all
for _ in range(3):
    wait_for_all()
    assert not distributed.is_initialized()
    try:
        with process_group():
            wait_for_all()
            assert distributed.is_initialized()
            raise KeyError
    except KeyError:
        assert not distributed.is_initialized()
distributed.init_process_group("gloo")
wait_for_all()
with process_group():
    pass
assert distributed.is_initialized()
assert len(distributed.distributed_c10d._world.pg_map) == 1
distributed.destroy_process_group()
"""


def test_process_groups_are_destroyed_by_whoever_made_them():
    import socket

    with socket.socket() as room:
        room.bind(("127.0.0.1", 0))
        port = str(room.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    where["PYTHONPATH"] = os.pathsep.join(sys.path)
    running = [
        subprocess.Popen([sys.executable, "-c", GROUPS], env=os.environ | where | {"RANK": rank}) for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert checkpoints.process_rank() == (0, 1)
    assert not torch.distributed.is_initialized()
