"""Envelopes where the law holds, and where it does not."""

import pytest

from eval.studies.geometry import simulation


@pytest.mark.slow
def test_synthetic_coverage_is_at_least_nominal_where_the_law_holds():
    table = simulation.synthetic_coverage(0, (64,), 20)["cases"]
    exact = table["exact, D = 64"]
    # 20 trials of 60 outcomes; a trial's coverage scatters by about 0.05, so their mean by 0.011.
    for metric in ("precision", "recall", "f1"):
        assert exact["simulated"]["coverage"][metric] >= 0.95 - 3 * 0.011
        assert exact["level"]["coverage"][metric] >= 0.95
        assert exact["mean"]["coverage"][metric] >= 0.95
        assert exact["simulated"]["mean_width"][metric] < 0.9
    for case in ("A1 broken, D = 64", "A2 broken, D = 64"):
        assert table[case]["simulated"]["coverage"]["f1"] < exact["simulated"]["coverage"]["f1"]
