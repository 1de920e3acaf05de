"""Reports from results alone: the same bytes each time, every number where it belongs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install geosparse[plots]")

from eval.harness.result import (
    TIMING_SCHEMA,
    Measurement,
    Result,
    RunInfo,
    Summary,
    TaskInfo,
    VariantInfo,
    read_result,
    write_result,
)
from eval.report.__main__ import DOCUMENTS, GENERATED_TABLE, ROOT, find, main, make, renew
from eval.report.chart import panel_chart, strips_chart
from eval.report.figure import FILE, colours
from eval.report.markdown import score_table
from eval.report.page import HUES
from eval.report.points import Loaded, density_panels, recovery_panel, speed_panels
from geosparse.errors import GeosparseError
from geosparse.utils.files import write_json

NLL = {"kind": "nll", "higher_is_better": False, "chance": None, "main": True}
ACC = {"kind": "accuracy", "higher_is_better": True, "chance": 0.25, "main": True}


def row(task: str, metric: str, variant: str, value: float, **more: object) -> Measurement:
    blank = dict.fromkeys(("stderr", "density", "difference", "interval", "changed", "mcnemar", "recovery"))
    return Measurement(task=task, metric=metric, variant=variant, value=value, samples=8, **(blank | more))


def example() -> Result:
    rows = [row("text", "nll", "dense", 2.5, stderr=0.1), row("quiz", "acc", "dense", 0.5, stderr=0.05)]
    for variant, density, loss in (
        ("fisher-best-16", 0.02, 0.01),
        ("fisher-best-64", 0.07, 0.002),
        ("snapkv", None, 0.2),
    ):
        more = {"density": density, "difference": loss, "interval": (loss / 2, 2 * loss), "changed": 8}
        rows.append(row("text", "nll", variant, 2.5 + loss, recovery=1 - loss, **more))
        rows.append(
            row("quiz", "acc", variant, 0.5 - loss, difference=-loss, changed=1, mcnemar=0.01, recovery=1 - 2 * loss)
        )
    return Result(
        run=RunInfo("a/<b>", "Two & two.", "0" * 64, None, {"name": "tiny", "fingerprint": "f"}, "float32"),
        variants=[
            VariantInfo("dense", None, None, None, None, None, None, {}),
            VariantInfo("fisher-best-16", "fisher", "best", None, 16, None, None, {}),
            VariantInfo("fisher-best-64", "fisher", "best", None, 64, None, None, {}),
            VariantInfo("snapkv", None, None, None, None, 0.05, "snapkv", {}),
        ],
        tasks=[
            TaskInfo("text", "perplexity", "1", "0", "0", 512, 9, 8, {"nll": NLL}),
            TaskInfo("quiz", "lm_eval", "1", "0", "0", 512, 100, 8, {"acc": ACC}),
        ],
        measurements=rows,
        summary=[Summary("fisher-best-16", 2, 0.985, 0.98, "quiz")],
        warnings=["quiz: dense acc is 0.5, no better than guessing; left out of means."],
        provenance={"versions": {"torch": "2"}, "device": "cpu", "processor": "some, 2 cores"},
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "a"
    write_result(folder, example())
    (folder / "recipe.yaml").write_text("title: x\n")
    times = [{"task": "text", "variant": v, "ms_per_token": 5.0 + i, "cache_bytes": 2.0**20, "seconds": 1.0}
             for i, v in enumerate(("dense", "fisher-best-16", "snapkv"))]  # fmt: skip
    write_json(folder / "timing.json", {"schema": TIMING_SCHEMA, "device": "cpu", "rows": times})
    hidden = tmp_path / "results" / "_scratch" / "b" / "result"
    write_result(hidden, example())
    (hidden / "recipe.yaml").write_text("")
    return tmp_path / "results"


def test_a_result_survives_the_disk(results: Path) -> None:
    read = read_result(results / "a" / "result.json")
    assert json.loads(json.dumps(read.to_json())) == json.loads(json.dumps(example().to_json()))
    (results / "a" / "result.json").write_text('{"schema": "geosparse.eval/1", "run": {}}')
    with pytest.raises(GeosparseError, match="not complete"):
        read_result(results / "a" / "result.json")


def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# X\n\n<!-- eval: a/<b> -->\nold\n<!-- end -->\nrest\n")
    written = make(results, [readme])
    assert {path.name for path in written} == {"report.html", "pareto.png", "README.md"}
    first = {path: path.read_bytes() for path in written}
    for path in written:
        if path != readme:
            path.unlink()
    make(results, [readme])
    assert {path: path.read_bytes() for path in written} == first
    assert "| fisher-best-16 | 2.51 (+0.01*) | 6 | 1 | 0.49 (-0.01*) | 0.985 | 0.980 |" in readme.read_text()
    assert readme.read_text().endswith("<!-- end -->\nrest\n")
    assert "_scratch" not in (results / "README.md").read_text()
    assert main(["--results", str(results), "--documents", str(readme)]) == 0
    assert main(["--results", str(results), "--documents", str(tmp_path / "none.md")]) == 2


def test_the_page_stands_alone_and_is_well_formed(results: Path) -> None:
    make(results)
    text = (results / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "a/&lt;b&gt;" in text

    class Balance(HTMLParser):
        stack: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "br"):
                self.stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    balance = Balance()
    balance.feed(text)
    assert balance.stack == []


def test_panels_hold_every_measured_variant(results: Path) -> None:
    loaded = Loaded.of(results / "a")
    density, speed = density_panels(loaded), speed_panels(loaded)
    assert [panel.title for panel in density] == ["text", "quiz"]
    # A peer counts nothing: it stands where it was asked to be.
    assert [(p.series, p.x) for p in density[0].points] == [
        ("fisher · best", 0.02), ("fisher · best", 0.07), ("snapkv", 0.05),
    ]  # fmt: skip
    assert [(p.x, p.y) for p in speed[0].points] == [(5.0, 0.0), (6.0, 0.01), (7.0, 0.2)]
    assert [task for task, _ in recovery_panel(loaded)] == ["text", "quiz"]
    hues = colours([p.series for p in density[0].points])
    chart = panel_chart(density[0], hues)
    places = [float(mark.x) for mark in chart.marks]
    assert places[0] < places[2] < places[1]
    assert [name for name, _ in chart.legend] == ["fisher · best", "snapkv"]
    assert [line.text for line in chart.marks[2].tip.lines][:2] == ["snapkv", "nll 2.7000"]
    rows = recovery_panel(loaded)
    strips = strips_chart(rows, hues)
    assert len(strips.marks) == sum(len(points) for _, points in rows)


def test_marks_stand_on_what_matplotlib_drew(results: Path) -> None:
    """The line between the two marks of one series ends at their places."""
    panel = density_panels(Loaded.of(results / "a"))[0]
    chart = panel_chart(panel, colours([p.series for p in panel.points]))
    number = r"([\d.]+)"
    line = rf'd="M {number} {number} \nL {number} {number} \n" clip-path="[^"]*" style="[^"]*opacity'
    drawn = re.search(line, chart.body)
    assert drawn is not None
    ends = [float(each) for each in drawn.groups()]
    marks = [float(place) for mark in chart.marks[:2] for place in (mark.x, mark.y)]
    assert marks == pytest.approx(ends, abs=0.06)


def test_tips_stay_within_the_picture(results: Path) -> None:
    for panel in density_panels(Loaded.of(results / "a")):
        chart = panel_chart(panel, colours([p.series for p in panel.points]))
        width, height = map(float, chart.box.split()[2:])
        for mark in chart.marks:
            left, top, wide, high = map(float, mark.tip[:4])
            assert 0 <= left <= left + wide <= width
            assert 0 <= top <= top + high <= height


def test_pages_of_a_site_lead_to_each_other_and_say_whose_weights(results: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    result = replace(
        example(), run=replace(example().run, recipe="tiny/a", model={"name": "m", "fingerprint": "7655ecec970bc03d"})
    )
    write_result(results / "a", result)
    assert main(["--results", str(results), "--pages", str(site)]) == 0
    assert sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")) == ["index.html", "tiny/a.html"]
    assert '<a href="tiny/a.html">tiny/a</a>' in (site / "index.html").read_text()
    for name in ("index.html", "tiny/a.html"):
        assert "4-bit weights (Q4_1) unpacked to floating point" in (site / name).read_text()
    assert not (results / "report.html").exists()
    assert main(["--results", str(tmp_path / "none"), "--pages", str(site)]) == 2


def test_a_table_of_no_result_is_an_error(results: Path, tmp_path: Path) -> None:
    with pytest.raises(GeosparseError, match="no result"):
        renew("<!-- eval: nothing -->\n<!-- end -->", {"a": Loaded.of(results / "a")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeosparseError, match="run one first"):
        make(tmp_path / "empty")


def test_eight_methods_have_eight_colours_and_dense_its_own() -> None:
    names = ["dense", "snapkv", "fisher · best", *"abcdef"]
    found = colours(names)
    assert found["fisher · best"] == 0
    assert len(set(found.values())) == len(names)
    assert len(HUES) == len(FILE.hues) == len(names)


def untimed(result: Result) -> Loaded:
    return Loaded(Path("."), result, {"rows": []})


def test_floors_are_set_in_italics() -> None:
    head, _, dense, *_ = score_table(untimed(example())).splitlines()
    assert head == "|  | text: nll, n = 8 | *quiz*: acc, n = 8 | mean recovery | worst task's recovery |"
    assert dense == "| dense | 2.5 ± 0.1 | 0.5 ± 0.05 |  |  |"
    assert "*quiz*" not in score_table(untimed(replace(example(), warnings=[])))


def test_many_tasks_go_down() -> None:
    few = replace(example(), variants=example().variants[:2])
    few = replace(few, measurements=[row for row in few.measurements if row.variant in ("dense", "fisher-best-16")])
    assert "| text: nll, n = 8 | 2.5 ± 0.1 | 2.51 (+0.01*) |" in score_table(untimed(few))


def test_times_stand_beside_the_scores(results: Path) -> None:
    loaded = Loaded.of(results / "a")
    head, _, dense, first, second, peer = score_table(loaded).splitlines()
    assert head.startswith("|  | text: nll, n = 8 | ms per token | cache, MiB | *quiz*: acc, n = 8 |")
    assert dense.startswith("| dense | 2.5 ± 0.1 | 5 | 1 | 0.5 ± 0.05 |")
    assert first.startswith("| fisher-best-16 | 2.51 (+0.01*) | 6 | 1 |")
    assert second.startswith("| fisher-best-64 | 2.502 (+0.002*) |  |  |")
    loaded.timing["rows"][1]["ms_per_token_torch_products"] = 9.0
    head, _, dense, first, second, peer = score_table(loaded).splitlines()
    assert head.startswith("|  | text: nll, n = 8 | ms per token | ms, weights multiplied by torch | cache, MiB |")
    assert dense.startswith("| dense | 2.5 ± 0.1 | 5 | 5 | 1 |")
    assert first.startswith("| fisher-best-16 | 2.51 (+0.01*) | 6 | 9 | 1 |")
    assert peer.startswith("| snapkv | 2.7 (+0.2*) | 7 | 7 | 1 |")
    for row, ratio in zip(loaded.timing["rows"], (1.0, 2.5, 2.004), strict=False):
        row["times_dense"] = ratio
    head, _, dense, first, second, peer = score_table(loaded).splitlines()
    assert "| ms per token | times as fast as dense, in turns | ms, weights multiplied by torch |" in head
    assert first.startswith("| fisher-best-16 | 2.51 (+0.01*) | 6 | 2.50 | 9 | 1 |")
    assert peer.startswith("| snapkv | 2.7 (+0.2*) | 7 | 2.00 | 7 | 1 |")


def test_the_committed_tables_are_those_of_the_committed_results() -> None:
    found = {loaded.result.run.recipe: loaded for loaded in find(ROOT / "results")}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert GENERATED_TABLE.search(text)
        assert renew(text, found) == text
