"""One profile as a self-contained HTML page: maps of layers and heads, and a page section for each head."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ..artifacts.profile import Profile
from ..geometry.fits import holds
from ..geometry.regimes import REGIMES, SIGNATURES
from ..ops import TAILS
from ..plan.make_plan import make_plan
from .bands import Bands
from .head_sections import CAPTIONS, head_sections
from .heads import assumptions
from .pages import named, percent, render, write_page
from .panels import Curves, Plot, plots
from .small_maps import SmallMap, graded_map, small_map

# The N and the mean N that the maps are about, where the profile has them.
SHOWN = 32


def write_profile_page(path: Path | str, profile: Profile, measured_bands: Bands | None = None) -> Path:
    """Write one HTML file; same arguments, same bytes.

    Args:
        path: Where to.
        profile: What the page is about.
        measured_bands: Its `bands.bands`, drawn where they are given.

    Raises:
        GeosparseError: The file cannot be written.
    """
    model = profile.model
    facts = [
        *named(model),
        model.architecture,
        f"{model.layers} layers × {model.heads} heads ({model.kv_heads} KV)",
        f"{profile.own().at(profile.length).windows} windows of {profile.length} tokens",
        f"dense NLL {profile.nll:.4f}",
    ]
    keep = min(SHOWN, profile.length)
    n_keep = make_plan(profile, mean_keep=keep).n_keep
    page = render(
        "profile.html.j2",
        title=f"geosparse profile: {model.name}",
        facts=facts,
        maps=_maps(profile, n_keep, keep),
        curves=_curves(profile),
        assumptions=_assumptions(profile, measured_bands),
        heads=head_sections(profile, n_keep.tolist(), measured_bands),
        tails=TAILS,
    )
    return write_page(path, page)


def _maps(profile: Profile, n_keep: torch.Tensor, keep: int) -> list[SmallMap]:
    """Regime, N, sink mass and error of every head; each cell leads to the head's section."""
    signatures = profile.longest("signatures").nanmean(0)
    sink = signatures[..., SIGNATURES.index("sink_mass")]
    column = min(range(len(profile.budgets)), key=lambda index: abs(profile.budgets[index] - keep))
    error = profile.relative_output_error("blend")[..., column]
    excess = profile.excess_f1().nanmean(0)[..., column]
    n, budget = n_keep.double(), profile.budgets[column]
    return [
        _regimes(profile),
        graded_map("N of the default plan", n.log2(), n, f"mean {keep}, colours by doublings", "g"),
        graded_map("Sink mass", sink, sink, "attention on sinks, from 0 to 1", ".3f"),
        graded_map(f"Output error at N = {budget}", error.sqrt(), error, "of the best tail, relative, squared", ".2g"),
        graded_map(f"F above random at N = {budget}", excess, excess, "how far the kept tokens stand out", ".3f"),
    ]


def _regimes(profile: Profile) -> SmallMap:
    label = [[REGIMES[index] for index in row] for row in profile.regimes().label.tolist()]
    counts = Counter(name for row in label for name in row)
    legend = [(name, percent(counts[name] / sum(counts.values()))) for name in REGIMES]
    return small_map(
        "Regime",
        (len(label), len(label[0])),
        lambda layer, head: (f"r-{label[layer][head]}", label[layer][head]),
        legend=legend,
    )


def _curves(profile: Profile) -> list[Plot]:
    """Precision, recall and F over N, averaged over heads, with the random control."""
    drawn = {
        caption: Curves(
            profile.geometry(name).nanmean((0, 1, 2)).tolist(),
            profile.geometry(name, "random").nanmean((0, 1, 2)).tolist(),
        )
        for name, caption in CAPTIONS.items()
    }
    return plots(profile.budgets, drawn)


def _assumptions(profile: Profile, measured_bands: Bands | None) -> dict[str, Any]:
    """How many heads meet each assumption, and how often the envelopes hold; or the `reason` why nobody knows."""
    counts, fits = assumptions(profile)
    if fits is None:
        return {"reason": counts["reason"]}
    tiles = [(name, f"{counts[name]} of {counts['heads']}") for name in ("A1", "A2", "A3")]
    tiles.append(("all three", f"{counts['all']} of {counts['heads']}"))
    if measured_bands is not None:
        coverage = measured_bands.coverage()
        every = torch.stack(list(holds(fits).values())).all(0)
        for name, heads in (("inside the envelopes", torch.ones_like(every)), ("where all three hold", every)):
            share = float(coverage[heads].nanmean()) if bool(heads.any()) else math.nan
            tiles.append((name, percent(share) if math.isfinite(share) else "–"))
    return {"reason": None, "counts": tiles, "level": None if measured_bands is None else percent(measured_bands.level)}
