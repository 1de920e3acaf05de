"""Plans of the study, on synthetic profiles of two kinds of text."""

from dataclasses import replace

import pytest
import torch

from eval.studies.robustness.plans import PLANS, RobustnessStudy
from geosparse.artifacts.profile import BUILT_IN
from geosparse.errors import GeosparseError
from geosparse.text import token_windows

from ....synthetic import synthetic
from ....tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def study():
    model = tiny_model(vocab_size=300)
    profile = synthetic(lengths=(64, 64, 64))
    kinds = ["given", BUILT_IN + "code", BUILT_IN + "logs"]
    profile = replace(profile, calibration=profile.calibration | {"kinds": kinds})
    return RobustnessStudy(model, tiny_tokenizer(), profile, {"python": ("x = 1\n" * 200, token_windows)}, 64, 2)


def test_every_plan_that_needs_no_text_of_its_kind_has_the_mean_asked_for(study):
    for name in ("uniform", "robust", "left-out", "permuted"):
        assert PLANS[name](study, 8, "python").mean_keep == pytest.approx(8), name


def test_the_plan_of_left_out_kinds_is_made_without_those_related_to_the_text(study):
    left_out = PLANS["left-out"](study, 8, "python")
    without = study.profile.of_kinds("given", BUILT_IN + "logs")
    assert torch.equal(left_out.n_keep, PLANS["robust"](replace(study, profile=without), 8, "python").n_keep)
    assert without.windows == 2


def test_an_unknown_plan_is_refused_by_name(study):
    with pytest.raises(GeosparseError, match=r"no plan 'robuts': .*robust"):
        study.excess("robuts", 8, "python")
