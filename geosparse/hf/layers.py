"""What a model is made of, found by running it once on a few tokens rather than by knowing its class.

One tiny forward pass records every call that arrives at the attention interface, and which linear module takes the
result: that is each layer's output projection. A model that never calls is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import GeosparseError
from ..ops import AttentionCall
from .action import Taken, action_of, device_of_module, dtype_of, nonlinearity, takes_rows
from .adapters import inner_model
from .dense import attend_dense
from .interface import Handler, intercepted
from .keywords import in_words
from .logits import body_of
from .materialised import check_materialised
from .modes import evaluating
from .signature import Remembered

# Tokens of a probe, beyond what the configuration names, and the longest reach that one goes beyond.
PROBE_TOKENS = 8
LONGEST_REACH = 256
# Words in the names of what a configuration says of how far attention reaches.
REACHES = ("window", "chunk", "block", "topk", "top_k", "local", "extent", "stride", "compress", "budget", "pattern")


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer of a model."""

    name: str
    module: torch.nn.Module
    projection: torch.nn.Module
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    taken: Taken

    @property
    def dtype(self) -> torch.dtype:
        """Of what the output projection takes."""
        return dtype_of(self.projection, self.taken)

    def output_matrix(self) -> torch.Tensor:
        """The output projection `[hidden, Hq * Dv]` in fp32, whatever class it is: its action on the unit vectors."""
        return action_of(self.projection, self.heads * self.value_dim, self.taken)

    def rounding(self) -> float:
        """How far the output projection is from linear, over its largest output: what quantized activations cost."""
        return nonlinearity(self.projection, self.heads * self.value_dim, self.taken)


def input_device(model: Any) -> torch.device:
    """Where the token ids of `model` go."""
    return device_of_module(model.get_input_embeddings(), torch.device("cpu"))


def vocabulary_of(model: Any) -> int:
    """How many tokens `model` has embeddings for, whatever holds them."""
    embedding = model.get_input_embeddings()
    count = getattr(embedding, "num_embeddings", None)
    return int(model.config.get_text_config().vocab_size if count is None else count)


def reaches(config: Any) -> list[int]:
    """How far the attention of a model may reach, tokens, by what its configuration says: windows, chunks, blocks and
    numbers of selected tokens or blocks, and the products of the latter."""
    found = {
        name: value
        for name, value in config.get_text_config().to_dict().items()
        if isinstance(value, int) and value > 1 and any(word in name for word in REACHES)
    }
    sizes = [value for name, value in found.items() if "block" in name]
    counts = [value for name, value in found.items() if "topk" in name or "top_k" in name]
    return sorted({*found.values(), *(size * count for size in sizes for count in counts)})


def probe_of(model: Any) -> torch.Tensor:
    """Token ids `[T]` that a model is tried on, longer than what its attention reaches.

    A reach of more than `LONGEST_REACH` tokens would make the probe of a large model slow. What acts only there has no
    other way into our attention than the mask, which is obeyed as it is, or a keyword, which is understood or refused
    by name at any length.
    """
    tokens = max((reach for reach in reaches(model.config) if reach <= LONGEST_REACH), default=0) + PROBE_TOKENS
    tokens = min(tokens, context_limit(model) or tokens)
    return torch.arange(tokens, dtype=torch.int64, device=input_device(model)) % vocabulary_of(model)


class _Probe:
    """Records each attention call, then the first module that consumes a tensor of the output's width."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.calls: list[dict[str, Any]] = []
        self.waiting: dict[str, Any] | None = None

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """Dense attention, recorded."""
        query, key, value = call.query, call.key, call.value
        if query.shape[2] != self.tokens or key.shape[2] != self.tokens:
            raise GeosparseError(f"{in_words(module)} is not supported: it is not plain self-attention.")
        if call.given is not None and _looks_ahead(call.given):
            raise GeosparseError(f"{in_words(module)} is not supported: its attention is not causal.")
        self.waiting = {
            "module": module,
            "heads": query.shape[1],
            "kv_heads": key.shape[1],
            "key_dim": query.shape[-1],
            "value_dim": value.shape[-1],
            "window": call.window,
        }
        self.calls.append(self.waiting)
        return attend_dense(call)

    def before_module(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.waiting is None or not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        rows = inputs[0]
        if rows.shape[-1] == self.waiting["heads"] * self.waiting["value_dim"] and takes_rows(module):
            self.waiting["projection"] = module
            self.waiting["taken"] = Taken(
                rows.dtype, rows.device, math.inf if rows.is_meta else float(rows.abs().max())
            )
            self.waiting = None


def _looks_ahead(mask: torch.Tensor) -> bool:
    """Whether a mask `[..., T, S]` of the probe's T tokens, bool or additive, shows a query what comes after it."""
    seen = mask[..., : mask.shape[-2]]
    seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    return bool(seen.triu(1).any())


