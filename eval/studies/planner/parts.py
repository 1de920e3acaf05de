"""The tables of `python -m eval.studies.planner`, one function each: rows as JSON objects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import Profile
from geosparse.measure.loss import excess, sparse_nll, summary, token_nll
from geosparse.measure.tolerance import plan_within
from geosparse.plan.make_plan import DEFAULT_TAIL, make_plan
from geosparse.plan.policies import POLICIES
from geosparse.profile.profiler import ProfileConfig, profile_model
from geosparse.text import load_texts, token_windows
from geosparse.utils.intervals import mean_interval

from .top_p import matched_mass, top_p_nll

TableRows = list[dict[str, Any]]
MEAN_BUDGETS = (16.0, 32.0, 64.0)
CONTROLS = ("uniform", "permuted", "random")
SCORED_TOKENS = 512
TOLERANCE = 0.01
HELD_OUT_PARTS = 10
FEW_WINDOWS = 4


@dataclass
class PlannerStudy:
    """What the parts share.

    Attributes:
        model: The model, not sparsified.
        tokenizer: Its tokenizer.
        profile: Of the default calibration, at `length`.
        calibration: Source of the profile's text.
        texts: Sources of held-out text; the first is the main one.
        length: Tokens per window.
        windows: Windows per text.
        long: Profile of several lengths, for the long contexts; None without one.
        seeds: Seeds of the controls.
        losses: Dense losses by text, kept between parts.
    """

    model: Any
    tokenizer: Any
    profile: Profile
    calibration: str
    texts: list[str]
    length: int
    windows: int
    long: Profile | None = None
    seeds: tuple[int, ...] = (0,)
    losses: dict[str, torch.Tensor] = field(default_factory=dict)

    def windows_of(self, source: str) -> torch.Tensor:
        """Token windows of a text."""
        return token_windows(self.tokenizer, load_texts(source), self.length, self.windows)

    def dense(self, source: str) -> torch.Tensor:
        """Dense losses on a text."""
        if source not in self.losses:
            self.losses[source] = token_nll(self.model, self.windows_of(source), f"dense {name_of(source)}", True)
        return self.losses[source]

    def sparse(self, source: str, plan: Plan) -> torch.Tensor:
        """Losses under a plan."""
        label = f"{plan.policy}/{plan.tail} {plan.mean_keep:g}"
        return sparse_nll(self.model, plan, self.windows_of(source), label, True)[0]


def name_of(source: str) -> str:
    """A text's name without its folder."""
    return source.rsplit("/", 1)[-1]


def fractions(study: PlannerStudy) -> TableRows:
    """1: Excess loss of the default plan over that of uniform top-N with the renormalised tail, at equal mean N."""
    rows = []
    for source in study.texts[:2]:
        dense = study.dense(source)
        for mean in MEAN_BUDGETS:
            plans = {
                "plan": make_plan(study.profile, mean),
                "uniform": make_plan(study.profile, mean, "uniform", "renormalize"),
            }
            nll = {name: study.sparse(source, plan) for name, plan in plans.items()}
            rows.append(
                {"text": name_of(source), "mean_keep": mean, "dense": summary(dense)}
                | {name: excess(dense, losses) | summary(losses) for name, losses in nll.items()}
                | {"fraction": ratio(nll["plan"] - dense, nll["uniform"] - dense)}
                | {"perplexity_over_dense": float((nll["plan"] - dense).double().mean().expm1())}
            )
    return rows


def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> float:
    """The ratio of two means."""
    return float(numerator.double().mean() / denominator.double().mean())


def policies(study: PlannerStudy) -> TableRows:
    """4: Every policy and control at 32, the oracle top-p beside them; differences to the default are paired."""
    source, mean = study.texts[0], 32.0
    dense = study.dense(source)
    default = study.sparse(source, make_plan(study.profile, mean))
    rows: TableRows = [{"policy": "fisher", "tail": DEFAULT_TAIL, "mean_keep": mean} | excess(dense, default)]
    for policy in sorted(POLICIES, key=lambda name: (name in CONTROLS, name)):
        if policy == "fisher":
            continue
        seeds = study.seeds if policy in ("permuted", "random") else (0,)
        for seed in seeds:
            nll = study.sparse(source, make_plan(study.profile, mean, policy, seed=seed))
            rows.append(
                {"policy": policy, "tail": DEFAULT_TAIL, "mean_keep": mean, "seed": seed}
                | excess(dense, nll)
                | worse(default, nll)
            )
    nll = study.sparse(source, make_plan(study.profile, mean, share_kv=True))
    rows.append(
        {"policy": "fisher, share_kv", "tail": DEFAULT_TAIL, "mean_keep": mean}
        | excess(dense, nll)
        | worse(default, nll)
    )
    mass = matched_mass(study.model, study.windows_of(source)[:1], mean)
    nll, kept = top_p_nll(study.model, study.windows_of(source), mass, f"top-p {mass:.3f}")
    rows.append(
        {"policy": "oracle top-p", "tail": "centroid", "mass": mass, "mean_keep": kept}
        | excess(dense, nll)
        | worse(default, nll)
    )
    return rows


