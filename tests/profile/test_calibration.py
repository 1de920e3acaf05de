"""Calibration windows: the text that is given, and the built-in kinds of text beside it."""

import pytest
import torch

import geosparse as gs
from geosparse.profile.calibration import calibration_windows, texts_by_kind
from geosparse.text.kinds import KINDS, built_in_windows, kind_text

from ..tiny import tiny_model, tiny_tokenizer

TEXT = "one two three four five six seven eight " * 60
CONFIG = {"length": 64, "windows": 2, "queries": 4, "budgets": (1, 4, 16), "geometry_queries": 2}


def profile_of(texts=TEXT, **changes):
    return gs.profile_model(tiny_model(vocab_size=300), tiny_tokenizer(), texts, gs.ProfileConfig(**CONFIG | changes))


@pytest.fixture(scope="module")
def measured():
    return profile_of(kinds=("code", "logs"))


def test_built_in_kinds_are_measured_by_default():
    assert gs.ProfileConfig().kinds == tuple(KINDS)
    found = calibration_windows(tiny_tokenizer(), texts_by_kind(TEXT), gs.ProfileConfig(**CONFIG))
    assert [window.kind for window in found] == ["text", "text", *(f"builtin:{kind}" for kind in KINDS)]
    assert {len(window.tokens) for window in found} == {64}


def test_a_profile_says_the_kind_of_every_window(measured, tmp_path):
    assert measured.kinds == ("text", "text", "builtin:code", "builtin:logs")
    measured.save(tmp_path / "p.safetensors")
    assert gs.Profile.load(tmp_path / "p.safetensors").kinds == measured.kinds
    assert measured.of_kinds("builtin:code").windows == 1
    with pytest.raises(gs.GeosparseError, match="did you mean 'builtin:code'"):
        measured.of_kinds("builtin:cod")


def test_built_in_kinds_change_nothing_about_the_text_that_is_given(measured):
    alone = profile_of(kinds=(), second_pass=False)
    assert alone.kinds == ("text", "text")
    assert "kinds" not in alone.calibration
    for name, array in alone.arrays.items():
        assert torch.equal(array.nan_to_num(-1.0), measured.arrays[name][:2].nan_to_num(-1.0)), name
    assert torch.equal(alone.fisher("blend"), measured.fisher("blend"))
    assert measured.nll == alone.nll
    assert torch.equal(measured.regimes().label, alone.regimes().label)
    assert measured.own().windows == 2


def test_several_texts_are_kinds_of_their_own():
    profile = profile_of({"a.txt": TEXT, "b.txt": [TEXT.upper()]}, kinds=("code",), second_pass=False)
    assert profile.kinds == ("a.txt", "a.txt", "b.txt", "b.txt", "builtin:code")
    assert profile.own().windows == 4


def test_of_several_lengths_one_has_the_built_in_kinds():
    config = gs.ProfileConfig(lengths=(32, 64), windows=2, kinds=("code",), queries=4)
    found = calibration_windows(tiny_tokenizer(), texts_by_kind(TEXT), config)
    assert [(window.kind, len(window.tokens)) for window in found] == [
        ("text", 32),
        ("text", 32),
        ("text", 64),
        ("text", 64),
        ("builtin:code", 64),
    ]


def test_texts_shorter_than_a_window_follow_one_another():
    tokenizer = tiny_tokenizer()
    prose, code = (len(tokenizer(kind_text(kind), verbose=False)["input_ids"]) for kind in ("prose", "code"))
    length = (prose + code) * 3 // 4
    found = built_in_windows(tokenizer, ("prose", "code", "logs"), length)
    assert [name for name, _ in found] == ["logs", "mixed"]
    assert {len(window) for _, window in found} == {length}
    assert built_in_windows(tokenizer, ("prose", "code"), 2 * (prose + code)) == []


@pytest.mark.parametrize(
    ("texts", "changes", "reason"),
    [
        (TEXT, {"kinds": ("cod",)}, "did you mean 'code'"),
        (TEXT, {"kinds": ("code", "code")}, "different names"),
        ({}, {}, "no text"),
        ({"builtin:code": TEXT}, {}, "names a built-in kind"),
    ],
)
def test_what_is_no_kind_of_text(texts, changes, reason):
    with pytest.raises(gs.GeosparseError, match=reason):
        profile_of(texts, **changes)
