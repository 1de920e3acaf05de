"""The HTML report, the plot and the terminal table."""

from __future__ import annotations

import builtins
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from geosparse.errors import GeosparseError
from geosparse.reports.demo import findings, require_plots, save_frontier_png, terminal_table, write_report
from geosparse.reports.frontier import frontier_svg
from geosparse.reports.head_map import head_map
from geosparse.reports.pages import environment
from geosparse.reports.palette import page_colours, step_of

N_KEEP = [[1, 2, 30], [1, 7, 151]]


def row(policy: str, tail: str, keep: int, excess: float | None, half: float = 0.01) -> dict[str, Any]:
    bounds = None if excess is None else [excess - half, excess + half]
    return {
        "policy": policy,
        "tail": tail,
        "mean_keep": keep,
        "nll": None if excess is None else 2.9 + excess,
        "excess_nll": excess,
        "excess_nll_interval": bounds,
        "perplexity": 21.0,
        "density": keep / 512,
        "seconds": 22.1,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    budgets = (16, 32, 64)
    rows = [row("uniform", "renormalize", n, x) for n, x in zip(budgets, (0.31, 0.166, 0.083), strict=True)]
    rows += [row("fisher", "centroid", n, x) for n, x in zip(budgets, (0.05, 0.016, 0.003), strict=True)]
    return {
        "schema": "geosparse.result/1",
        "model": {"name": "tiny", "architecture": "LlamaForCausalLM", "layers": 2, "heads": 3, "kv_heads": 1},
        "protocol": {"length": 1024, "windows": 4, "tokens": 4092, "text": "pydoc:test"},
        "dense": {"nll": 2.9, "perplexity": 18.2},
        "rows": rows,
        "speed": {
            "context": 1024,
            "new_tokens": 16,
            "dense": {"tokens_per_second": 20.0, "ms_per_token": 50.0},
            "sparse": {
                "policy": "fisher",
                "mean_keep": 32,
                "tail": "centroid",
                "tokens_per_second": 16.0,
                "ms_per_token": 62.5,
            },
            "ratio": 0.8,
            "note": "reference path",
        },
        "provenance": {"geosparse": "0.1.0", "device": "cpu (2 threads)", "command": "geosparse demo --out DIR"},
    }


class Balance(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(tmp_path: Path, result: dict[str, Any], n_keep: list[list[int]] = N_KEEP, title: str = "T") -> str:
    pytest.importorskip("matplotlib")
    text = write_report(tmp_path / "report.html", result, n_keep, title=title).read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert "script" not in balance.seen
    return text


def style_sheet(n_keep: list[list[int]]) -> str:
    sheets = environment().get_template("colours.css.j2"), environment().get_template("page.css")
    return "".join(sheet.render(page_colours(n_keep)) for sheet in sheets)


def head_map_svg(n_keep: list[list[int]]) -> str:
    return str(environment().get_template("pictures.html.j2").module.head_map(head_map(n_keep)))


def test_same_input_same_bytes(tmp_path: Path, result: dict[str, Any]) -> None:
    first = page(tmp_path, result)
    assert page(tmp_path, copy.deepcopy(result)) == first
    one = save_frontier_png(tmp_path / "a.png", result).read_bytes()
    assert one == save_frontier_png(tmp_path / "b.png", result).read_bytes()
    assert one.startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "report.html"]


def test_needs_nothing_from_elsewhere(tmp_path: Path, result: dict[str, Any]) -> None:
    text = page(tmp_path, result)
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\((?!["']?#)|@import""", text)


def test_both_colour_schemes(result: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    svg, css = frontier_svg(result), style_sheet(N_KEEP)
    assert "prefers-color-scheme: dark" in css
    used = set(re.findall(r"var\((--\w+)\)", svg + css))
    assert {"--ink", "--s0", "--s1"} <= used
    assert all(css.count(f"{name}:") == 2 for name in used)
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_strings_are_escaped(tmp_path: Path, result: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script>&$\\frac$'
    result["model"]["name"] = result["provenance"]["command"] = result["protocol"]["text"] = evil
    result["provenance"][evil] = result["speed"]["note"] = evil
    result["rows"][0] |= {"policy": evil, "tail": evil}
    text = page(tmp_path, result, title=evil)
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("key", ["model", "protocol", "dense", "rows", "speed", "provenance"])
def test_missing_part(tmp_path: Path, result: dict[str, Any], key: str) -> None:
    terminal_table(result | {key: None})
    page(tmp_path, result | {key: None})
    del result[key]
    terminal_table(result)


def test_missing_values(tmp_path: Path, result: dict[str, Any]) -> None:
    for part in (result["model"], result["protocol"], result["dense"], result["speed"], *result["rows"]):
        part.update(dict.fromkeys(part))
    assert "No row was measured" in page(tmp_path, result)
    assert "None" not in terminal_table(result)
    assert "no plan" in " ".join(findings(result)).lower()
    save_frontier_png(tmp_path / "empty.png", result)


def test_no_plan_recorded(tmp_path: Path, result: dict[str, Any]) -> None:
    assert "No plan was recorded" in page(tmp_path, result, [])


@pytest.mark.parametrize("excess", [0.0, -0.004])
def test_at_or_below_dense_is_marked(tmp_path: Path, result: dict[str, Any], excess: float) -> None:
    assert "at or below dense" not in page(tmp_path, result)
    result["rows"][-1] = row("fisher", "centroid", 64, excess)
    text = page(tmp_path, result)
    assert "at or below dense" in text
    assert "runs off the bottom" in text


def test_every_row_below_dense(tmp_path: Path, result: dict[str, Any]) -> None:
    result["rows"] = [row("fisher", "centroid", 32, -0.2)]
    page(tmp_path, result)


def test_wide_map_shows_every_head() -> None:
    n_keep = [[1 + (97 * layer * head) % 1024 for head in range(32)] for layer in range(32)]
    svg = head_map_svg(n_keep)
    assert svg.count("<rect") == 32 * 32
    assert f"layer 31, head 30: N = {n_keep[31][30]}</title>" in svg
    assert int(re.search(r'width="(\d+)"', svg).group(1)) <= 872  # type: ignore[union-attr]
    assert svg.count("<text") == 32 * 32 + 64 + 2
    assert set(re.findall(r'class="(k\d+)"', svg)) <= set(re.findall(r"\.(k\d+)\{", style_sheet(n_keep)))


def test_numbers_are_left_out_of_narrow_cells() -> None:
    svg = head_map_svg([[100] * 64])
    assert svg.count("<title>") == 64
    assert ">100</text>" not in svg


def test_colour_steps_are_doublings() -> None:
    assert [step_of(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 1024, 1025)] == [0, 0, 1, 2, 2, 3, 3, 4, 10, 11]


def test_facts_about_n(tmp_path: Path, result: dict[str, Any]) -> None:
    text = page(tmp_path, result)
    for value in ("32.0", "4.5", "151", "50 % (3 of 6)"):
        assert f"<dd>{value}</dd>" in text


def test_findings_compare_the_plan_with_uniform(result: dict[str, Any]) -> None:
    said = " ".join(findings(result))
    assert "the plan costs 9.6 % of that" in said
    assert "differ both in the split over heads and in the tail" in said
    result["rows"] += [row("uniform", "centroid", 32, 0.1), row("permuted", "centroid", 32, 0.2)]
    said = " ".join(findings(result))
    assert "uniform costs 0.100" in said
    assert "dealt to other heads cost 0.200" in said


def test_findings_do_not_overclaim(result: dict[str, Any]) -> None:
    plan = next(r for r in result["rows"] if r["policy"] == "fisher" and r["mean_keep"] == 32)
    plan |= row("fisher", "centroid", 32, 0.332)
    assert "does worse here, at 2.00 times that cost" in " ".join(findings(result))
    plan |= row("fisher", "centroid", 32, 0.16)
    assert "the intervals overlap" in " ".join(findings(result))
    plan |= row("fisher", "centroid", 32, 0.001)
    assert "does not tell it from dense" in " ".join(findings(result))


def test_table(result: dict[str, Any]) -> None:
    text = terminal_table(result)
    lines = text.splitlines()
    assert lines[0].startswith("tiny, LlamaForCausalLM, 2 layers")
    line = next(line for line in lines if line.startswith("fisher") and " 32 " in line)
    assert line.split() == ["fisher", "centroid", "32", "2.9160", "+0.0160", "[+0.0060,", "+0.0260]", "21.00", "6.2"]
    assert "0.80 times the speed of dense" in " ".join(lines)
    assert "It is slower here." in " ".join(lines)


def test_fast_path_is_not_excused(result: dict[str, Any]) -> None:
    result["speed"]["ratio"] = 1.4
    assert "It is slower here." not in " ".join(terminal_table(result).splitlines())


def test_table_fits_100_columns(result: dict[str, Any]) -> None:
    long = "x" * 300 + "\x1b[2J\n"
    result["model"]["name"] = result["speed"]["note"] = result["rows"][0]["policy"] = result["rows"][1]["tail"] = long
    result["rows"][2] |= {"excess_nll_interval": [-12.5, 120.25], "perplexity": 1e30, "nll": 123.4, "mean_keep": 131072}
    text = terminal_table(result)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert any(line.endswith(" 12.5") for line in text.splitlines())


def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: dict[str, Any]) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    hint = re.escape("pip install geosparse[plots]")
    with pytest.raises(GeosparseError, match=hint):
        require_plots()
    with pytest.raises(GeosparseError, match=hint):
        write_report(tmp_path / "r.html", result, N_KEEP, title="T")
    with pytest.raises(GeosparseError, match=hint):
        save_frontier_png(tmp_path / "r.png", result)
    assert list(tmp_path.iterdir()) == []
    assert "fisher" in terminal_table(result)
