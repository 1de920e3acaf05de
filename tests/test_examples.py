"""Each program of `examples/` runs, on a tiny random model in a folder of its own."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import geosparse as gs
from geosparse.ops import SELECTORS
from geosparse.plan.policies import POLICIES

from .plugins import forget_later
from .tiny import save_tiny

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "quickstart": ["--length", "128", "--windows", "2"],
    "long_context": ["--context", "512", "--mean-keep", "16"],
    "export": ["--length", "128", "--out", "exported"],
    "custom_policy": ["--length", "128", "--windows", "2"],
    "custom_selector": ["--length", "128", "--windows", "2"],
    "lm_eval_tasks": ["--length", "128", "--context", "1536", "--limit", "1"],
}


EXPECTED = {
    "quickstart": "nats over dense",
    "lm_eval_tasks": "sparse niah_single_1",
    "custom_policy": "early_layers: N ",
    "custom_selector": "anchored: ",
}
# Where another package adds something.
EXTENDED = {"geosparse.ops.selectors", "geosparse.plan.policies"}


@pytest.fixture
def _nothing_added(monkeypatch):
    """What an example adds to a registry is gone after it."""
    for registry in (SELECTORS, POLICIES):
        forget_later(monkeypatch, registry)


@pytest.mark.usefixtures("_nothing_added")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(path, tmp_path, monkeypatch, capfd):
    if path.stem == "lm_eval_tasks":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install geosparse[lm-eval]")
    save_tiny(tmp_path / "model", max_position_embeddings=8192)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", [path.name, "model", *ARGUMENTS[path.stem]])
    runpy.run_path(str(path), run_name="__main__")
    said = capfd.readouterr().out
    expected = EXPECTED.get(path.stem, "density 0.")
    assert expected in said, said


def test_the_readme_of_the_examples_lists_each():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{path.name}]({path.name})" in text for path in EXAMPLES.glob("*.py"))


def test_examples_use_public_names_only():
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        imports = re.findall(r"^(?:import|from) (geosparse\S*(?: as gs)?)", text, flags=re.MULTILINE)
        assert set(imports) <= {"geosparse as gs", "geosparse.integrations.lm_eval", *EXTENDED}, path.name
        assert set(re.findall(r"\bgs\.(\w+)", text)) <= set(gs.__all__), path.name
