"""The table of the study: excess of every plan on every kind of text, and how it stands against the same N for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...statistics import bootstrap_interval

RATIO, SLACK = 1.05, 0.001
"""A plan holds on a kind where it loses at most RATIO times the uniform plan's excess, plus SLACK nats."""
Rows = Mapping[str, Mapping[str, list[float]]]


def summarised(rows: Rows) -> dict[str, dict[str, Any]]:
    """Per plan and N: mean excess over kinds, its 95 % interval (kinds resampled), the worst kind, and the kinds where
    the uniform plan of the same N is better."""
    summary = {}
    for name, row in rows.items():
        means = {text: sum(windows) / len(windows) for text, windows in row.items()}
        interval = bootstrap_interval(
            torch.tensor([[mean] for mean in means.values()], dtype=torch.float64, device="cpu")
        )
        uniform = rows.get(f"uniform {name.rsplit(' ', 1)[1]}", {})
        broken = [
            text
            for text, mean in means.items()
            if text in uniform and mean > RATIO * max(0.0, sum(uniform[text]) / len(uniform[text])) + SLACK
        ]
        worst = max(means, key=means.__getitem__)
        summary[name] = {
            "mean": sum(means.values()) / len(means),
            "interval": interval and [float(end) for end in interval],
            "worst": {"text": worst, "excess_nll": means[worst]},
            "kinds": len(means),
            "not_held": broken,
        }
    return summary


def describe(result: dict[str, Any]) -> str:
    """The table as text."""
    rows: Rows = result["rows"]
    names = list(rows)
    texts = list(dict.fromkeys(text for row in rows.values() for text in row))
    lines = [f"{'excess, nats per token':<24}" + "".join(f"{name[-15:]:>16}" for name in names)]
    for text in texts:
        cells = (rows[name].get(text) for name in names)
        lines.append(f"{text:<24}" + "".join(_cell(windows) for windows in cells))
    summary = result["summary"]
    lines.append(f"{'mean':<24}" + "".join(f"{summary[name]['mean']:>16.4f}" for name in names))
    lines.append(f"{'worst':<24}" + "".join(f"{summary[name]['worst']['excess_nll']:>16.4f}" for name in names))
    lines.append(f"{'kinds not held':<24}" + "".join(f"{len(summary[name]['not_held']):>16}" for name in names))
    return "\n".join(lines)


def _cell(windows: list[float] | None) -> str:
    return f"{'-':>16}" if not windows else f"{sum(windows) / len(windows):>16.4f}"
