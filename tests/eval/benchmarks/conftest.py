"""A tiny model in a folder, and a text."""

import pytest

from tests.tiny import save_tiny


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=2048)


@pytest.fixture(scope="package")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the index follows its keys, page by page; " * 80, encoding="utf-8")
    return path
