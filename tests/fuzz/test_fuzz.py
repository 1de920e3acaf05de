"""Files that are damaged, too large, not files, or made to harm: one sentence, little memory, no code run."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.artifacts.plan import MAX_FILE, Plan
from geosparse.artifacts.profile import MAX_HEADER, Profile
from geosparse.reports.terminal import describe_plan, describe_profile, is_profile

from .mutations import _places, json_bytes, pack, unpack
from .targets import sound_plans, sound_profile

ROOT = Path(__file__).parents[2]
GIBIBYTE = 1 << 30

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = [plan.to_json() for plan in sound_plans()]
MANY = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


def in_a_process(code: str) -> tuple[str, int]:
    """What Python code prints, and the most memory that it took, bytes."""
    code = f"{code}\nfrom tests.fuzz.memory import peak_bytes\nprint(peak_bytes())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


@pytest.mark.slow
def test_twenty_thousand_damaged_files() -> None:
    cases = os.environ.get("GEOSPARSE_FUZZ_CASES", "20000")
    command = [sys.executable, "-m", "tests.fuzz", "--cases", cases]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert sum(sum(counts.values()) for counts in result["counts"].values()) == int(cases)
    assert result["peak_bytes"] < GIBIBYTE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hypothesis")


@MANY
@given(st.data())
def test_plans_with_anything_anywhere(folder: Path, data: st.DataObject) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    parent, key = data.draw(st.sampled_from(list(_places(document))))
    parent[key] = data.draw(JSON)
    path = folder / "plan.json"
    path.write_bytes(json_bytes(document))
    try:
        plan = Plan.load(path)
    except gs.GeosparseError:
        return
    assert describe_plan(plan)
    assert plan.save(path).exists()
    assert Plan.load(path).to_json() == plan.to_json()


@MANY
@given(st.data())
def test_profiles_with_anything_in_their_header(folder: Path, data: st.DataObject) -> None:
    path = folder / "p.safetensors"
    if not path.exists():
        sound_profile().save(folder / "sound")
    header, body = unpack((folder / "sound").read_bytes())
    inner = json.loads(header["__metadata__"]["geosparse"])
    of_metadata = data.draw(st.booleans())
    parent, key = data.draw(st.sampled_from(list(_places(inner if of_metadata else header))))
    parent[key] = data.draw(JSON)
    if of_metadata:
        header["__metadata__"]["geosparse"] = json.dumps(inner)
    path.write_bytes(pack(header, body))
    try:
        profile = Profile.load(path)
    except gs.GeosparseError:
        return
    assert describe_profile(profile)


BOMBS = {
    "lists": lambda: b"[" + b"[]," * (MAX_FILE // 3 - 4) + b"[]]",
    "objects": lambda: b"[" + b"{}," * (MAX_FILE // 3 - 4) + b"{}]",
    "keys": lambda: b"{" + b",".join(b'"%d":[]' % i for i in range(600_000)) + b"}",
    "long numbers": lambda: b"[" + b",".join([b"9" * 4299] * 1900) + b"]",
    "deep": lambda: b"[" * MAX_FILE,
    "a text too large": lambda: b" " * (MAX_FILE + 1),
    "a header of 4 EB": lambda: struct.pack("<Q", 1 << 62) + b"{}",
    "a header of 100 MB": lambda: struct.pack("<Q", 100_000_000) + b"{" + b" " * 99_999_999,
    "a header of arrays": lambda: pack(
        {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}, b""
    ),
    "metadata of lists": lambda: pack({"__metadata__": {"geosparse": "[" + "[]," * 1_000_000 + "[]]"}}, b""),
}


@pytest.mark.slow
def test_files_that_would_fill_the_memory(tmp_path: Path) -> None:
    for number, make in enumerate(BOMBS.values()):
        (tmp_path / f"bomb{number}").write_bytes(make())
    said, peak = in_a_process(
        "import geosparse as gs, pathlib\n"
        f"for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):\n"
        "    for read in (gs.Plan.load, gs.Profile.load):\n"
        "        try: read(path)\n"
        "        except gs.GeosparseError as error: print(path.name, str(error)[-40:])\n"
    )
    assert len(said.splitlines()) == 2 * len(BOMBS)
    assert peak < GIBIBYTE


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": [2**31 - 1] * 3},
        {"model": {"layers": 2**31 - 1}},
        {"model": {"heads": 2**31 - 2}},
        {"limits": [2**31 - 1] * 2},
        {"budgets": list(range(1, 100_000))},
    ],
)
def test_sizes_that_a_file_only_claims(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "p.safetensors"
    header, body = unpack(sound_profile().save(path).read_bytes())
    inner = json.loads(header["__metadata__"]["geosparse"])
    inner |= {key: value for key, value in changes.items() if key != "model"}
    inner["model"] |= changes.get("model", {})
    header["__metadata__"]["geosparse"] = json.dumps(inner)
    path.write_bytes(pack(header, body))
    with pytest.raises(gs.GeosparseError, match="is not a profile, or it is damaged"):
        Profile.load(path)


def test_shapes_are_compared_before_an_array_is_read(tmp_path: Path) -> None:
    """Arrays of 64 GB in a file with a hole: refused by their shape, without touching one byte of them."""
    path = tmp_path / "p.safetensors"
    header, _ = unpack(sound_profile().save(path).read_bytes())
    at = 0
    for name in sorted(set(header) - {"__metadata__"}):
        size = 4 << 28
        header[name] |= {"shape": [1 << 28], "data_offsets": [at, at + size]}
        at += size
    text = json_bytes(header)
    assert len(text) < MAX_HEADER
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    code = f"import geosparse as gs\ntry: gs.Profile.load({str(path)!r})\nexcept gs.GeosparseError as e: print(e)"
    said, peak = in_a_process(code)
    assert "more than a profile can have" in said or "has the shape" in said
    assert peak < GIBIBYTE


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("device", ["a pipe", "/dev/zero", "/dev/random"])
def test_what_is_no_file_is_never_waited_for(tmp_path: Path, device: str) -> None:
    path = tmp_path / "pipe" if device == "a pipe" else Path(device)
    if device == "a pipe":
        os.mkfifo(path)
    elif not path.exists():
        pytest.skip(f"this system has no {device}")
    for read in (Plan.load, Profile.load, is_profile):
        with pytest.raises(gs.GeosparseError, match="not a plain file"):
            read(path)


NAMES = ["a\0b", "../outside.json", "/etc/passwd", "..", "", "x/y", "x\\y", "n" * 5000, 7, None]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_names_a_plan_inside_itself_only(tmp_path: Path, name: object) -> None:
    model = tmp_path / "model"
    model.mkdir()
    sound_plans()[0].save(tmp_path / "outside.json")
    (model / "config.json").write_text(json.dumps({"geosparse": {"plan": name}}))
    with pytest.raises(gs.GeosparseError):
        gs.find_plan(model)


class Payload:
    """What unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    import torch

    from ..tiny import save_tiny

    folder, ran = save_tiny(tmp_path / "model"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(gs.GeosparseError):
        gs.load_model(str(folder))
    for read in (Plan.load, Profile.load):
        with pytest.raises(gs.GeosparseError):
            read(folder / "pytorch_model.bin")
    assert not ran.exists()


def test_the_code_of_a_model_is_run_only_when_asked_for(tmp_path: Path) -> None:
    from ..tiny import save_tiny

    folder, ran = save_tiny(tmp_path / "model"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": classes, "model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(gs.GeosparseError, match="trust_remote_code=True"):
        gs.load_model(str(folder))
    assert not ran.exists()


def test_no_module_unpickles() -> None:
    unsafe = re.compile(r"\bpickle\.|import pickle|torch\.load|extractall|yaml\.load\(|(?<![.\w])(eval|exec)\(")
    for path in (*(ROOT / "geosparse").rglob("*.py"), *(ROOT / "eval").rglob("*.py")):
        assert not unsafe.search(path.read_text(encoding="utf-8")), path
