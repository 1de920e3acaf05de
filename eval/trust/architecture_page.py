"""The page of the documentation that says of every model type what becomes of it, made from the JSON file."""

from __future__ import annotations

from typing import Any


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    return ""
