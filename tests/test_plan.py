"""The Plan artifact: same data, same bytes; anything else is refused in one sentence."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.artifact import MAX_COUNT
from geosparse.identity import ModelIdentity, identify, weight_fingerprint
from geosparse.ops import TAILS
from geosparse.plan import SCHEMA

from .tiny import tiny_model

NAME = ModelIdentity("tiny", "LlamaForCausalLM", 2, 4, 2, 8, "0123456789abcdef")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()


@st.composite
def plans(draw):
    kv_heads, groups, layers = (draw(st.integers(1, 4)) for _ in range(3))
    heads = kv_heads * groups
    identity = ModelIdentity(draw(TEXT), draw(TEXT), layers, heads, kv_heads, draw(st.integers(1, 512)), draw(TEXT))
    count = st.integers(1, MAX_COUNT)
    rows = draw(st.lists(st.lists(count, min_size=heads, max_size=heads), min_size=layers, max_size=layers))
    return gs.Plan(
        n_keep=torch.tensor(rows),
        tail=draw(st.sampled_from(TAILS)),
        reference_length=draw(count),
        policy=draw(TEXT),
        budget=draw(st.dictionaries(TEXT, NUMBERS, max_size=2)),
        model=identity,
        calibration=draw(st.dictionaries(TEXT, TEXT | NUMBERS, max_size=2)),
        predicted=draw(st.dictionaries(TEXT, NUMBERS, max_size=2)),
    )


def small(**changes):
    arguments = {
        "n_keep": torch.arange(1, 9).view(2, 4),
        "tail": "centroid",
        "reference_length": 64,
        "policy": "fisher",
        "budget": {"mean_keep": 4.5},
        "model": NAME,
    }
    return gs.Plan(**arguments | changes)


def refused(data):
    with pytest.raises(gs.GeosparseError) as caught:
        gs.Plan.from_json(data)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


@given(plans())
@settings(deadline=None)
def test_round_trip_through_a_file(tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("plan")
    path = plan.save(folder / "plan.json")
    again = gs.Plan.load(path)
    assert torch.equal(again.n_keep, plan.n_keep)
    assert again.n_keep.dtype == torch.int64
    assert again.to_json() == plan.to_json()
    assert again.save(folder / "again.json").read_bytes() == path.read_bytes()


def test_mean_and_bytes():
    assert small().mean_keep == 4.5
    assert json.dumps(small().to_json(), sort_keys=True) == json.dumps(small().to_json(), sort_keys=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_keep": torch.ones(4, 2, dtype=torch.int64)}, r"\[2, 4\]"),
        ({"n_keep": torch.ones(2, 4)}, "whole numbers"),
        ({"n_keep": torch.zeros(2, 4, dtype=torch.int64)}, "found budgets of 0 to 0"),
        ({"n_keep": torch.full((2, 4), 2**40)}, "1099511627776"),
        ({"tail": "centrod"}, "did you mean 'centroid'"),
        ({"reference_length": 0}, "found 0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_not_made(changes, reason):
    with pytest.raises(gs.GeosparseError, match=reason):
        small(**changes)


@pytest.mark.parametrize("key", sorted(small().to_json()))
@pytest.mark.parametrize("value", [None, 7, -1, True, "x", [], [[1]], {}, {"a": 1}, 1.5])
def test_wrong_types_are_refused_or_harmless(key, value):
    data = small().to_json() | {key: value}
    objects = {"budget", "calibration", "predicted", "provenance"}
    fits = (key in objects and isinstance(value, dict)) or (key, value) in [("policy", "x"), ("reference_length", 7)]
    if fits:
        assert gs.Plan.from_json(copy.deepcopy(data)).to_json() == data
    else:
        assert refused(data)


@pytest.mark.parametrize("key", sorted(small().to_json()))
def test_missing_keys_are_named(key):
    data = small().to_json()
    del data[key]
    assert (SCHEMA if key == "schema" else key) in refused(data)


@pytest.mark.parametrize("field", sorted(NAME.to_json()))
@pytest.mark.parametrize("value", [None, 0, -3, 3.0, True, [], 2**31, "8"])
def test_a_wrong_identity_is_refused(field, value):
    data = small().to_json()
    data["model"] |= {field: value}
    if not (field in {"name", "architecture", "fingerprint"} and isinstance(value, str)) and value != 8:
        assert refused(data)


@pytest.mark.parametrize("budget", [0, -1, 1.0, True, "1", None, [1], 2**31, 10**400])
def test_wrong_budgets_are_refused(budget):
    data = small().to_json()
    data["n_keep"][1][2] = budget
    assert "n_keep" in refused(data)


def test_other_documents_are_refused():
    assert "expected schema geosparse.plan/1, found 'list'" in refused([])
    assert "found None" in refused({})
    assert "'geosparse.plan/2'" in refused(small().to_json() | {"schema": "geosparse.plan/2"})
    assert "'n_kept' is not known" in refused(small().to_json() | {"n_kept": 1})
    data = small().to_json()
    data["model"] |= {"heads": 3, "kv_heads": 2}
    assert "do not divide" in refused(data)
    data["model"] |= {"layers": 2**30, "heads": 2**30, "kv_heads": 1}
    assert "more heads than any model" in refused(data)


def test_loading_names_the_file_and_what_to_do(tmp_path):
    path = small().save(tmp_path / "plan.json")
    data = json.loads(path.read_text())
    data["reference_length"] = "long"
    path.write_text(json.dumps(data))
    with pytest.raises(gs.GeosparseError) as caught:
        gs.Plan.load(path)
    reason = "reference_length is not a whole number >= 1"
    assert str(caught.value) == f"{path} is not a plan, or it is damaged: {reason}; give or make another one."


def test_every_truncation_of_a_plan_is_refused(tmp_path):
    whole = small().save(tmp_path / "plan.json").read_bytes()
    cut = tmp_path / "cut.json"
    for size in range(len(whole.rstrip())):
        cut.write_bytes(whole[:size])
        with pytest.raises(gs.GeosparseError, match=r"cut\.json is not a plan"):
            gs.Plan.load(cut)


def test_flipped_bytes_load_or_are_refused(tmp_path):
    whole = small().save(tmp_path / "plan.json").read_bytes()
    path = tmp_path / "flipped.json"
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        data = bytearray(whole)
        data[int(torch.randint(len(data), (), generator=generator))] = int(torch.randint(256, (), generator=generator))
        path.write_bytes(data)
        try:
            plan = gs.Plan.load(path)
        except gs.GeosparseError:
            continue
        plan.save(path)
        assert gs.Plan.load(path).to_json() == plan.to_json()


def test_uniform_plan():
    model = tiny_model()
    plan = gs.Plan.uniform(model, 7)
    assert plan.n_keep.unique().tolist() == [7]
    assert (plan.policy, plan.tail, plan.reference_length, plan.mean_keep) == ("uniform", "renormalize", 512, 7.0)
    assert gs.Plan.uniform(model, 8.0).n_keep.unique().tolist() == [8]
    assert gs.Plan.uniform(model, 3, "drop", 99).reference_length == 99
    for wrong in (0, -1, 1.5, True, float("nan"), float("inf"), 2**31, 10**400):
        with pytest.raises(gs.GeosparseError, match="n_keep is a whole number"):
            gs.Plan.uniform(model, wrong)


def test_a_plan_fits_its_model_in_every_dtype_and_no_other():
    plan = gs.Plan.uniform(tiny_model(), 4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plan.check(tiny_model().bfloat16().to(dtype))
    for other, what in [
        (tiny_model(seed=1), "fingerprint"),
        (tiny_model("mistral"), "architecture"),
        (tiny_model(num_hidden_layers=3), "layers"),
        (tiny_model(num_attention_heads=4), "heads"),
    ]:
        with pytest.raises(gs.GeosparseError, match=f"differ in {what} .*geosparse profile"):
            plan.check(other)


def test_identity():
    model = tiny_model()
    found = identify(model)
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (2, 6, 2, 8)
    assert found == identify(tiny_model())
    assert found.difference(found) is None
    model.lm_head.weight[0, 0] += 1.0
    assert weight_fingerprint(model) != found.fingerprint


def test_each_head_may_have_its_own_tail(tmp_path):
    plan = small(tail="best", head_tails=torch.tensor([[0, 1, 1, 2], [2, 2, 0, 0]]))
    assert plan.tails_of(0) == ["drop", "renormalize", "renormalize", "centroid"]
    again = gs.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again.tail == "best"
    assert torch.equal(again.head_tails, plan.head_tails)
    assert small(tail="centroid").tails_of(1) == "centroid"


@pytest.mark.parametrize(
    "tails", ["best", [["drop"] * 4], [["drop"] * 3 + ["best"]] * 2, [["drop"] * 3 + [0]] * 2, None]
)
def test_wrong_head_tails_are_refused(tails):
    data = small(tail="best", head_tails=torch.zeros(2, 4, dtype=torch.int64)).to_json()
    assert gs.Plan.from_json(data).tails_of(1) == ["drop"] * 4
    refused(data | {"head_tails": tails})
    refused(data | {"tail": "drop"})
    refused({key: value for key, value in data.items() if key != "head_tails"})
