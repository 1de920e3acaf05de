"""Every array of the Profile for one layer and window, from the rows of its sampled queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ..artifacts.profile import METRICS, PLACES, RANKINGS
from ..artifacts.tail_moments import TAIL_ARRAYS, TAIL_FISHER, TAIL_OUTPUT, pack
from ..geometry.moments import Moments, window_moments
from ..geometry.regimes import signatures
from ..geometry.separation import DISTANCES, contribution_score, selection_order, separations
from ..geometry.tail_error import kept_errors
from ..ops import MEAN_FRACTION, TAILS, Tail, needs_index
from ..ops.key_index import index_of
from .capture import Call, QueryRows, rows_of
from .selector_errors import Scored, selections

# Elements of one temporary tensor: a handful of them are alive at once, and should stay in the cache.
BLOCK_ELEMENTS = 1 << 18

Arrays = dict[str, torch.Tensor]


class KvHead(NamedTuple):
    """One KV head of one layer and window, with what its query heads are measured by; shapes as in `kv_heads`.

    Attributes:
        call: The attention call of the whole layer.
        kv_head: Which of its KV heads.
        gradient: Of its query heads only, as is `gram`.
    """

    call: Call
    kv_head: int
    gradient: torch.Tensor
    gram: torch.Tensor
    geometry_queries: Sequence[int]
    noise: torch.Tensor


def kv_heads(
    call: Call,
    gradient: torch.Tensor,
    gram: torch.Tensor,
    geometry_queries: Sequence[int],
    noise: torch.Tensor,
) -> Iterator[KvHead]:
    """The parts of one layer that can be measured apart, one per KV head.

    Args:
        call: The attention call: P sampled queries in ascending order, then the final one.
        gradient: `[Hq, P, Dv]` dLoss/dz at the sampled queries.
        gram: `[Hq, Dv, Dv]`, what a head's error weighs in the residual stream.
        geometry_queries: Which of the queries serve the geometry, ascending, the final one last.
        noise: `[R, len(geometry_queries), L]` random numbers: R random rankings of the tokens, shared by the heads.
    """
    groups = call.query.shape[1] // call.key.shape[1]
    for kv_head in range(call.key.shape[1]):
        heads = slice(kv_head * groups, (kv_head + 1) * groups)
        yield KvHead(call, kv_head, gradient[heads], gram[heads], geometry_queries, noise)


def measure(
    head: KvHead, budgets: Sequence[int], selectors: Sequence[str], with_geometry: bool = True
) -> tuple[Arrays, Moments]:
    """The arrays of the query heads of one KV head, without windows and layers dimensions, and their moments.

    Args:
        head: One of `kv_heads`.
        budgets: The N.
        selectors: Names in SELECTORS.
        with_geometry: Whether to measure the geometry; without it, its metrics are NaN.
    """
    rows = rows_of(head.call, slice(head.kv_head, head.kv_head + 1), slice(head.gradient.shape[1]))
    layer_signatures = signatures(rows.alpha, rows.value, rows.seen, None)
    geometry = _geometry(head, budgets) if with_geometry else _no_geometry(head, budgets)
    arrays = _errors(head, budgets, selectors) | geometry | {"signatures": layer_signatures}
    # Values tell of themselves also where no query looks.
    value = head.call.value[0, head.kv_head : head.kv_head + 1].float()
    beyond = (rows.start, value.shape[1] - rows.start - rows.seen.shape[-1])
    alpha, seen = (torch.nn.functional.pad(part, beyond) for part in (rows.alpha, rows.seen))
    sums = window_moments(alpha, value, seen)
    return {name: array.cpu() for name, array in arrays.items()}, sums


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of one layer from those of its KV heads."""
    return {name: torch.cat([part[name] for part in parts], _axis(name)) for name in parts[0]}


def _axis(name: str) -> int:
    """Where an array of one layer has its heads, and an array of one KV head's chunk its queries."""
    return -1 if name in ("output_norm", "entropy") else -3 if name in TAIL_ARRAYS else -2


