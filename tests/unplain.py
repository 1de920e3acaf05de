"""Tiny models whose weights are not plain tensors: quantized by each library, adapted or parametrized."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.prune

from .tiny import VOCABULARY, tiny_model, tokens

SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ADAPTED = ["q_proj", "v_proj", "o_proj"]


def plain(seed: int = 0, kind: str = "llama") -> Any:
    """The model that all of them start from."""
    return tiny_model(kind, seed, **SHAPE)


def library(name: str) -> Any:
    """An optional package of the `dev` extra."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


class Packed(torch.nn.Module):
    """A module as those of GPTQ and AWQ: integer buffers and scales, no parameter, no floating weight."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scales = linear.weight.abs().amax(1, keepdim=True) / 7
        codes = (linear.weight / scales).round().int() + 8
        words = codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4, dtype=torch.int32)
        self.register_buffer("qweight", words.sum(-1, dtype=torch.int32))
        self.register_buffer("scales", scales.half())

    def dequantize(self) -> torch.Tensor:
        codes = (self.qweight[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
        return (codes.flatten(1) - 8).float() * self.scales.float()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # its kernel has no backward pass
            return rows @ self.dequantize().to(rows.dtype).T


class Sized(Packed):
    """The same, with the sizes that most such modules name."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features


class Float8(torch.nn.Linear):
    """A linear module with a float8 weight and one scale, as those of models published in float8."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.abs().max() / 448
        self.weight = torch.nn.Parameter((linear.weight / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale = torch.nn.Parameter(scale, requires_grad=False)

    def dequantize(self) -> torch.Tensor:
        return self.weight.float() * self.weight_scale

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.dequantize().to(rows.dtype).T


def replaced(seed: int, kind: type, names: tuple[str, ...] = ("_proj",)) -> Any:
    """The model with its projections in the class `kind`."""
    model = plain(seed)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and path.endswith(names):
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, kind(module))
    return model.eval()


def torchao(seed: int, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Quantized in place: the weights become tensors of a subclass."""
    quantization = library("torchao.quantization")
    model = plain(seed).to(dtype)
    if "group" in options:
        options = {"weight_dtype": torch.int4, "granularity": quantization.PerGroup(options["group"])}
    quantization.quantize_(model, getattr(quantization, name)(**options))
    return model


def quanto(seed: int, weights: str, freeze: bool = True, activations: str | None = None) -> Any:
    """Linear modules of quanto; quantized once where frozen, else at each call."""
    module = library("optimum.quanto")
    model = plain(seed)
    module.quantize(model, weights=weights, activations=activations)
    if activations:
        with module.Calibration(), torch.no_grad():
            model(tokens(2, 64))
    if freeze:
        module.freeze(model)
    return model.eval()


def bitsandbytes(seed: int, folder: Any, **options: Any) -> Any:
    """Loaded by transformers from a saved plain model, quantized on the way."""
    library("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    path = folder / f"plain{seed}"
    if not path.exists():
        plain(seed).save_pretrained(path)
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, device_map="cpu").eval()


def dynamic(seed: int) -> Any:
    """torch's own dynamic quantization: weights in packed objects, `weight` is a method."""
    torch.backends.quantized.engine = "fbgemm"
    return torch.ao.quantization.quantize_dynamic(plain(seed), {torch.nn.Linear}, dtype=torch.qint8)


def parametrized(seed: int) -> Any:
    """Weights that are computed from others at each use."""
    model = plain(seed)
    for layer in model.model.layers:
        torch.nn.utils.parametrizations.weight_norm(layer.self_attn.o_proj)
    return model


def pruned(seed: int) -> Any:
    """Weights with a mask."""
    model = plain(seed)
    torch.manual_seed(seed)
    torch.nn.utils.prune.random_unstructured(model.model.layers[0].self_attn.o_proj, "weight", 0.3)
    return model


def adapted(base: Any, seed: int = 0, merge: bool = False, method: str = "LoraConfig", **options: Any) -> Any:
    """A PeftModel with one adapter that is not zero, its dropout active until `eval` is called."""
    peft = library("peft")
    options = {"target_modules": ADAPTED, **options}
    if method == "LoraConfig":
        options = {"r": 4, "lora_dropout": 0.5, **options}
    model = peft.get_peft_model(base, getattr(peft, method)(**options))
    fill(model, "default", seed)
    if merge:
        model.merge_adapter()
    return model


