"""One query per row over keys and values in host memory: the index says on the device which pages are worth a copy."""

from __future__ import annotations

import torch

from ..errors import GeosparseError
from .call import AttentionCall, HeadRules
from .cpu import value_sum_of
from .hot_pages import Resident, pages_of
from .key_index import PAGE, index_of
from .selectors import SELECTORS, SelectorView, choose, fits, needs_index, reads_codes
from .spec import Attended, Selectors, Tails, keep_tensor, per_head
from .tails import shares_of
from .torch_chunked import add_mean_, logit_of, token_weights
from .value_means import means_of

# The logit of a token whose key was not read: of no weight, but not unseen.
UNREAD = -1e30


def reads_every_key(selectors: Selectors, tails: Tails, heads: int) -> bool:
    """Whether a head scores all keys, so that offloading them saves nothing."""
    pairs = zip(per_head(selectors, heads), per_head(tails, heads), strict=True)
    return any(SELECTORS[name].reads_every_key or not fits(name, tail) for name, tail in pairs)


def attend_offloaded(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` of one query per row in fp32; of the keys and values only some pages are read.

    Args:
        call: The query on the device, keys and values in host memory, with pages noted on the keys (`remember_pages`);
            its mask is a Span without a window, or None.
        rules: Without a selector that `reads_every_key`.

    Raises:
        GeosparseError: Autograd is to go through it.
    """
    query, key, value, span = call.query, call.key, call.value, call.span
    pages = pages_of(key)
    assert pages is not None
    scaling, softcap, sink = call.terms
    if call.needs_gradient:
        raise GeosparseError(
            "Attention over offloaded pages has no gradient: give the keys as a whole, or call under torch.no_grad()."
        )
    (batch, heads, _, dim), (kv_heads, keys), device = query.shape, key.shape[1:3], query.device
    seen = span.mask(1, keys, device).expand(batch, 1, 1, keys)
    asked, finish = query.float(), logit_of(scaling, softcap)
    scores = torch.full((batch, heads, 1, keys), UNREAD, device=device, dtype=torch.float32).masked_fill_(
        ~seen, -torch.inf
    )
    sight = SelectorView(asked, scores, seen, keep_tensor(rules.n_keep, device), finish, scaling)
    sight.index = index_of(key, span.starts(batch)) if needs_index(rules.selector) else None
    sight.coded = sight.pages.decoded(keys, dim) if reads_codes(rules.selector) else None

    def read(needed: torch.Tensor) -> Resident:
        """Exact logits, in `scores`, of the tokens `[B, Hq, S]` and of all that happen to be on the device."""
        found = pages.read(key, value, needed.view(batch, kv_heads, -1, keys).any(2))
        dots = asked.view(batch, kv_heads, -1, dim) @ found.key.float().transpose(-1, -2)
        logits = finish(dots).flatten(1, 2).unsqueeze(2)
        there = found.places.repeat_interleave(heads // kv_heads, dim=1).unsqueeze(2)
        room = torch.cat([scores, scores[..., :1]], dim=-1)  # the last column takes what is of no token
        room.scatter_(-1, there.where(there >= 0, keys), logits)
        scores.copy_(room[..., :-1].masked_fill(~seen, -torch.inf))
        return found

    if sight.index is not None:
        read((seen & ~sight.indexed).expand(scores.shape)[:, :, 0])
    needed = choose(sight, rules.selector).keep > 0
    # Heads that go by the exact scores of their candidates need the keys of all of them.
    selectors = [SELECTORS[name] for name in per_head(rules.selector, heads)]
    times = [0 if each.coded else each.oversample or 0 for each in selectors]
    if any(times):
        oversample = torch.tensor(times, device=device, dtype=torch.int64)[None, :, None]
        candidates = sight.candidates(oversample.clamp_min(1) * sight.budgets)
        needed = torch.where((oversample > 0).unsqueeze(-1), candidates, needed)
    paged = any(shares_of(tail).pages for tail in per_head(rules.tail, heads))
    if paged:
        needed = needed | (seen & ~sight.indexed)  # what is in no page yet has its weight alone
    found = read(needed[:, :, 0])
    choice = choose(sight, rules.selector)
    weight, by_page, left = token_weights(scores, choice, seen, rules.tail, sink)
    if by_page is not None:
        weight += by_page.where(~sight.indexed, 0.0)
    there = found.places.repeat_interleave(heads // kv_heads, dim=1).unsqueeze(2)
    part = weight.gather(-1, there.clamp_min(0)).where(there >= 0, 0.0)
    output = (part.view(batch, kv_heads, -1, part.shape[-1]) @ found.value.float()).view(batch, heads, 1, -1)
    if by_page is not None:
        output += _of_pages(by_page, value, span.starts(batch))
    output = add_mean_(output, left, lambda: _visible_mean(value, span.starts(batch), device))
    return Attended(output.to(query.dtype), choice.kept.long().sum((0, 2)))


def _of_pages(by_page: torch.Tensor, value: torch.Tensor, starts: tuple[int, ...]) -> torch.Tensor:
    """The mean values of complete pages, `[B, Hq, 1, Dv]`, times the weights of their tokens `[B, Hq, 1, S]`."""
    held = means_of(value, starts)
    output = by_page.new_zeros(*by_page.shape[:3], value.shape[-1])
    for row, (first, pages) in enumerate(zip(starts, held.pages, strict=True)):
        weight = by_page[row, :, 0, first : first + pages * PAGE : PAGE] * PAGE  # [Hq, P], the same all over a page
        means = held.means[row, :, :pages].float().to(weight.device)
        output[row, :, 0] = (weight.view(len(means), -1, pages) @ means).flatten(0, 1)
    return output


def _visible_mean(value: torch.Tensor, starts: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Mean of the values from each row's start on, `[B, Hkv, 1, Dv]` fp32, from the remembered sum where it helps."""
    total = value_sum_of(value, starts)
    if total is None:
        total = torch.stack(
            [row[:, first:].sum(-2, dtype=torch.float64) for row, first in zip(value, starts, strict=True)]
        )
    count = torch.tensor([max(1, value.shape[2] - first) for first in starts], device=device, dtype=torch.int64)
    mean: torch.Tensor = (total.to(device) / count[:, None, None]).unsqueeze(2).float()
    return mean
