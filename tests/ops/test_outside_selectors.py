"""A selector that another package adds: measured, planned and served like a built-in one, by plain PyTorch."""

import os

import pytest
import torch

import geosparse as gs
from geosparse.cli.doctor import examine
from geosparse.ops import PATHS, SELECTORS, Span, cpu
from geosparse.ops.dispatch import SERVING_PATHS
from geosparse.ops.selectors import Choice, SelectorRule, selector

from ..plugins import add, command, install
from ..tiny import save_tiny, tiny_model, tokens

GROUP = "geosparse.selectors"
LEANING = '''
    import torch

    from geosparse.ops.selectors import selector


    @selector("the N highest scores after a bonus for recent tokens")
    def leaning(view):
        """Recent tokens win where scores are close."""
        return view.highest(view.scores + 0.1 * torch.arange(view.scores.shape[-1], device=view.scores.device))

    number = 3
'''


def leaning(view):
    return view.highest(view.scores + 0.1 * torch.arange(view.scores.shape[-1]))


@pytest.fixture
def outside(monkeypatch):
    add(monkeypatch, SELECTORS, "leaning", selector("the N highest after a bonus")(leaning))


def test_profile_plan_and_generate_know_it_by_name(tmp_path):
    environment = install(tmp_path, GROUP, {"leaning": "outside:leaning"}, {"outside": LEANING})
    model, profile, plan = save_tiny(tmp_path / "model"), tmp_path / "p.safetensors", tmp_path / "plan.json"
    text = tmp_path / "t.txt"
    text.write_text(" ".join(f"alpha{number} Beta gamma;" for number in range(60)))
    measuring = ["--text", text, "--length", 40, "--windows", 2, "--selectors", "topn,leaning", "--out", profile]
    planning = ["plan", profile, "--mean-keep", 5, "--out", plan]
    for words in (["profile", model, *measuring], [*planning, "--selector", "leaning"]):
        made = command(environment, *words)
        assert made.returncode == 0, made.stderr
    assert '"selector": "leaning"' in plan.read_text()
    for name in ("profile", "plan"):
        assert "leaning" in command(environment, name, "--help").stdout
    wrong = command(environment, *planning, "--selector", "leanin")
    assert wrong.returncode == 2
    assert "did you mean 'leaning'" in wrong.stderr
    generating = ["generate", model, "--prompt", "alpha Beta " * 5, "--plan", plan, "--max-new-tokens", 3]
    served = command(environment, *generating)
    assert served.returncode == 0, served.stderr
    missing = command(os.environ, *generating)
    assert missing.returncode == 2
    assert "the selector 'leaning' is not installed: install the package that adds it" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"topn": "outside:leaning"}, "taken already"),
        ({"number": "outside:number"}, "names a function"),
        ({"other": "outside:leaning"}, "calls itself 'leaning'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, points, said):
    environment = install(tmp_path, GROUP, points, {"outside": LEANING})
    refused = command(environment, "doctor")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("queries", [1, 20])
def test_every_path_equals_the_reference(queries):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 16, generator=generator) for heads, n in ((6, queries), (2, 60), (2, 60)))
    words = {"tail": "blend50", "scaling": 0.25, "selector": ["leaning", "lowbit"] * 3, "mask": Span((0, 7))}
    true = PATHS["reference"](q, k, v, [1, 5, 9, 20, 40, 70], **words)
    for path in ("torch", "cpu") if cpu.library() is not None else ("torch",):
        found = PATHS[path](q, k, v, [1, 5, 9, 20, 40, 70], **words)
        assert torch.equal(found.kept, true.kept)
        assert (found.output - true.output).abs().max() < 1e-4
    exact = PATHS["reference"](q, k, v, [1, 5, 9, 20, 40, 70], **words | {"selector": ["topn", "lowbit"] * 3})
    assert not torch.allclose(true.output[:, ::2], exact.output[:, ::2])


@pytest.mark.usefixtures("outside")
def test_a_model_decodes_by_it_and_the_receipt_says_what_serves(monkeypatch):
    model, ids = tiny_model(), tokens(2, 40)

    def decode(model):
        plan = gs.Plan.uniform(model, 6, "blend50", selector="leaning")
        with torch.no_grad(), gs.sparsified(model, plan) as receipt:
            cache = model(ids[:, :30], use_cache=True).past_key_values
            steps = [model(ids[:, n : n + 1], past_key_values=cache, use_cache=True).logits for n in range(30, 40)]
        return torch.cat(steps, 1), receipt

    found, receipt = decode(model)
    slow = "layers 0-1: plain PyTorch, because the selector leaning has no kernels"
    assert (slow in receipt.notes) == (receipt.path != "torch")
    monkeypatch.setattr("geosparse.sparsify.attention.attend", SERVING_PATHS["reference"])
    true, _ = decode(tiny_model().double())
    assert (found - true).abs().max() < 1e-4
    with torch.no_grad():
        assert (found - model(ids).logits[:, 30:]).abs().max() > 1e-2


@pytest.mark.usefixtures("outside")
def test_doctor_says_which_selectors_have_no_kernels():
    data, text = examine()
    assert data["selectors"]["leaning"] == "torch"
    assert ("leaning: served by plain PyTorch" in text) == (data["path"] != "torch")


def test_what_is_no_choice_is_refused(monkeypatch):
    add(monkeypatch, SELECTORS, "wrong", lambda view: view.scores)
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(gs.GeosparseError, match="The selector 'wrong' returned no Choice with `keep` \\[1, 2, 3, 3\\]"):
        PATHS["torch"](q, q, q, [1, 2], tail="drop", scaling=1.0, selector="wrong")


@pytest.mark.usefixtures("outside")
def test_the_receipt_catches_a_selector_that_keeps_too_few(monkeypatch):
    def few(view):
        keep = torch.zeros_like(view.scores)
        keep[..., 0] = 1.0
        return Choice(keep, keep.sum(-1), view.scores)

    add(monkeypatch, SELECTORS, "few", few)
    model = tiny_model()
    with (
        pytest.raises(gs.GeosparseError, match="kept 20 tokens where the plan says"),
        gs.sparsified(model, gs.Plan.uniform(model, 6, "drop", selector="few")),
        torch.no_grad(),
    ):
        model(tokens(1, 20))


@pytest.mark.parametrize("name", SELECTORS.built_in)
def test_every_selector_says_what_it_keeps_and_reads(name):
    rule = SELECTORS[name]
    assert isinstance(rule, SelectorRule)
    assert rule.name == name
    assert rule.keeps
    assert rule.reads
    assert rule.reason.endswith(".")
    assert not (rule.coded and not rule.indexed)