def _chunks(queries: int, heads: int, keys: int) -> list[slice]:
    """Cut queries so that `[heads, chunk, keys]` stays within BLOCK_ELEMENTS."""
    rows = max(1, BLOCK_ELEMENTS // (heads * keys))
    return [slice(start, min(start + rows, queries)) for start in range(0, queries, rows)]


def _errors(head: KvHead, budgets: Sequence[int], selectors: Sequence[str]) -> Arrays:
    """Mass, entropy, output error and (g . e)^2 of the heads of one KV head, as means over the sampled queries."""
    call, kv_head, gradient, gram = head[:4]
    sampled = gradient.shape[1]
    chunks: list[Arrays] = []
    # Pages start at the first visible token: where that moves with the query there are none.
    pages = bool(call.seen[:, 0].all())
    index = index_of(call.key[:, kv_head : kv_head + 1], (0,)) if pages and needs_index(selectors) else None
    for queries in _chunks(sampled, gradient.shape[0], call.key.shape[2]):
        rows = rows_of(call, slice(kv_head, kv_head + 1), queries)
        result = {
            "output_norm": weigh(rows.alpha @ rows.value, gram),
            "entropy": torch.special.entr(rows.alpha).sum(-1),
        }
        scored = Scored(rows.query, rows.key, rows.scores, rows.seen, call.terms, index)
        slope = gradient[:, queries].unsqueeze(-2)
        named: dict[str, list[torch.Tensor]] = {name: [] for name in ("mass", "output_error", "fisher", *TAIL_ARRAYS)}
        for selector in selectors:
            keeps = selections(selector, scored, budgets)
            errors = kept_errors(rows.alpha, rows.value, keeps, rows.seen, rows.scores, pages)
            named["mass"].append(errors.mass)
            named["output_error"].append(_weighed(errors.error, gram))
            named["fisher"].append(torch.stack([(errors.error[tail] * slope).sum(-1).square() for tail in TAILS]))
            along = (errors.parts * slope.unsqueeze(-2)).sum(-1)
            named[TAIL_FISHER].append(pack(along.unsqueeze(-1) * along.unsqueeze(-2)))
            through = torch.einsum("hqgpd,hde->hqgpe", errors.parts, gram)
            named[TAIL_OUTPUT].append(pack(through @ errors.parts.transpose(-1, -2)))
        chunks.append(result | {name: torch.stack(columns) for name, columns in named.items()})
    axis = {name: _axis(name) for name in chunks[0]}
    return {name: torch.cat([chunk[name] for chunk in chunks], axis[name]).mean(axis[name]) for name in chunks[0]}


def _geometry(head: KvHead, budgets: Sequence[int]) -> Arrays:
    """The metrics of the heads of one KV head, `[places, distances, rankings, heads, budgets]` each."""
    call, queries = head.call, head.geometry_queries
    groups = call.query.shape[1] // call.key.shape[1]
    rankings = 2 + head.noise.shape[0]
    rows_at_once = max(1, BLOCK_ELEMENTS // (groups * rankings * call.key.shape[2]))
    pieces = []
    for start in range(0, len(queries), rows_at_once):
        part = slice(start, start + rows_at_once)
        rows = rows_of(_at(call, queries[part]), slice(head.kv_head, head.kv_head + 1))
        noise = head.noise[:, part, rows.start : rows.start + rows.alpha.shape[-1]]
        pieces.append(metrics(rows, budgets, noise))
    # [metrics, distances, rankings, heads, queries, budgets]
    table = torch.cat(pieces, dim=-2)
    random = table[:, :, 2:].nanmean(2, keepdim=True)
    table = torch.cat([table[:, :, :2], random], dim=2)
    per_place = torch.stack([table[..., :-1, :].nanmean(-2), table[..., -1, :]], dim=1)
    return dict(zip(METRICS, per_place, strict=True))


def _no_geometry(head: KvHead, budgets: Sequence[int]) -> Arrays:
    """`_geometry` where nothing was measured."""
    shape = (len(PLACES), len(DISTANCES), len(RANKINGS), len(head.gradient), len(budgets))
    return {name: torch.full(shape, torch.nan, dtype=torch.float32, device="cpu") for name in METRICS}


def _at(call: Call, queries: Sequence[int]) -> Call:
    bias = None if call.bias is None else call.bias[:, :, queries]
    return Call(call.query[:, :, queries], call.key, call.value, call.seen[queries], bias, call.terms)


def metrics(rows: QueryRows, budgets: Sequence[int], noise: torch.Tensor) -> torch.Tensor:
    """`[metrics, distances, 2 + R, heads, Q, budgets]` by attention, by contribution, and by R rankings of `noise`
    `[R, Q, L]`, for rows of the heads of one KV head."""
    heads, queries, keys = rows.alpha.shape
    most = min(max(budgets), keys)
    contribution = contribution_score(rows.alpha, rows.value)
    drawn = noise.to(rows.alpha.device).masked_fill(~rows.seen, -1.0).topk(most, dim=-1).indices
    orders = torch.cat(
        [
            selection_order(rows.scores, rows.seen)[..., :most],
            selection_order(contribution, rows.seen)[..., :most],
            *drawn.unsqueeze(1).expand(-1, heads, -1, -1),
        ]
    )
    # The heads share their values, so that all rankings of all heads are rows of one matrix.
    rankings = 2 + len(noise)
    alpha = rows.alpha.repeat(rankings, 1, 1).flatten(0, 1)
    seen = rows.seen.repeat(rankings * heads, 1)
    tables = separations(alpha, rows.value[0], orders.flatten(0, 1), seen, budgets, DISTANCES)
    table = torch.stack([torch.stack(tables[distance]) for distance in DISTANCES], dim=1)
    return table.view(len(METRICS), len(DISTANCES), rankings, heads, queries, -1)


def _weighed(errors: Mapping[Tail, torch.Tensor], gram: torch.Tensor) -> torch.Tensor:
    """|W_O^h e|^2 of every tail, `[tails, Hq, ...]`; that of a blend follows from those of its ends."""
    even, centroid = weigh(errors["even"], gram), weigh(errors["centroid"], gram)
    across = weigh(errors["even"], gram, errors["centroid"])
    errors_by_tail = {"drop": weigh(errors["drop"], gram), "renormalize": weigh(errors["renormalize"], gram)}
    for tail, share in MEAN_FRACTION.items():
        errors_by_tail[tail] = (1 - share) ** 2 * even + 2 * share * (1 - share) * across + share**2 * centroid
    return torch.stack([errors_by_tail[tail] for tail in TAILS])


def weigh(error: torch.Tensor, gram: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """|W_O^h e|^2 of `error` `[Hq, ..., Dv]`; with `other`, the product of W_O^h e and W_O^h of that."""
    flat = error.reshape(error.shape[0], -1, error.shape[-1])
    beside = flat if other is None else other.reshape(flat.shape)
    return ((flat @ gram) * beside).sum(-1).view(error.shape[:-1])
