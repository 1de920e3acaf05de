"""The checkout that numbers come from: its root, its commit, and whether it is as committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Folders whose files decide numbers.
DECISIVE_FOLDERS = ("geosparse", "eval", "recipes")


def commit() -> tuple[str | None, bool]:
    """The commit of this checkout and whether what decides numbers is as committed; (None, True) without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = bool(_git("status", "--porcelain", "--", *DECISIVE_FOLDERS).strip())
    except (OSError, subprocess.CalledProcessError):
        return None, True
    return head, not changed


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
