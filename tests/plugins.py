"""A package from elsewhere that adds to geosparse, installed in a folder of a test's own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geosparse.utils.registry import Registry


def install(folder: Path, group: str, points: dict[str, str], modules: dict[str, str]) -> dict[str, str]:
    """Lay out a distribution whose entry points are `points` (name -> object reference) in `group`.

    Args:
        folder: Where to.
        group: The entry-point group.
        points: Entry points.
        modules: Source code by module name.

    Returns:
        The environment in which a process sees it.
    """
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    facts = folder / "outside-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (facts / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def command(environment: Mapping[str, str], *words: object) -> subprocess.CompletedProcess:
    """Run `geosparse` in a process of its own."""
    call = [sys.executable, "-m", "geosparse", *map(str, words)]
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=False)


def forget_later(monkeypatch: Any, registry: Registry) -> None:
    """What is added to `registry` from here on is gone after the test."""
    for attribute, value in (("_loaded", dict(registry._loaded)), ("_own", list(registry._own)), ("_names", None)):
        monkeypatch.setattr(registry, attribute, value)


def add(monkeypatch: Any, registry: Registry, name: str, content: object) -> None:
    """Let `registry` have one more entry for the length of a test."""
    forget_later(monkeypatch, registry)
    registry.add(name, content)
