"""The table of the study, from numbers that can be added in the head."""

import pytest

from eval.studies.robustness.table import describe, summarised

ROWS = {
    "uniform 8": {"code": [0.2, 0.2], "logs": [0.1, 0.3]},
    "robust 8": {"code": [0.1, 0.1], "logs": [0.4, 0.4]},
}


def test_a_plan_is_held_against_the_uniform_one_of_the_same_n():
    summary = summarised(ROWS)
    assert summary["robust 8"]["mean"] == pytest.approx(0.25)
    assert summary["robust 8"]["worst"] == {"text": "logs", "excess_nll": pytest.approx(0.4)}
    assert summary["robust 8"]["not_held"] == ["logs"]
    assert summary["uniform 8"]["not_held"] == []
    assert summary["uniform 8"]["kinds"] == 2


def test_a_text_without_a_number_is_a_dash():
    rows = ROWS | {"left-out 8": {"code": [0.3]}}
    lines = describe({"rows": rows, "summary": summarised(rows)}).splitlines()
    assert next(line for line in lines if line.startswith("logs")).split() == ["logs", "0.2000", "0.4000", "-"]
