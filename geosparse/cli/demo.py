"""`geosparse demo`: profile, plan, sparsify and measure one model, and write a report that shows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..artifacts.plan import Plan, PlanTail
from ..artifacts.profile import Profile
from ..errors import GeosparseError
from ..hf.layers import context_limit
from ..hf.loading import load_model
from ..measure.loss import density, excess, policy_label, served, sparse_nll, summary, token_nll
from ..measure.speed import WARMUP, bench
from ..plan.make_plan import DEFAULT_TAIL, make_plan
from ..plan.policies import DEFAULT_POLICY
from ..profile.profiler import ProfileConfig, config_json, profile_model
from ..reports.demo import require_plots, save_frontier_png, terminal_table, write_report
from ..text import load_texts, text_sha256, token_windows
from ..utils.files import check_writable, write_json
from ..utils.provenance import command_line, device_name, versions

SCHEMA = "geosparse.result/1"
BUDGETS = (16, 32, 64)
MAIN_BUDGET = 32
# Uniform with the renormalised tail is plain top-N, with the plan's tail it shows what the split over heads adds; the
# control stands beside the baseline with its own tail.
VARIANTS: tuple[tuple[str, PlanTail], ...] = (
    ("uniform", "renormalize"),
    ("permuted", "renormalize"),
    ("uniform", DEFAULT_TAIL),
    (DEFAULT_POLICY, DEFAULT_TAIL),
)
CALIBRATION = "pydoc:calibration"
TEST = "pydoc:test"
SPEED_CONTEXT = 1024
SPEED_TOKENS = 16


def run_demo(
    out: Path,
    model_name: str = "smollm2-135m",
    calibration: str = CALIBRATION,
    text: str = TEST,
    config: ProfileConfig | None = None,
    windows: int = 4,
    show_progress: bool = False,
) -> dict[str, Any]:
    """The whole chain into the folder `out`: profile.safetensors, plan.json, result.json, report.html, frontier.png.

    Args:
        out: Folder; created. A profile in it that fits the model, text and configuration is used again.
        model_name: What `load_model` takes.
        calibration: Text for the profile, as `load_texts` takes it.
        text: Text for the scores; must not be the calibration text.
        config: How to profile.
        windows: Test windows of the profile's length.
        show_progress: Progress bars and a line per step on a terminal.

    Returns:
        The content of result.json.

    Raises:
        GeosparseError: Bad input, an output that cannot be written, or matplotlib missing.
    """
    started = time.perf_counter()
    require_plots()
    config = ProfileConfig() if config is None else config
    for name in ("profile.safetensors", "plan.json", "result.json", "report.html", "frontier.png"):
        check_writable(out / name)
    calibration_texts, test_texts = load_texts(calibration), load_texts(text)
    if text_sha256(calibration_texts) == text_sha256(test_texts):
        raise GeosparseError(f"The test text {text} is the calibration text: give another one.")
    model, tokenizer = load_model(model_name, dtype="float32")
    test = token_windows(tokenizer, test_texts, config.longest, windows)
    profile = _profile(out / "profile.safetensors", model, tokenizer, calibration_texts, config, show_progress)
    plan = make_plan(profile, MAIN_BUDGET)
    plan.save(out / "plan.json")
    dense = token_nll(model, test, "dense", show_progress)
    rows = [
        _row(model, make_plan(profile, budget, policy, tail), test, dense, show_progress)
        for budget in BUDGETS
        for policy, tail in VARIANTS
    ]
    limit = context_limit(model)
    room = SPEED_CONTEXT if limit is None else limit - SPEED_TOKENS - WARMUP
    prompt = token_windows(tokenizer, test_texts, min(SPEED_CONTEXT, config.longest, room), 1)[0]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "model": profile.model.to_json() | {"name": model_name},
        "protocol": {
            "length": config.longest,
            "windows": test.shape[0],
            "tokens": dense.numel(),
            "text": text,
            "calibration_text": calibration,
            "calibration_windows": profile.windows,
        },
        "dense": summary(dense),
        **served(model, plan),
        "rows": rows,
        "kinds": plan.kinds,
        "speed": bench(model, plan, prompt, SPEED_TOKENS, show_progress),
        "provenance": versions()
        | {
            "device": device_name(model.device),
            "command": command_line(),
            "model_fingerprint": profile.model.fingerprint,
            "text_sha256": text_sha256(test_texts),
            "calibration_sha256": text_sha256(calibration_texts),
            "seconds": round(time.perf_counter() - started, 1),
        },
    }
    write_json(out / "result.json", result)
    save_frontier_png(out / "frontier.png", result)
    write_report(out / "report.html", result, plan.n_keep.tolist(), title=f"geosparse: {model_name}")
    return result


def _profile(
    path: Path, model: Any, tokenizer: Any, texts: list[str], config: ProfileConfig, show_progress: bool
) -> Profile:
    """The profile in `path` where it is of this model, text, configuration and version; else a fresh one."""
    from ..hf.identity import identify

    if path.is_file():
        try:
            old = Profile.load(path)
        except GeosparseError:
            old = None
        if (
            old is not None
            and old.model.difference(identify(model)) is None
            and old.calibration.get("sha256") == text_sha256(texts)
            and old.config == {key: list(v) if isinstance(v, tuple) else v for key, v in config_json(config).items()}
            and old.provenance == versions()
        ):
            return old
    profile = profile_model(model, tokenizer, texts, config, show_progress=show_progress)
    profile.save(path)
    return profile


def _row(model: Any, plan: Plan, test: torch.Tensor, dense: torch.Tensor, show_progress: bool) -> dict[str, Any]:
    started = time.perf_counter()
    nll, receipt = sparse_nll(model, plan, test, policy_label(plan), show_progress)
    return (
        {"policy": plan.policy, "tail": plan.tail, "mean_keep": plan.mean_keep}
        | summary(nll)
        | excess(dense, nll)
        | density(receipt)
        | {"seconds": round(time.perf_counter() - started, 2)}
    )


def demo_text(result: dict[str, Any], out: Path) -> str:
    """What the terminal shows at the end."""
    return f"{terminal_table(result)}\n\nWrote {out / 'report.html'}, result.json, plan.json and profile.safetensors."