def drops_soft_cap(config: Any) -> bool:
    """Whether SDPA is not what a model of this config means: in transformers 4 it leaves out the soft cap of logits."""
    from transformers import __version__

    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return capped and int(__version__.split(".")[0]) < 5


def attention_layers(model: Any) -> tuple[AttentionLayer, ...]:
    """The attention layers of a causal language model in the order in which they run; remembered for as long as its
    modules, weights and configuration are the same.

    Raises:
        GeosparseError: The model is an encoder-decoder, bypasses the attention interface, has heads that differ from
            layer to layer, or has no weights.
    """
    return _discovered(inner_model(model))


def _discover(model: Any) -> tuple[AttentionLayer, ...]:
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise GeosparseError(f"Expected a transformers causal language model, found {kind}.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise GeosparseError(f"{kind} is an encoder-decoder; geosparse supports decoder-only causal language models.")
    if model.get_output_embeddings() is None:
        raise GeosparseError(f"{kind} has no language-model head; load it with AutoModelForCausalLM.")
    if model.config.get_text_config()._attn_implementation == "sdpa" and drops_soft_cap(model.config):
        raise GeosparseError(
            f"This {kind} does not compute what its configuration says: with sdpa attention this release of "
            'transformers leaves out the soft cap of its logits; load it with attn_implementation="eager", or use '
            "transformers 5."
        )
    check_materialised(model)
    tokens = probe_of(model)
    probe = _Probe(len(tokens))
    modules = dict.fromkeys(model.modules())
    handlers: dict[torch.nn.Module, Handler] = dict.fromkeys(modules, probe)
    hooks = [module.register_forward_pre_hook(probe.before_module) for module in modules]
    try:
        with intercepted(model, handlers), torch.no_grad(), evaluating(model):
            model(tokens[None], use_cache=False)
    except GeosparseError:
        raise
    except Exception as error:  # whatever its code trips over, such a model is not supported
        raise unsupported(model, tokens, error) from error
    finally:
        for hook in hooks:
            hook.remove()
    layers = _checked(model, probe.calls)
    body_of(model)
    return layers


def unsupported(model: Any, tokens: torch.Tensor, error: Exception) -> GeosparseError:
    """What to raise where a model ends in `error` as it is run on the `tokens` of the probe."""
    said = str(error).strip().splitlines()
    return GeosparseError(
        f"{type(model).__name__} is not supported: on {len(tokens)} tokens, with its attention routed through "
        f"transformers' AttentionInterface, it ends in {type(error).__name__} ({said[0] if said else 'no message'})."
    )


_discovered = Remembered(_discover)


def _checked(model: Any, calls: list[dict[str, Any]]) -> tuple[AttentionLayer, ...]:
    kind = type(model).__name__
    expected = getattr(model.config.get_text_config(), "num_hidden_layers", len(calls))
    if not calls:
        raise GeosparseError(
            f"{kind} is not supported: its attention bypasses transformers' AttentionInterface, "
            "so nothing can be made sparse."
        )
    names = {module: name for name, module in model.named_modules()}
    if len({call["module"] for call in calls}) != len(calls) or len(calls) > expected:
        raise GeosparseError(f"{kind} is not supported: one layer attends more than once.")
    for call in calls:
        if "projection" not in call:
            raise GeosparseError(f"{kind} is not supported: no output projection follows {names[call['module']]}.")
    for what in ("heads", "kv_heads"):
        if len({call[what] for call in calls}) > 1:
            raise GeosparseError(f"{kind} is not supported: the number of {what} differs from layer to layer.")
    return tuple(AttentionLayer(name=names[call["module"]], **call) for call in calls)


def context_limit(model: Any) -> int | None:
    """Most tokens of context that the configuration of `model` allows; None where it does not say."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    # A factor put into a configuration by hand stretches the context without a change to max_position_embeddings.
    stretched = [
        int(part["factor"] * part["original_max_position_embeddings"])
        for part in (rope, *rope.values())
        if isinstance(part, dict) and part.get("factor") and part.get("original_max_position_embeddings")
    ]
    return max([longest, *stretched])


def check_context(model: Any, tokens: int, remedy: str) -> None:
    """Raise GeosparseError where `tokens` are more than `model` was made for: what it computes there means nothing.

    Args:
        model: A causal language model.
        tokens: Length of the context that is asked for.
        remedy: What to do instead, e.g. "give a smaller --length".
    """
    limit = context_limit(model)
    if limit is not None and tokens > limit:
        raise GeosparseError(
            f"A context of {tokens} tokens is longer than the {limit} that this {type(model).__name__} allows "
            f"(max_position_embeddings): {remedy}."
        )
