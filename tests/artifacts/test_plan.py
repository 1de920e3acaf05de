"""The Plan artifact: same data, same bytes; anything else is refused in one sentence."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geosparse as gs
from geosparse.artifacts.plan import SCHEMA
from geosparse.hf.identity import ModelIdentity, identify, weight_fingerprint
from geosparse.ops import SELECTORS, TAILS
from geosparse.utils.files import MAX_COUNT

from ..tiny import tiny_model

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
    assert "expected schema geosparse.plan/1 or geosparse.plan/2, found 'list'" in refused([])
    assert "found None" in refused({})
    assert "'geosparse.plan/3'" in refused(small().to_json() | {"schema": "geosparse.plan/3"})
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


@st.composite
def served_plans(draw):
    """Plans with everything that an older plan did not say."""
    shape = (2, 4)
    table = {
        "selectors": [[draw(st.sampled_from(SELECTORS.names)) for _ in range(4)] for _ in range(2)],
        "tails": [[draw(st.sampled_from(TAILS)) for _ in range(4)] for _ in range(2)],
    }
    for row, words in enumerate(table["selectors"]):
        for head, word in enumerate(words):
            if word == "sink_recent":
                table["tails"][row][head] = "renormalize"
    growth = torch.tensor(draw(st.lists(st.floats(0, 4), min_size=8, max_size=8)), dtype=torch.float64).view(shape)
    return small(
        tail="best",
        head_tails=torch.tensor([[TAILS.index(word) for word in row] for row in table["tails"]]),
        selector=draw(st.sampled_from(SELECTORS.names)),
        head_selectors=torch.tensor([[SELECTORS.names.index(word) for word in row] for row in table["selectors"]]),
        growth=draw(st.sampled_from([None, growth])),
    )


@given(served_plans())
def test_selectors_and_growth_survive_a_file(tmp_path_factory, plan):
    path = plan.save(tmp_path_factory.mktemp("plan") / "plan.json")
    again = gs.Plan.load(path)
    assert again.to_json() == plan.to_json()
    assert again.selector == plan.selector
    for layer in range(2):
        assert again.selectors_of(layer) == plan.selectors_of(layer)
        assert again.tails_of(layer) == plan.tails_of(layer)
    assert torch.equal(again.at(1000), plan.at(1000))


def test_what_says_nothing_is_not_written():
    optional = {"head_tails", "head_selectors", "growth", "share_kv", "selector"}
    assert not optional & small().to_json().keys()
    assert small(selector="lowbit").to_json()["selector"] == "lowbit"
    shared = small(n_keep=torch.arange(1, 5).repeat_interleave(2).view(2, 4), share_kv=True)
    assert gs.Plan.from_json(shared.to_json()).share_kv is True


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"selector": "lowbits"}, "did you mean 'lowbit'"),
        ({"selector": 3}, "selector is not a word"),
        ({"head_selectors": [["topn"] * 4]}, "head_selectors is misshapen"),
        ({"head_selectors": [["topn"] * 3 + ["best"]] * 2}, "the selector 'best' is not installed"),
        ({"head_selectors": [["topn"] * 3 + [1]] * 2}, "unknown word"),
        ({"head_selectors": [["topn"] * 3 + [["topn"]]] * 2}, "unknown word"),
        ({"selector": "sink_recent"}, "goes with the tail 'renormalize'"),
        ({"head_selectors": [["topn"] * 3 + ["sink_recent"]] * 2}, "Layer 0, head 3"),
        ({"growth": [[0.5] * 3] * 2}, "growth is misshapen"),
        ({"growth": [[0.5] * 3 + ["1"]] * 2}, "not a number"),
        ({"growth": [[0.5] * 3 + [True]] * 2}, "not a number"),
        ({"growth": [[0.5] * 3 + [-0.1]] * 2}, "from 0 to 4"),
        ({"growth": [[0.5] * 3 + [4.1]] * 2}, "from 0 to 4"),
        ({"growth": [[0.5] * 3 + [float("nan")]] * 2}, "from 0 to 4"),
        ({"growth": [[0.5] * 3 + [10**400]] * 2}, "growth"),
        ({"growth": 1.0}, "growth is misshapen"),
        ({"share_kv": 1}, "neither true nor false"),
        ({"share_kv": True}, "equal budgets"),
        ({"share_kv": True, "selector": "paged"}, "share_kv goes with"),
    ],
)
def test_damaged_selectors_growth_and_sharing_are_refused(changes, reason):
    assert reason in refused(small().to_json() | changes)


def test_budgets_grow_from_the_reference_length_on():
    growth = torch.tensor([[0.0, 0.5, 1.0, 2.0]] * 2, dtype=torch.float64)
    plan = small(growth=growth)
    assert torch.equal(plan.at(64), plan.n_keep)
    assert torch.equal(plan.at(2), plan.n_keep.clamp_max(2))
    assert plan.at(256).tolist() == [[1, 4, 12, 64], [5, 12, 28, 128]]