def worse(default: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """How much worse than the default plan, paired over windows."""
    per_window = (other.double() - default.double()).mean(1).tolist()
    interval = mean_interval(per_window)
    return {"over_default": sum(per_window) / len(per_window), "over_default_interval": interval and list(interval)}


def transfer(study: PlannerStudy) -> TableRows:
    """5: The default plan on texts of other kinds; calibration with 4 windows and with all those of the profile."""
    rows = []
    for mean in MEAN_BUDGETS[:2]:
        plan = make_plan(study.profile, mean)
        for source in study.texts:
            losses = study.sparse(source, plan)
            rows.append({"text": name_of(source), "mean_keep": mean} | excess(study.dense(source), losses))
    fewer = study.profile
    if study.profile.windows > FEW_WINDOWS:
        config = ProfileConfig(length=study.profile.length, windows=FEW_WINDOWS, kinds=())
        fewer = profile_model(study.model, study.tokenizer, load_texts(study.calibration), config, show_progress=True)
    for source in study.texts[:2]:
        for mean in MEAN_BUDGETS[:2]:
            most = study.sparse(source, make_plan(study.profile, mean))
            for profile in (fewer, study.profile):
                losses = most if profile is study.profile else study.sparse(source, make_plan(profile, mean))
                rows.append(
                    {"text": name_of(source), "calibration_windows": profile.windows, "mean_keep": mean}
                    | excess(study.dense(source), losses)
                    | worse(most, losses)
                )
    return rows


def long_context(study: PlannerStudy) -> TableRows:
    """3: The last tokens of long windows, by the law of a profile of several lengths."""
    if study.long is None:
        return []
    rows = []
    for length, density in ((4096, 0.02), (8192, 0.01)):
        plan = make_plan(study.long, density=density, length=length)
        windows = token_windows(study.tokenizer, load_texts(study.texts[1]), length, max(1, study.windows // 4))
        dense = token_nll(study.model, windows, f"dense {length}", True)[:, -SCORED_TOKENS:]
        nll = sparse_nll(study.model, plan, windows, f"sparse {length}", True)[0][:, -SCORED_TOKENS:]
        rows.append(
            {"text": name_of(study.texts[1]), "length": length, "density": density, "windows": len(windows)}
            | {"profiled": list(study.long.distinct_lengths), "predicted": plan.predicted, "scored": SCORED_TOKENS}
            | excess(dense, nll)
            | {"perplexity_over_dense": float((nll - dense).double().mean().expm1())}
        )
    return rows


def calibration(study: PlannerStudy) -> TableRows:
    """8: Predicted damage against measured loss over 12 budgets, and the R^2 of a line in log-log."""
    source = study.texts[0]
    dense = study.dense(source)[:2]
    means = [float(round(8 * 2 ** (step / 3))) for step in range(12)]
    windows = study.windows_of(source)[:2]
    rows: TableRows = []
    for mean in means:
        plan = make_plan(study.profile, mean)
        nll = sparse_nll(study.model, plan, windows, f"calibrate {mean:g}", True)[0]
        rows.append({"mean_keep": mean, "predicted": plan.predicted["damage"]} | excess(dense, nll))
    x = torch.tensor([row["predicted"] for row in rows], dtype=torch.float64, device="cpu")
    y = torch.tensor([row["excess_nll"] for row in rows], dtype=torch.float64, device="cpu")
    good = (x > 0) & (y > 0)
    pair = torch.stack([x[good].log(), y[good].log()])
    slope = float(torch.cov(pair)[0, 1] / torch.cov(pair)[0, 0])
    rows.append({"r_squared": float(torch.corrcoef(pair)[0, 1].square()), "slope": slope, "budgets": int(good.sum())})
    return rows


def tolerance(study: PlannerStudy) -> TableRows:
    """6: A plan made with a tolerance of 1 % on the last text, on disjoint parts of the others (10 in all)."""
    *held_out, source = study.texts
    windows = token_windows(study.tokenizer, load_texts(source), study.length, 6 * study.windows)
    plan = plan_within(
        study.model,
        lambda mean_keep: make_plan(study.profile, mean_keep),
        TOLERANCE,
        windows[::3],
        torch.cat([windows[1::3], windows[2::3]]),
        show_progress=True,
    )
    rows: TableRows = [
        {"plan": "tolerance", "text": name_of(source), "mean_keep": plan.mean_keep, "verified": plan.verified}
    ]
    for index, text in enumerate(held_out):
        count = HELD_OUT_PARTS // len(held_out) + (index < HELD_OUT_PARTS % len(held_out))
        windows = token_windows(study.tokenizer, load_texts(text), study.length, 2 * count)
        dense = token_nll(study.model, windows, f"dense {name_of(text)}", True).double().mean(1)
        sparse = sparse_nll(study.model, plan, windows, name_of(text), True)[0].double().mean(1)
        for part in range(len(windows) // 2):
            pair = slice(2 * part, 2 * part + 2)
            increase = float(sparse[pair].mean() / dense[pair].mean() - 1)
            rows.append({"text": name_of(text), "part": part, "increase": increase, "holds": increase <= TOLERANCE})
    return rows


def cost(study: PlannerStudy) -> TableRows:
    """7: Seconds of a profile of 4 windows and of a plan from it."""
    start = time.perf_counter()
    texts = load_texts("pydoc:calibration")
    profile = profile_model(
        study.model, study.tokenizer, texts, ProfileConfig(length=study.length, windows=4, kinds=())
    )
    middle = time.perf_counter()
    make_plan(profile, 32.0)
    end = time.perf_counter()
    return [{"profile_seconds": middle - start, "plan_seconds": end - middle, "threads": torch.get_num_threads()}]


PARTS: dict[str, Callable[[PlannerStudy], TableRows]] = {
    "1": fractions,
    "3": long_context,
    "4": policies,
    "5": transfer,
    "6": tolerance,
    "7": cost,
    "8": calibration,
}
