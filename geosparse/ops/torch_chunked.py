"""Sparse attention in plain PyTorch with bounded memory: exact top-N, one chunk of queries at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .call import AttentionCall, HeadRules, as_function
from .key_index import index_of
from .selectors import Choice, SelectorView, choose, needs_index, reads_codes
from .spec import Attended, Tails, keep_tensor, tail_parts
from .visibility import chunk_of, page_mean, page_starts

# Scores of one chunk, bytes; a handful of tensors of this size are alive at once. A GPU needs larger ones to be busy.
CHUNK_BYTES = 8 << 20
CUDA_CHUNK_BYTES = 40 << 20
# Causal rows of one chunk share their key range, so longer chunks score keys that nobody sees.
MAX_CHUNK = 128


def chunk_rows(batch: int, heads: int, keys: int, device: torch.device) -> int:
    """Queries per chunk such that the fp32 scores `[B, Hq, chunk, S]` stay within the bytes of a chunk on `device`."""
    most = CUDA_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES
    return max(1, min(MAX_CHUNK, most // (4 * batch * heads * keys)))


def attend_chunked(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` in fp32 and in memory that does not grow with T."""
    if call.needs_gradient:
        from .differentiable import attend_differentiably

        return attend_differentiably(call, rules)
    query, key, value, visibility = call.query, call.key, call.value, call.visibility
    scaling, softcap, sink = call.terms
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    index = coded = None
    if needs_index(rules.selector):
        index = index_of(key, page_starts(visibility, batch))
        coded = index.decoded(keys, key.shape[-1]) if reads_codes(rules.selector) else None
    output = query.new_empty(batch, heads, queries, value.shape[-1])
    kept = torch.zeros(heads, dtype=torch.int64, device=query.device)
    budgets = keep_tensor(rules.n_keep, query.device)
    rows = chunk_rows(batch, heads, keys, query.device)
    key, value = key.float(), value.float()
    finish = logit_of(scaling, softcap)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        seen, first, end = chunk_of(visibility, start, stop, queries, keys, query.device)
        chunk_bias = None if call.bias is None else call.bias[:, :, start:stop, first:end]
        asked = query[:, :, start:stop].float()
        scores = attention_scores(asked, key[:, :, first:end], scaling, seen, chunk_bias, softcap)
        part = budgets if budgets.shape[-1] == 1 else budgets[..., start:stop]
        sight = SelectorView(asked, scores, seen, part, finish, scaling, first, index, coded)
        choice = choose(sight, rules.selector, key.shape[1], rules.share_kv)
        output[:, :, start:stop] = _attend(scores, choice, value[:, :, first:end], seen, rules.tail, sink)
        kept += choice.kept.long().sum((0, 2))
    return Attended(output, kept)


chunked_attention = as_function(attend_chunked, "chunked_attention")


def logit_of(scaling: float, softcap: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the dot product of query and key to the logit."""
    return lambda dots: dots * scaling if softcap is None else softcap * torch.tanh(dots * (scaling / softcap))


def attention_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    seen: torch.Tensor,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Logits `[B, Hq, T, S]` in fp32, -inf where `seen` is False; the heads of one KV group share one product."""
    batch, heads, queries, dim = query.shape
    grouped = query.float().reshape(batch, key.shape[1], -1, dim)
    scores = (grouped @ key.float().transpose(-1, -2)).view(batch, heads, queries, -1).mul_(scaling)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        scores = scores + bias.float()
    return scores.masked_fill_(~seen, -torch.inf)


def _attend(
    scores: torch.Tensor,
    choice: Choice,
    value: torch.Tensor,
    seen: torch.Tensor,
    tail: Tails,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """The kept tokens' weighted values plus the tail, `[B, Hq, T, Dv]` in fp32."""
    batch, heads, queries, keys = scores.shape
    weight, pages, left = token_weights(scores, choice, seen, tail, sink)
    if pages is not None:
        weight += pages
    grouped = weight.view(batch, value.shape[1], -1, keys)
    output = (grouped @ value).view(batch, heads, queries, -1)
    return add_mean_(output, left, lambda: visible_mean(value, seen))


def token_weights(
    scores: torch.Tensor, choice: Choice, seen: torch.Tensor, tail: Tails, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The weights of kept tokens, zero elsewhere, those that all tokens have by their pages (None: no tail gives to
    pages), both `[B, Hq, T, S]`, and that of the mean of the visible values, `[B, Hq, T, 1]`."""
    parts = tail_parts(tail, scores.shape[1], scores)
    known = scores if choice.estimate is scores else torch.where(choice.keep > 0, scores, choice.estimate)
    if parts.renormalize.any():
        # The kept mass may be so small a part of all that fp32 would lose it.
        known = known.masked_fill(parts.renormalize & (choice.keep == 0), -torch.inf)
    alpha, lost = attention_weights(known, seen, sink)
    weight = alpha * choice.keep
    mass = weight.sum(-1, keepdim=True) + lost
    missing = (1 - mass).clamp_min_(0.0).masked_fill_(parts.renormalize, 0.0)
    if parts.weighted.any():
        weight *= 1 + parts.weighted * missing / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    if parts.kept.any():
        weight.addcmul_(choice.keep, parts.kept * missing / choice.keep.sum(-1, keepdim=True).clamp_min(1))
    by_page = parts.pages * page_mean(alpha * (choice.keep == 0), seen) if parts.pages.any() else None
    return weight, by_page, parts.mean * missing


def add_mean_(output: torch.Tensor, left: torch.Tensor, mean: Callable[[], torch.Tensor]) -> torch.Tensor:
    """`output` `[B, Hq, T, Dv]` in place with the weights `left` `[B, Hq, T, 1]` of the mean of the visible values,
    `[B, Hkv, T, Dv]`, which is asked only where it has a weight."""
    if left.any():
        values = mean()
        output.addcmul_(left, values.repeat_interleave(output.shape[1] // values.shape[1], dim=1))
    return output


def attention_weights(
    scores: torch.Tensor, seen: torch.Tensor, sink: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Softmax `[B, Hq, T, S]` of `scores`, zeros for blind queries, and the weight that `sink` `[Hq]` takes."""
    lost: torch.Tensor | float = 0.0
    if sink is None:
        weight = scores.softmax(-1)
    else:
        logit = sink.float()[None, :, None, None]
        total = scores.logsumexp(-1, keepdim=True).logaddexp(logit)
        weight, lost = (scores - total).exp_(), (logit - total).exp_()
    any_seen = seen.any(-1, keepdim=True)
    if not any_seen.all():
        weight = weight.masked_fill(~any_seen, 0.0)
    return weight, lost


def visible_mean(value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mean of the values that each query sees, `[B, Hkv, T, Dv]`; zeros where it sees none."""
    weight = seen.to(value.dtype)
    return (weight / weight.sum(-1, keepdim=True).clamp_min(1.0)) @ value
