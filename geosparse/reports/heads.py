"""What a profile says of each head, in numbers that JSON can hold: regime, operating N, fits, envelopes."""

from __future__ import annotations

from typing import Any

import torch

from ..artifacts.profile import Profile
from ..errors import GeosparseError
from ..geometry.envelopes import METRICS
from ..geometry.fits import Fits, holds, met
from ..geometry.regimes import REGIMES, SIGNATURES
from .bands import Bands

ASSUMPTIONS = {"A1": "norm", "A2": "similarity", "A3": "profile"}
"""The assumption -> the field of `Fits` that holds its fit."""
DIGITS = 5

Facts = dict[str, Any]


def head_facts(profile: Profile, measured_bands: Bands | None = None) -> list[Facts]:
    """One object per head, layer by layer; of the longest windows.

    Keys: `layer`, `head`; `regime`, `confidence`; `signatures`; `operating_n`, the N >= 2 at which F exceeds that of
    random sets most, and `operating_excess`, by how much; `assumptions`, per assumption its parameters, `mae`, `r2` and
    whether it `holds` (None without fits); with `measured_bands`, `envelope`:
    bounds and measured coverage, N as in the profile.
    """
    regimes = profile.regimes()
    signatures = profile.longest("signatures").nanmean(0)
    excess = profile.excess_f1().nanmean(0)
    excess = torch.where(torch.tensor(profile.budgets, dtype=torch.int64, device="cpu") >= 2, excess, torch.nan)
    most, best = excess.nan_to_num(-torch.inf).max(-1)
    fits = assumptions(profile)[1]
    verdict = {} if fits is None else holds(fits)
    facts = []
    for layer in range(profile.model.layers):
        for head in range(profile.model.heads):
            at = (layer, head)
            row: Facts = {
                "layer": layer,
                "head": head,
                "regime": REGIMES[int(regimes.label[at])],
                "confidence": _plain(regimes.confidence[at]),
                "signatures": dict(zip(SIGNATURES, _plain(signatures[at]), strict=True)),
                "operating_n": profile.budgets[int(best[at])] if bool(torch.isfinite(most[at])) else None,
                "operating_excess": _plain(most[at]),
                "assumptions": None if fits is None else _assumptions(fits, verdict, at),
            }
            if measured_bands is not None:
                row["envelope"] = _envelope(measured_bands, at)
            facts.append(row)
    return facts


def assumptions(profile: Profile) -> tuple[Facts, Fits | None]:
    """How many heads meet each assumption, and the fits; or `reason`, why there are none."""
    try:
        fits = profile.fits()
    except GeosparseError as error:
        return {"reason": str(error)}, None
    return dict(met(fits)), fits


def _assumptions(fits: Fits, verdict: dict[str, torch.Tensor], at: tuple[int, int]) -> Facts:
    parts = {name: getattr(fits, field)._asdict() for name, field in ASSUMPTIONS.items()}
    return {
        name: {"holds": bool(verdict[name][at])} | {key: _plain(value[at]) for key, value in part.items()}
        for name, part in parts.items()
    }


def _envelope(measured_bands: Bands, at: tuple[int, int]) -> Facts:
    sides = {"lower": measured_bands.envelope.lower, "upper": measured_bands.envelope.upper}
    bounds: Facts = {
        side: {name: _plain(bound[at][:, column]) for column, name in enumerate(METRICS)}
        for side, bound in sides.items()
    }
    return bounds | {"level": measured_bands.level, "coverage": _plain(measured_bands.coverage()[at])}


def _plain(value: torch.Tensor) -> Any:
    """A tensor as numbers of a few digits, None for those that are not finite."""
    if value.dim():
        return [_plain(part) for part in value]
    number = value.item()
    if isinstance(number, int):
        return number
    return float(f"{number:.{DIGITS}g}") if bool(torch.isfinite(value)) else None
