"""What the fitted assumptions let expect of each head's precision, recall and F, next to what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ..artifacts.profile import Profile
from ..geometry.envelopes import LEVEL, METRICS, Envelope, simulated_envelope
from ..geometry.fits import Fits
from ..geometry.value_law import DRAWS, Law, sample_rows, simulate
from ..utils.parallel import mapped
from ..utils.progress import track

# Room for rounding where a measured value lies on a bound.
ROUNDING = 1e-6
LONGEST = 1 << 17
"""Envelopes are simulated for heads that see at most as many tokens: one head takes DRAWS rows of values of them."""


class Bands(NamedTuple):
    """Envelopes of the last query of a window by Theorem 4 of geometry/README.md, its row drawn from A3.

    Attributes:
        envelope: Bounds `[layers, Hq, G, 3]` in the order of `METRICS`; NaN where N leaves nothing out, a fit fails,
            or a head sees more than LONGEST tokens.
        measured: `[windows, layers, Hq, G, 3]` the same query in each of the longest windows.
        level: Of each metric at each N.
    """

    envelope: Envelope
    measured: torch.Tensor
    level: float

    def coverage(self) -> torch.Tensor:
        """Share of the measured values within the bounds, `[layers, Hq]`, N = 1 left out; NaN where there are none."""
        known = torch.isfinite(self.measured) & torch.isfinite(self.envelope.lower)
        known[..., 0, :] &= self.measured.shape[-2] == 1
        above = self.measured >= self.envelope.lower - ROUNDING
        inside = above & (self.measured <= self.envelope.upper + ROUNDING) & known
        share: torch.Tensor = inside.sum((0, -2, -1)) / known.sum((0, -2, -1))
        return share


def bands(profile: Profile, level: float = LEVEL, *, seed: int = 0, show_progress: bool = False) -> Bands:
    """The bands of every head of a profile; sinks are put at the start of the window, as many as are there on average.

    Raises:
        GeosparseError: The profile has no fits, or the level needs more than `law.DRAWS` simulated windows.
    """
    fits = profile.fits()
    layers, heads = fits.norm.level.shape
    heads_of_layers = [(layer, head) for layer in range(layers) for head in range(heads)]

    def one(head_index: tuple[int, int]) -> Envelope:
        generator = torch.Generator().manual_seed(seed * len(heads_of_layers) + head_index[0] * heads + head_index[1])
        return _band(fits, head_index, profile.limits[head_index[0]], profile.budgets, level, generator)

    def jobs() -> Iterator[tuple[int, int]]:
        yield from track(heads_of_layers, "envelopes", show_progress)

    envelopes = list(mapped(one, jobs()))
    shape = (layers, heads, len(profile.budgets), len(METRICS))
    lower, upper = (torch.stack(sides).view(shape) for sides in zip(*envelopes, strict=True))
    measured = torch.stack([profile.geometry(name, place="final") for name in METRICS], -1)
    return Bands(Envelope(lower, upper), measured, level)


def _band(
    fits: Fits,
    head_index: tuple[int, int],
    visible: int,
    budgets: tuple[int, ...],
    level: float,
    generator: torch.Generator,
) -> Envelope:
    """Bounds `[G, 3]` of one head whose last query sees `visible` tokens."""
    bounds = torch.full((2, len(budgets), len(METRICS)), torch.nan, dtype=torch.float32, device="cpu")
    law = _law(fits, head_index)
    few = [n for n in budgets if n < visible]
    if law is not None and few and visible <= LONGEST:
        sinks = torch.arange(visible, dtype=torch.int64, device="cpu") < round(float(fits.norm.sinks[head_index]))
        rows = sample_rows(fits.profile, head_index, sinks, DRAWS, generator)
        seen = torch.ones(1, visible, dtype=torch.bool, device="cpu")
        outcomes = simulate(law, rows[:, None], seen, sinks, few, generator)[:, 0]
        bounds[:, : len(few)] = torch.stack(simulated_envelope(outcomes, level))
    return Envelope(*bounds)


def _law(fits: Fits, head_index: tuple[int, ...]) -> Law | None:
    """The law of a head, or None where a fit has no finite parameters: all values equal, or all tokens sinks."""
    shape = fits.profile
    numbers: list[Any] = [*fits.norm[:2], *fits.similarity[:3], fits.similarity.dimension]
    numbers += [shape.intercept, shape.slope, shape.spread, shape.sink_mass, shape.sink_spread]
    sound = all(bool(torch.isfinite(number[head_index]).all()) for number in numbers)
    return Law.of(fits, head_index) if sound and float(fits.norm.level[head_index]) > 0 else None
