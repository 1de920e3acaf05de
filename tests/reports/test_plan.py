"""One plan as one HTML file: everything in it, nothing from elsewhere, nothing unescaped."""

import dataclasses
import re

import torch

import geosparse as gs
from geosparse.hf.identity import ModelIdentity
from geosparse.ops import TAILS
from geosparse.reports.plan import write_plan_page
from geosparse.reports.terminal import describe_plan


def plan(name="tiny", policy="fisher"):
    identity = ModelIdentity(name, "LlamaForCausalLM", 2, 3, 1, 8, "0123456789abcdef")
    n_keep = torch.tensor([[1, 2, 30], [1, 7, 151]])
    return gs.Plan(n_keep, "centroid", 1024, policy, {"density": 0.02}, identity, {"windows": 4}, {"damage": 0.5})


def test_the_page_shows_the_plan(tmp_path):
    page = write_plan_page(tmp_path / "plan.html", plan()).read_text(encoding="utf-8")
    assert "<h1>geosparse plan: tiny</h1>" in page
    assert "tiny · LlamaForCausalLM · 2 layers × 3 heads (1 KV) · policy fisher · tail centroid" in page
    assert page.count("<g><title>layer ") == 6
    assert "layer 1, head 2: N = 151" in page
    for fact in ("density 0.02", "32.00", "1024 tokens", "windows 4", "damage 0.5", "0123456789abcdef"):
        assert f"<td>{fact}" in page


def test_numbers_are_short(tmp_path):
    told = {"bytes": 12445397.333333332, "damage": 0.0047278303319454335, "lengths": [512, 1024]}
    page = write_plan_page(tmp_path / "plan.html", dataclasses.replace(plan(), predicted=told)).read_text("utf-8")
    assert "<td>bytes 12,445,397 · damage 0.004728 · lengths 512, 1024</td>" in page


def test_tails_of_heads_are_counted(tmp_path):
    mixed = dataclasses.replace(plan(), tail="best", head_tails=torch.tensor([[0, 0, 1], [0, 2, 0]]))
    page = write_plan_page(tmp_path / "plan.html", mixed).read_text(encoding="utf-8")
    assert f"<td>{TAILS[0]} 4 · {TAILS[1]} 1 · {TAILS[2]} 1</td>" in page


def test_contexts_beyond_the_profile_are_named(tmp_path):
    cases = (([256, 512], 512), ([512, 2048], 2048), ([], None), ("512", None), ([0], None), (None, None))
    for lengths, longest in cases:
        found = dataclasses.replace(plan(), calibration={"lengths": lengths})
        data, text = describe_plan(found)
        assert found.longest_window == data["longest_window"] == longest
        assert ("not measured at 1024 tokens: the profile's longest windows have 512;" in text) == (longest == 512)
        page = write_plan_page(tmp_path / "plan.html", found).read_text(encoding="utf-8")
        assert f"<td>{f'{longest} tokens' if longest else '–'}</td>" in page


def test_the_page_is_self_contained_and_repeats(tmp_path):
    first, second = (write_plan_page(tmp_path / name, plan()).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    text = first.decode()
    assert not re.search(r"<(script|link|img|iframe)|url\(|https?://", text)
    assert "default-src 'none'" in text


def test_names_are_escaped(tmp_path):
    page = write_plan_page(tmp_path / "p.html", plan("<b>&\"'", "</style><script>")).read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<script" not in page
    assert "&lt;b&gt;&amp;&#34;&#39;" in page
