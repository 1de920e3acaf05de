"""Data sets below a folder are found whatever the working directory is, by this thread only, and afterwards no more."""

import json
import os
import threading
from pathlib import Path

import datasets
import pytest

from eval.tasks.local_data import data_below


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub" / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}"}) for i in range(3)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_takes_the_place_of_a_name(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub.parent)
    before, here = datasets.load_dataset, os.getcwd()
    elsewhere: list[object] = []
    with data_below(Path("hub")):
        assert os.getcwd() == here
        assert datasets.load_dataset("owner/name", split="test")["text"] == ["row 0", "row 1", "row 2"]
        assert len(datasets.load_dataset(path="owner/name")["test"]) == 3

        def ask() -> None:
            try:
                elsewhere.append(datasets.load_dataset("owner/name"))
            except Exception as error:  # noqa: BLE001 - of whatever kind a missing data set is
                elsewhere.append(error)

        other = threading.Thread(target=ask)
        other.start()
        other.join()
    assert isinstance(elsewhere[0], Exception)
    assert datasets.load_dataset is before


def test_without_a_folder_nothing_changes(tmp_path: Path) -> None:
    before = datasets.load_dataset
    for folder in (None, tmp_path / "none"):
        with data_below(folder):
            assert datasets.load_dataset is before