def fill(model: Any, adapter: str, seed: int) -> None:
    """Random weights of an adapter, which starts as one that does nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}" in name and parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(1 + noise / 4 if "ia3" in name or "magnitude" in name else noise / 4)


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# By name: what makes it from a seed and a folder for files.
KINDS: dict[str, Any] = {
    "torchao-int8": lambda seed, folder: torchao(seed, "Int8WeightOnlyConfig"),
    "torchao-int8-bf16": lambda seed, folder: torchao(seed, "Int8WeightOnlyConfig", torch.bfloat16),
    "torchao-int4": lambda seed, folder: torchao(seed, "IntxWeightOnlyConfig", group=32),
    "torchao-float8": lambda seed, folder: torchao(seed, "Float8WeightOnlyConfig"),
    "torchao-int8-dynamic": lambda seed, folder: torchao(seed, "Int8DynamicActivationInt8WeightConfig"),
    "torchao-int8-dynamic-intx": lambda seed, folder: torchao(seed, "Int8DynamicActivationIntxWeightConfig"),
    "quanto-int8": lambda seed, folder: quanto(seed, "qint8"),
    "quanto-int8-unfrozen": lambda seed, folder: quanto(seed, "qint8", freeze=False),
    "quanto-int4": lambda seed, folder: quanto(seed, "qint4"),
    "quanto-int4-unfrozen": lambda seed, folder: quanto(seed, "qint4", freeze=False),
    "quanto-float8": lambda seed, folder: quanto(seed, "qfloat8"),
    "quanto-int8-static": lambda seed, folder: quanto(seed, "qint8", activations="qint8"),
    "bitsandbytes-int8": lambda seed, folder: bitsandbytes(seed, folder, load_in_8bit=True),
    "bitsandbytes-nf4": lambda seed, folder: bitsandbytes(seed, folder, **NF4),
    "bitsandbytes-nf4-nested": lambda seed, folder: bitsandbytes(seed, folder, **NF4, bnb_4bit_use_double_quant=True),
    "bitsandbytes-fp4": lambda seed, folder: bitsandbytes(seed, folder, load_in_4bit=True),
    "torch-dynamic": lambda seed, folder: dynamic(seed),
    "packed": lambda seed, folder: replaced(seed, Sized),
    "packed-output": lambda seed, folder: replaced(seed, Sized, ("o_proj",)),
    "float8": lambda seed, folder: replaced(seed, Float8),
    "parametrized": lambda seed, folder: parametrized(seed),
    "pruned": lambda seed, folder: pruned(seed),
    "lora": lambda seed, folder: adapted(plain(seed)),
    "lora-merged": lambda seed, folder: adapted(plain(seed), merge=True),
    "dora": lambda seed, folder: adapted(plain(seed), use_dora=True),
    "ia3": lambda seed, folder: adapted(plain(seed), method="IA3Config", feedforward_modules=["o_proj"]),
    "lora-saved-modules": lambda seed, folder: adapted(
        plain(seed), target_modules=["q_proj"], modules_to_save=["o_proj", "lm_head"]
    ),
    "lora-embeddings": lambda seed, folder: adapted(plain(seed), target_modules=["embed_tokens", "o_proj", "lm_head"]),
    "lora-torchao-int8": lambda seed, folder: adapted(torchao(seed, "Int8WeightOnlyConfig")),
    "lora-bitsandbytes-int8": lambda seed, folder: adapted(bitsandbytes(seed, folder, load_in_8bit=True)),
    "lora-bitsandbytes-nf4": lambda seed, folder: adapted(bitsandbytes(seed, folder, **NF4)),
}
# Those that round what their modules take to 8 bits, by a scale of the input or a fixed one: a difference in the last
# place of an attention's output may become a step of 1/127 of its largest value. nf4 multiplies in bf16 on some CPUs.
ROUNDING = {
    "torchao-int8-bf16",
    "torchao-int8-dynamic",
    "torchao-int8-dynamic-intx",
    "quanto-int8-static",
    "bitsandbytes-int8",
    "bitsandbytes-nf4",
    "bitsandbytes-nf4-nested",
    "bitsandbytes-fp4",
    "torch-dynamic",
    "lora-bitsandbytes-int8",
    "lora-bitsandbytes-nf4",
}
