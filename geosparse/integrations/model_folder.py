"""A plan kept in a model's own folder, so that both travel together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..utils.files import check_writable, read_json, write_json

PLAN_NAME = "geosparse_plan.json"
KEY = "geosparse"


def save_plan(plan: Plan, folder: Path | str) -> list[Path]:
    """Write the plan into `folder`, and an entry that names it into the folder's config.json where there is one.

    Returns:
        The files written.

    Raises:
        GeosparseError: The folder cannot be written, or config.json is damaged or of a model with other head counts.
    """
    folder = Path(folder)
    if folder.is_file():
        raise GeosparseError(f"Cannot write the plan into {folder}: it is a file; give a folder.")
    config_path = check_writable(folder / "config.json")
    config = _read_config(config_path)
    if config is None:
        return [plan.save(folder / PLAN_NAME)]
    _check_heads(plan, config, config_path)
    # The plan first: config.json never names a plan that is not there.
    saved = plan.save(folder / PLAN_NAME)
    return [saved, write_json(config_path, config | {KEY: {"plan": PLAN_NAME}})]


def find_plan(folder: Path | str) -> Plan | None:
    """The plan in a model's folder: the one that config.json names, else geosparse_plan.json, else None.

    Raises:
        GeosparseError: config.json or the plan is damaged, or the plan that config.json names is missing.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    if config is not None and KEY in config:
        return Plan.load(folder / _named(config[KEY], folder / "config.json"))
    path = folder / PLAN_NAME
    return Plan.load(path) if path.exists() else None


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    config = read_json(path, "model configuration")
    if not isinstance(config, dict):
        raise GeosparseError(f"{path} is not a model configuration: it holds no JSON object; give a model's folder.")
    return config


def _named(entry: Any, path: Path) -> str:
    """The file name in the entry; a folder from anywhere must not point outside itself."""
    name = entry.get("plan") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\\" in name:
        raise GeosparseError(
            f"The {KEY!r} entry of {path} names no plan: it needs a file name in the same folder, found {name!r}; "
            f"write it again with `geosparse export`."
        )
    return name


def _check_heads(plan: Plan, config: dict[str, Any], path: Path) -> None:
    text = config.get("text_config")
    heads = (text if isinstance(text, dict) else config).get("num_attention_heads")
    if isinstance(heads, int) and heads != plan.model.heads:
        raise GeosparseError(
            f"The plan is for {plan.model.name} with {plan.model.heads} query heads, but {path} says {heads}: "
            "give the folder of the plan's model."
        )
