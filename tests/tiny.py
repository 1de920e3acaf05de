"""Two-layer models of each architecture, built from configs: what the unit tests run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from geosparse.hf.layers import drops_soft_cap

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 16
VOCABULARY = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]

EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {},
}

# Further architectures, run by the slower tests only.
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gemma": {},
    "qwen2": {},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "smollm3": {},
    "gpt_neox": {"num_key_value_heads": 6},
}


def tiny_model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random causal language model in fp32; weights are scaled up so that attention is not uniform."""
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | EXTRA.get(kind, MORE.get(kind, {})) | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention_of(config))
    model = model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")) and parameter.dim() == 2:
            parameter.mul_(8.0)
    return model


def attention_of(config: Any) -> dict[str, str]:
    """Eager where SDPA is not what the model means."""
    return {"attn_implementation": "eager"} if drops_soft_cap(config) else {}


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids `[batch, length]` without special ones."""
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> Any:
    """One token per byte (and one for "ab"); no BOS is added."""
    bpe = Tokenizer(tokenizer_models.BPE(vocab={t: i for i, t in enumerate(VOCABULARY)}, merges=[("a", "b")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # transformers 4 gives token types unless told what models take.
    names = ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", model_input_names=names
    )


def save_tiny(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A tiny model and its tokenizer in `folder`, as `load_model` takes them."""
    tiny_model(kind, seed, vocab_size=len(VOCABULARY), **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
