"""A tiny model, and settings of tasks as a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.harness.recipe import load_recipe
from eval.harness.task import Setting
from eval.tasks import TASKS
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    model = tiny_model(vocab_size=300, max_position_embeddings=4096)
    return Setting(model, tiny_tokenizer(), None, tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[str], Any]:
    """The settings of one task from an entry of a recipe."""

    def read(entry: str) -> Any:
        (tmp_path / "a.yaml").write_text(f"tasks: [{entry}]")
        return load_recipe(tmp_path / "a.yaml", TASKS).tasks[0]

    return read
