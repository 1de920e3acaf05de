"""A tiny configuration of any causal model type: windows, blocks and indices are shorter than the texts that run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = 44
"""Tokens of the texts that run: longer than every window, block and index below."""

WINDOW = 12

# Sizes by the names that configurations give them.
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "decoder_vocab_size": 256,
    "audio_vocab_size": 256,
    "encoder_hash_byte_group_vocab": 64,
    "unpadded_vocab_size": 256,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "embedding_dim": 64,
    "emb_dim": 64,
    "embedding_size": 64,
    "embed_dim": 64,
    "word_embed_proj_dim": 64,
    "hidden_size_per_layer_input": 16,
    "hidden_size_global": 64,
    "ple_embed_dim": 64,
    "input_embedding_size": 64,
    "output_embedding_size": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 96,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 96,
    "ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "dim_ff": 96,
    "dff": 96,
    "d_ff": 96,
    "d_inner": 96,
    "n_inner": 96,
    "feed_forward_size": 96,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_blocks": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "swa_num_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "num_kv_heads": 2,
    "kv_n_heads": 2,
    "num_query_groups": 2,
    "head_dim": 16,
    "swa_head_dim": 16,
    "global_head_dim": 16,
    "attention_head_dim": 16,
    "attention_head_size": 16,
    "dim_head": 16,
    "d_head": 16,
    "kv_channels": 16,
    "d_kv": 16,
    "rotary_dim": 8,
    "query_pre_attn_scalar": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "topk_group": 1,
    "n_group": 1,
    "num_expert_group": 1,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "context_length": 512,
    "max_target_positions": 512,
    "original_max_position_embeddings": 512,
    # Shorter than the texts.
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "window_size": WINDOW,
    "local_attention": WINDOW,
    "local_attention_window_len": WINDOW,
    "attention_window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "keep_window_size": WINDOW,
    "rel_extent": WINDOW,
    "floor_scale": WINDOW,
    "local_attn_chunk_length": 16,
    "lsh_attn_chunk_length": 16,
    "block_size": 4,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "index_topk": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "log_scaling_n_floor": WINDOW,
    # Recurrent parts.
    "state_size": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "n_mamba_heads": 2,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_headdim": 16,
    "mamba_d_ssm": 128,
    "mamba_dt_rank": 8,
    "time_step_rank": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "lru_width": 64,
    "attention_hidden_size": 64,
    "block_multiple_of": 8,
    # Adapters and towers.
    "hc_lowrank": 8,
    "laurel_rank": 8,
    "adapter_rank": 8,
    "gated_norm_rank": 8,
    "router_hidden_size": 16,
    "out_hidden_size": 64,
    "adapter_in_dim": 64,
    "adapter_out_dim": 64,
    "depth": 2,
    "mlp_dim": 96,
    "position_bias_num_buckets": 32,
    "position_bias_max_distance": 64,
    "prompt_mid_dim": 32,
    "pronunciation_embed_dim": 16,
    "shape_embed_dim": 16,
    "pronunciation_vocab_size": 256,
    "shape_vocab_size": 256,
    "backbone_hidden_size": 64,
    "num_centroids": 16,
    "centroid_intermediate_top_k": 4,
}

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What the rules below cannot know of a type.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "gemma4_assistant": {
        "default": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 32},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse"] * 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": {}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 64]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid"],
        "hybrid_layer_ids": [1],
        "n_mamba_heads": 8,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
OVERRIDES["dots3_note_text"] = {"head_dim": 24, "per_layer_config": {"02": HEADS}}
OVERRIDES["dots3_note"] = {"text_config": OVERRIDES["dots3_note_text"]}
QSA = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
OVERRIDES["qwen4_exp_text"] = QSA | {"indexer_compress_ratio": 4}
OVERRIDES["qwen4_exp"] = {"text_config": OVERRIDES["qwen4_exp_text"]}
# Types whose causal model takes a part of their configuration.
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}

# Lists with an entry per layer, of which one of each kind is kept.
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attention_layers", "indexer_types")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")


def tiny_config(kind: str) -> Any:
    """A configuration of the model type `kind` with tens of thousands of parameters."""
    from transformers import CONFIG_MAPPING

    maker = CONFIG_MAPPING[kind]
    overrides = OVERRIDES.get(kind, {})
    default = maker(**overrides.get("default", {}))
    changes = _joined(_shrunk(default), {name: value for name, value in overrides.items() if name != "default"})
    return maker(**changes)


def _joined(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the entries of `other`; those of a dict that both have are joined likewise."""
    both = {name: value for name, value in other.items() if isinstance(value, dict) and isinstance(one.get(name), dict)}
    return one | dict(other) | {name: _joined(one[name], value) for name, value in both.items()}


def _shrunk(config: Any) -> dict[str, Any]:
    """The arguments of the tiny twin of `config`."""
    fields = config.to_dict()
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if name in (config.sub_configs or {}) and getattr(config, name) is not None:
            changes[name] = _shrunk(getattr(config, name))
        elif name in SIZES and _is_size(value):
            changes[name] = SIZES[name]
    changes |= {name: value for name, value in SPECIAL.items() if name in fields}
    if "is_decoder" in fields:
        changes["is_decoder"] = True
    if "kv_lora_rank" in changes:  # keys and values of each query head come from one latent
        changes["num_key_value_heads"] = changes["num_attention_heads"]
        if fields.get("head_dim") == fields.get("qk_rope_head_dim"):
            changes["head_dim"] = changes["qk_rope_head_dim"]
    return changes | _fewer_layers(fields)


def _is_size(value: Any) -> bool:
    """Whether a value is a number above 0, or one for each layer."""
    numbers = value if isinstance(value, list) else [value]
    return bool(numbers) and all(type(each) is int and each > 0 for each in numbers)


def _fewer_layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of one entry per layer, cut to one layer of each kind (two where there is one kind)."""
    count = next((fields[name] for name in LAYERS if isinstance(fields.get(name), int)), 0)
    lists = {
        name: value for name, value in fields.items() if isinstance(value, list) and len(value) == count and count > 0
    }
    if not any(name in lists for name in KINDS):
        return {}
    marks = list(zip(*(lists[name] for name in KINDS if name in lists), strict=True))
    layers = sorted({mark: layer for layer, mark in reversed(list(enumerate(marks)))}.values())
    if len(layers) == 1:
        layers = [0, 1]
    shared = fields.get("num_kv_shared_layers") or 0
    changes: dict[str, Any] = {"num_kv_shared_layers": len(layers)} if shared else {}
    layers = layers * 2 if shared else layers
    changes |= {name: [value[layer] for layer in layers] for name, value in lists.items()}
    return changes | {name: len(layers) for name in LAYERS if name in fields}
