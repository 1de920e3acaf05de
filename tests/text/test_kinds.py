"""The built-in kinds of text: the same everywhere, long enough, and what their names say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest
import torch

from geosparse.errors import GeosparseError
from geosparse.text import load_texts
from geosparse.text.kinds import KINDS, kind_text, kind_windows, read_twice
from geosparse.text.made import Draw

from .test_documents import numbers, words

# Plans are compared across machines and versions: whoever changes a text changes its hash here, on purpose.
SHA256 = {
    "prose": "336138aba33db137",
    "code": "5598b06b666dd958",
    "markup": "8aae2f296067faf7",
    "languages": "d898e7694f180384",
    "carriage-returns": "7206fa7dbca92fbd",
    "capitals": "9507485e6087158d",
    "title-pages": "e3d5dbd4606b93a2",
    "dialogue": "518ac6343dff2a90",
    "tables": "65ff4df853d49360",
    "records": "975439b45c76a640",
    "logs": "683b93e6de5d8aaa",
    "patterns": "3703fd4b76805e35",
    "readings": "336138aba33db137",
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_pinned(kind: str) -> None:
    assert hashlib.sha256(kind_text(kind).encode()).hexdigest()[:16] == SHA256[kind]


def test_every_kind_is_a_text_by_name() -> None:
    assert load_texts("builtin:logs") == [kind_text("logs")]
    with pytest.raises(GeosparseError, match="did you mean 'tables'"):
        load_texts("builtin:table")


def test_texts_are_what_they_are_called() -> None:
    assert kind_text("carriage-returns").count("\r\n") == kind_text("carriage-returns").count("\n") > 50
    assert kind_text("capitals") == kind_text("capitals").upper() != kind_text("prose")
    assert "\n" * 12 in kind_text("title-pages")
    assert all(word in kind_text("languages").split() for word in ("und", "et", "que", "legno"))
    assert json.loads(kind_text("records").split("\n]\n")[0] + "\n]")[0].keys() >= {"id", "customer", "items"}
    rows = [block.split("\n") for block in kind_text("tables").split("\n\n")]
    assert {Counter(row.count("\t") for row in block).most_common(1)[0][0] for block in rows} == {0, 6}
    assert kind_text("dialogue").count("User: ") == kind_text("dialogue").count("Assistant: ") > 50
    assert all(line.startswith("2024-03-17T") for line in kind_text("logs").split("\n"))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [8, 9])
def test_second_readings_repeat_the_first_half(bos: bool, length: int) -> None:
    windows = read_twice(words(40, bos), numbers(40), length, 3)
    assert windows.shape[1] == length
    passage = windows[:, int(bos) : length // 2 + 1]
    again = windows[:, length // 2 + 1 :]
    assert torch.equal(again, passage[:, : again.shape[1]])
    assert len(set(passage.flatten().tolist())) == passage.numel()
    assert bool((windows == 0).sum() == (len(windows) if bos else 0))


def test_windows_of_a_kind() -> None:
    tokenizer = words(40, bos=False)
    assert kind_windows(tokenizer, "prose", 16, 2).shape == (2, 16)
    assert kind_windows(tokenizer, "readings", 16, 2).shape == (2, 16)
    with pytest.raises(GeosparseError, match="did you mean 'prose'"):
        kind_windows(tokenizer, "prise", 16, 2)


def test_draws_stay_within_their_bounds() -> None:
    draw = Draw(0)
    found = {draw.whole(3, 5) for _ in range(200)}
    assert found == {3, 4, 5}
    assert {draw.one("ab") for _ in range(100)} == {"a", "b"}
