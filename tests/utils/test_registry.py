"""What other packages add: found by entry points, named in help and hints, refused where it does not fit."""

from importlib.metadata import EntryPoint

import pytest

import geosparse as gs
from geosparse.plan.policies import POLICIES, Policy
from geosparse.utils.registry import Registry

from ..plugins import add, command, install
from ..synthetic import synthetic

GROUP = "geosparse.policies"
HALVES = """
    import torch

    def halves(candidates, total, seed):
        \"\"\"All tokens to the first half of the heads, one to each of the others.\"\"\"
        model = candidates.profile.model
        heads = model.layers * model.heads
        budgets = torch.ones(heads, dtype=torch.int64)
        first = (heads + 1) // 2
        budgets[:first] += (total - heads) // first
        budgets[: (total - heads) % first] += 1
        return budgets.view(model.layers, model.heads)

    def short(candidates, total, seed):
        return torch.ones(candidates.profile.model.layers, candidates.profile.model.heads, dtype=torch.int64)
"""


def test_a_policy_from_another_package_serves_plan_and_stands_in_help_and_hints(tmp_path):
    environment = install(tmp_path, GROUP, {"halves": "outside:halves"}, {"outside": HALVES})
    profile, plan = tmp_path / "p.safetensors", tmp_path / "plan.json"
    synthetic().save(profile)
    made = command(environment, "plan", str(profile), "--mean-keep", "5", "--policy", "halves", "--out", str(plan))
    assert made.returncode == 0, made.stderr
    assert gs.Plan.load(plan).n_keep.tolist() == [[9] * 4, [1] * 4]
    assert gs.Plan.load(plan).policy == "halves"
    assert "halves" in command(environment, "plan", "--help").stdout
    wrong = command(environment, "plan", str(profile), "--mean-keep", "5", "--policy", "halve", "--out", str(plan))
    assert wrong.returncode == 2
    assert "did you mean 'halves'" in wrong.stderr


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"fisher": "outside:halves"}, "taken already"),
        ({"gone": "outside:gone"}, "cannot be imported"),
        ({"number": "sys:maxsize"}, "names a function"),
        ({"short": "outside:short"}, "returned budgets"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, points, said):
    environment = install(tmp_path, GROUP, points, {"outside": HALVES})
    profile = tmp_path / "p.safetensors"
    synthetic().save(profile)
    words = ["--policy", next(iter(points)), "--out", str(tmp_path / "plan.json")]
    refused = command(environment, "plan", str(profile), "--mean-keep", "5", *words)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "plan.json").exists()


def test_an_entry_is_imported_when_it_is_asked_for(monkeypatch):
    points = [EntryPoint("broken", "nothing_of_this_name:x", "some.group")]
    monkeypatch.setattr("geosparse.utils.registry.entry_points", lambda group: points)
    registry = Registry("thing", "geosparse.plan.policies", ("fisher",), "some.group", lambda name, content: content)
    assert list(registry) == ["fisher", "broken"]
    assert len(registry) == 2
    assert isinstance(registry["fisher"], Policy)
    with pytest.raises(gs.GeosparseError, match="cannot be imported"):
        registry["broken"]
    with pytest.raises(KeyError):
        registry["neither"]


def test_an_entry_of_this_process_comes_last_and_takes_no_name_of_another(monkeypatch):
    names = POLICIES.names
    add(monkeypatch, POLICIES, "mine", lambda choices, total, seed: choices.spend(choices.curves("fisher"), total))
    assert POLICIES.names == (*names, "mine")
    assert list(POLICIES) == [*names, "mine"]
    assert len(POLICIES) == len(names) + 1
    assert gs.make_plan(synthetic(), 5, "mine").policy == "mine"
    with pytest.raises(gs.GeosparseError, match="There is a policy 'mine' already"):
        POLICIES.add("mine", print)
    with pytest.raises(gs.GeosparseError, match="names a function"):
        POLICIES.add("three", 3)
    assert "three" not in POLICIES


def test_every_policy_says_what_it_follows_and_why():
    for name in POLICIES.built_in:
        policy = POLICIES[name]
        assert policy.name == name
        assert policy.favours
        assert policy.reason.endswith(".")
