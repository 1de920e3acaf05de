"""What a result says."""

from __future__ import annotations

from pathlib import Path

from eval.harness.result import read_result, read_timing


def test_the_result_says_everything(whole: Path) -> None:
    result = read_result(whole / "result.json")
    assert [info.id for info in result.variants] == [
        "dense", "fisher-blend-8", "uniform-renormalize-10pct", "permuted-renormalize-10pct",
    ]  # fmt: skip
    assert {info.samples_effective for info in result.tasks} == {2, 3}
    assert all(info.samples_original >= info.samples_effective for info in result.tasks)
    assert all(len(info.sha256) == len(info.data_sha256) == 64 for info in result.tasks)
    assert result.provenance["versions"]["torch"]
    rows = result.of("perplexity-pydoc-test-300", "nll")
    assert rows["dense"].density is None
    assert rows["dense"].difference is None
    assert 0 < rows["fisher-blend-8"].density < 0.2
    assert rows["fisher-blend-8"].difference == rows["fisher-blend-8"].value - rows["dense"].value
    assert rows["fisher-blend-8"].interval[0] < rows["fisher-blend-8"].difference < rows["fisher-blend-8"].interval[1]
    assert any("no better than guessing" in text for text in result.warnings)
    assert all(each.tasks == 2 for each in result.summary)  # without the needle
    assert {row["variant"] for row in read_timing(whole)["rows"] if "ms_per_token" in row} == set(rows)
    assert sorted(path.name for path in (whole / "plans").iterdir())[0] == "fisher-blend-8-at-128.json"
    assert (whole / "report.html").read_text().startswith("<!doctype html>")
