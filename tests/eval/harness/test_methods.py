"""What of a plan decides the numbers of a method."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from eval.harness.checkout import ROOT
from eval.harness.methods import Method, seen_of
from eval.harness.result import read_result
from geosparse.artifacts.plan import Plan
from geosparse.utils.files import dump_json
from tests.tiny import tiny_model, tokens


def test_the_digest_is_that_of_what_a_method_says_of_its_plan() -> None:
    plan = Plan.uniform(tiny_model(), 8)
    assert Method("sparse", plan).about() == seen_of(plan)
    assert plan.digest() == hashlib.sha256(dump_json(seen_of(plan)).encode()).hexdigest()
    assert replace(plan, policy="another", provenance={"made": "elsewhere"}).digest() == plan.digest()
    assert replace(plan, tail="drop").digest() != plan.digest()


def test_committed_results_name_their_plans() -> None:
    folder = ROOT / "results" / "smoke"
    hashes = {
        (v.id, length): sha for v in read_result(folder / "result.json").variants for length, sha in v.plans.items()
    }
    assert hashes
    for (variant, length), sha in hashes.items():
        assert Plan.load(folder / "plans" / f"{variant}-at-{length}.json").digest() == sha


def test_what_is_kept_is_counted_since_it_was_forgotten() -> None:
    model = tiny_model()
    method = Method("sparse", Plan.uniform(model, 4))
    for _ in range(2):
        method.forget()
        with method.decoding(model), torch.no_grad():
            model(tokens(1, 20))
        heads = model.config.num_hidden_layers * model.config.num_attention_heads
        assert method.counted == (heads * (1 + 2 + 3 + 17 * 4), heads * 210)
    assert Method().about() == {"method": "dense"}
