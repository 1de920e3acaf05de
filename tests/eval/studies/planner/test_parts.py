"""A tolerance on a tiny model."""

import geosparse as gs
from eval.studies.planner import parts
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer


def test_the_tolerance_is_tried_on_other_texts(monkeypatch):
    monkeypatch.setattr(parts, "TOLERANCE", 0.5)
    monkeypatch.setattr(parts, "HELD_OUT_PARTS", 2)
    model, tokenizer = tiny_model(vocab_size=len(VOCABULARY)), tiny_tokenizer()
    texts = ["pydoc:test", "pydoc:calibration", "pydoc:planning"]
    config = gs.ProfileConfig(length=32, windows=1, queries=8, kinds=())
    profile = gs.profile_model(model, tokenizer, gs.load_texts(texts[1]), config)
    first, *others = parts.tolerance(parts.PlannerStudy(model, tokenizer, profile, texts[1], texts, 32, 2))
    assert first["verified"]["limit"] <= 0.5
    assert [row["text"] for row in others] == texts[:2]
    assert all(row["holds"] == (row["increase"] <= 0.5) for row in others)
