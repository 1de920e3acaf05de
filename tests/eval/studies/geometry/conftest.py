"""A tiny model and two texts for the commands."""

import pytest

from tests.tiny import save_tiny

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_tiny(folder / "model")
    (folder / "one.txt").write_text("".join(WORDS[i % 31 :] for i in range(60)), encoding="utf-8")
    (folder / "two.txt").write_text("".join(WORDS[::-1][i % 17 :] for i in range(60)), encoding="utf-8")
    return folder
