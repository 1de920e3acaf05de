"""Which keywords of an attention call are understood, which do not concern it, and that all others are refused.

What a model wants of its attention arrives as its mask or as a keyword. A keyword that were ignored could be anything:
selected indices, a bias, the bounds of packed sequences.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import GeosparseError

# Read from the call. The window of `sliding_window` is in the mask as well.
UNDERSTOOD = {"scaling", "softcap", "s_aux", "sliding_window", "is_causal", "dropout"}

# What a model hands down to all of its parts without any meaning for the attention of given queries, keys and values.
HARMLESS = {
    # In the queries and keys, or in the mask.
    "position_ids": "positions are rotated into queries and keys",
    "position_embeddings": "positions are rotated into queries and keys",
    "cache_position": "the mask says what is visible",
    "token_type_ids": "they are in the embedding or in the mask",
    "mm_token_type_ids": "they are in the embedding or in the mask",
    # Bookkeeping of the cache, which has been updated when attention is called.
    "use_cache": "the cache has been updated",
    "past_key_values": "the cache has been updated",
    "past_key_value": "the cache has been updated",
    "layer_idx": "the module knows its place",
    # About the output of the whole model.
    "num_items_in_batch": "it divides the loss",
    "labels": "they are for the loss",
    "logits_to_keep": "the hidden states are cut behind the last layer",
    "return_dict": "it names the outputs of the model",
    "output_hidden_states": "they are the layers' inputs",
    "output_router_logits": "they are the routers' outputs",
    # Which kernel is to compute the same.
    "deterministic": "the result is the same",
    "target_dtype": "the result has the dtype of the queries",
}

KNOWN = frozenset(UNDERSTOOD | set(HARMLESS))

MEANINGS = {
    "position_bias": "a learned position bias",
    "head_mask": "a head mask",
    "cache": "a paged cache",
    "indices": "the keys that an index of the model selected",
    "block_indices": "the blocks of keys that an index of the model selected",
    "cu_seq_lens_q": "the bounds of packed sequences",
    "cu_seq_lens_k": "the bounds of packed sequences",
    "max_length_q": "the bounds of packed sequences",
    "max_length_k": "the bounds of packed sequences",
    "seq_idx": "the bounds of packed sequences",
    "output_attentions": "a wish for the attention weights, which sparse attention does not have",
    "sinks": "learned sinks in a form of its own",
    "encoder_hidden_states": "attention to another sequence",
}


def check_keywords(module: torch.nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise GeosparseError where a call asks for what would have to be ignored.

    Args:
        module: The attention module.
        kwargs: The keywords of its call.
    """
    if kwargs.keys() <= KNOWN:
        return
    for name in kwargs.keys() - KNOWN:
        value = kwargs[name]
        # None, False and 0 say that a thing is not wanted.
        if value is None or (isinstance(value, (bool, int, float)) and not value):
            continue
        meaning = MEANINGS.get(name, "an argument that geosparse does not know")
        raise GeosparseError(
            f"{in_words(module)} is not supported: it is called with {name}, {meaning}; call the model without it, or "
            "use it dense."
        )


def in_words(module: torch.nn.Module) -> str:
    """An attention module by its class, and layer and model type where it knows them."""
    place, config = getattr(module, "layer_idx", None), getattr(module, "config", None)
    known = [f"layer {place}"] if place is not None else []
    kind = getattr(config, "model_type", "")
    known += [f"model type {kind}"] if kind else []
    return type(module).__name__ + (f" ({', '.join(known)})" if known else "")
