"""The decode task on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.harness.task import Setting
from eval.tasks.decode import Decode, DecodeSettings
from tests.eval.baselines.tiny_press import LENGTH, SCORED
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def task(tmp_path: Path) -> Decode:
    (tmp_path / "a.txt").write_text("the cat sat on the mat and looked at the dog. " * 40)
    model = tiny_model(vocab_size=300, max_position_embeddings=4096)
    settings = DecodeSettings("data:a.txt", LENGTH, SCORED, 8, 2, 2)
    return Decode(settings, Setting(model, tiny_tokenizer(), tmp_path, tmp_path, True))
