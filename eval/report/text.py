"""Results as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from geosparse.hf.aliases import weights_of

from ..harness.methods import DENSE
from ..harness.result import Measurement, Result

HEADS = (
    "task",
    "metric",
    "variant",
    "score",
    "± stderr",
    "samples",
    "density",
    "difference",
    "95 % interval",
    "changed",
)


def table(result: Result) -> str:
    """The main metric of every task, then the summary and warnings, as aligned text."""
    rows: list[tuple[str, ...]] = [HEADS]
    for info in result.tasks:
        rows += [cells(row) for row in result.of(info.id, result.main_metric(info.id)).values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [""] + [
        f"{each.variant}: recovery {each.mean_recovery:.3f} over {each.tasks} tasks, worst {each.worst_recovery:.3f} "
        f"({each.worst_task})"
        for each in result.summary
    ]
    return "\n".join([*lines, *(f"warning: {text}" for text in result.warnings)])


def cells(row: Measurement) -> tuple[str, ...]:
    """One measurement in words."""
    return (
        row.task,
        row.metric,
        row.variant,
        f"{row.value:.4f}",
        _shown(row.stderr, ".4f"),
        str(row.samples),
        "" if row.density is None else percent(row.density),
        _shown(row.difference, "+.4f"),
        "" if row.interval is None else f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}",
        "" if row.changed is None or row.variant == DENSE else str(row.changed),
    )


def facts_of(result: Result) -> list[str]:
    """What a result is of: the model and its weights, the dtype, the machine, and versions."""
    run, provenance = result.run, result.provenance
    facts = [run.model["name"], weights_of(run.model.get("fingerprint")), run.dtype]
    facts += [provenance["device"], provenance["processor"]]
    facts += [f"{name} {version}" for name, version in sorted(provenance["versions"].items())]
    return [fact for fact in facts if fact]


def percent(share: float) -> str:
    """A share of 1 in percent, with two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
