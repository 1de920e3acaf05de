"""A recipe on a tiny model, and the result of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.run import main
from tests.tiny import save_tiny

RECIPE = """
title: A test
model: {model}
profile: {{lengths: [32, 64], windows: 2}}
variants:
  - {{mean_keep: 8}}
  - {{policy: [uniform, permuted], tail: renormalize, density: 0.1}}
tasks:
  - {{task: perplexity, length: 300, samples: 3, chunk: 128}}
  - {{task: needle, length: 300, samples: 3}}
  - {{task: decode, length: 128, scored: 16, timed: 2, samples: 2}}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_tiny(folder / "model")
    (folder / "test.yaml").write_text(RECIPE.format(model=folder / "model"))
    return folder / "test.yaml"


@pytest.fixture(scope="session")
def whole(recipe: Path) -> Path:
    """The result of an uninterrupted run."""
    results = recipe.parent / "whole"
    assert main([str(recipe), "--results", str(results), "--limit", "9"]) == 0
    return results / "_scratch" / "test" / "result"
