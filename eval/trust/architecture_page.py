"""The page of the documentation that says of every model type what becomes of it, made from the JSON file."""

from __future__ import annotations

from typing import Any

HEAD = """# Model types

Made by `python -m eval.trust.architectures` from `results/trust/architectures.json`; do not edit. The command builds a
tiny random model of each of the {count} causal model types of transformers {transformers}. Windows, blocks and indices
of these models are shorter than the texts of {tokens} tokens.

A type is *equal* if the model with every token kept gives the numbers of the dense model: for a forward pass, left
padding, `generate`, `generate` with a static cache, a prompt in chunks and `score`. The largest difference is at most
1e-4 of the largest number, in float32. A profile and a plan must be made as well. A type is *refused* if geosparse says
in one sentence why it does not support it. It is *not run* if dense transformers does not run the tiny model.

"""
TITLES = {
    "equal": "Equal to dense with every token kept",
    "refused": "Refused by name",
    "not run": "Not run by dense transformers",
    "different": "Different in silence",
    "raw": "Raw errors",
}


def page(result: dict[str, Any]) -> str:
    """Markdown: the counts, then a table for each outcome."""
    from .tiny_configs import TEXT

    types, counts = result["types"], result["counts"]
    head = HEAD.format(
        count=len(types), transformers=result["provenance"].get("transformers", "as installed"), tokens=TEXT
    )
    summary = ", ".join(f"{counts.get(outcome, 0)} {outcome}" for outcome in TITLES if outcome != "raw")
    parts = [head + f"Of {len(types)} types: {summary}, {counts.get('raw', 0)} raw errors.\n"]
    for outcome, title in TITLES.items():
        listed = {kind: each for kind, each in types.items() if each["outcome"] == outcome}
        if listed:
            parts.append(f"## {title}\n\n" + (_equal(listed) if outcome == "equal" else _said(listed)) + "\n")
    return "\n".join(parts)


def _equal(listed: dict[str, dict[str, Any]]) -> str:
    rows = ["| model type | class | largest relative difference | left out |", "|---|---|---|---|"]
    for kind, each in listed.items():
        left_out = "; ".join(f"{name}: {_cell(why)}" for name, why in each.get("left_out", {}).items())
        rows.append(f"| {kind} | {each['class']} | {max(each['errors'].values()):.0e} | {left_out} |")
    return "\n".join(rows)


def _said(listed: dict[str, dict[str, Any]]) -> str:
    rows = ["| model type | reason |", "|---|---|"]
    return "\n".join([*rows, *(f"| {kind} | {_cell(each['sentence'])} |" for kind, each in listed.items())])


def _cell(text: str) -> str:
    """Text that neither ends a cell nor is read as a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
