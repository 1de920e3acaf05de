"""Loading models: folders, GGUF files, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
)

from geosparse.errors import GeosparseError
from geosparse.hf.loading import load_model, resolve

from ..tiny import VOCABULARY, save_tiny, tiny_tokenizer

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
    writer.add_token_merges(["a b", "a b"])  # transformers 4 cannot read a list of one
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


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5, reason="transformers 5 reads what transformers 5 and 4 saved"
)
def test_a_model_that_transformers_5_saved_is_refused_by_transformers_4(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    load_model(str(folder))
    config = json.loads((folder / "config.json").read_text())
    positions = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    newer = config | {"rope_parameters": positions, "transformers_version": "5.23.0"}
    (folder / "config.json").write_text(json.dumps(newer))
    assert "saved by transformers 5.23.0" in fails(str(folder))
