"""Paired statistics against what is known of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval.harness.paired import mcnemar, paired, recovery

RESULTS = Path(__file__).parents[3] / "results"


@given(won=st.integers(0, 60), lost=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    total = won + lost
    tail = sum(math.comb(total, k) for k in range(min(won, lost) + 1)) / 2**total
    assert mcnemar(won, lost) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_paired_differences() -> None:
    dense, variant = [1.0, 0.0, 1.0, 1.0] * 5, [1.0, 1.0, 0.0, 1.0] * 5
    found = paired(dense, variant, "accuracy")
    assert found is not None
    assert (found.difference, found.changed, found.mcnemar) == (0.0, 10, 1.0)
    assert found.interval[0] < 0 < found.interval[1]
    assert paired(dense, dense, "accuracy").interval is None
    assert paired([], [], "accuracy") is None


def test_intervals_of_accuracies_are_possible_and_never_points() -> None:
    assert paired([1.0, 1.0], [0.0, 1.0], "accuracy").interval == (-1.0, 1.0)
    assert paired([1.0, 1.0], [0.0, 0.0], "accuracy").interval is None


def test_few_samples_have_the_wider_interval_of_student() -> None:
    found = paired([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "nll")
    half = scipy.stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert found.mcnemar is None


def test_the_committed_intervals_come_out_of_the_committed_samples() -> None:
    """Of every result in `results/`: what a reader computes from `samples.jsonl` is what `result.json` says."""
    seen = 0
    for path in sorted(RESULTS.rglob("samples.jsonl")):
        result = json.loads(path.with_name("result.json").read_text(encoding="utf-8"))
        rows = {(row["task"], row["metric"], row["variant"]): row for row in result["measurements"]}
        kinds = {
            (info["id"], name): about["kind"] for info in result["tasks"] for name, about in info["metrics"].items()
        }
        samples = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        values = {(each["task"], each["metric"], each["variant"]): each["values"] for each in samples}
        for (task, metric, variant), found in values.items():
            row = rows.get((task, metric, variant))
            if variant == "dense" or row is None or row["interval"] is None:
                continue
            again = paired(values[task, metric, "dense"], found, kinds[task, metric])
            assert again is not None
            assert again.interval == pytest.approx(row["interval"], rel=1e-9, abs=1e-12)
            if row["mcnemar"] is not None:
                assert again.mcnemar == pytest.approx(row["mcnemar"], rel=1e-9)
            seen += 1
    assert seen > 100


def test_recovery() -> None:
    assert recovery(0.5, 0.4, "accuracy", True) == pytest.approx(0.8)
    assert recovery(2.0, 2.1, "nll", False) == pytest.approx(math.exp(-0.1))
    assert recovery(20.0, 25.0, "perplexity", False) == pytest.approx(0.8)
    assert recovery(0.0, 0.4, "accuracy", True) is None
    assert recovery(3.0, 4.0, "other", None) is None
