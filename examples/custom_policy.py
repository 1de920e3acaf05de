"""A policy of your own: how a budget is divided among heads, next to the built-in `fisher`.

    python examples/custom_policy.py [MODEL]

The guide "A policy of your own" makes it a package, so that `geosparse plan --policy early_layers` finds it. The
default model is SmolLM2-135M-Instruct from a Q4_1 file, unpacked to fp32.
"""

import argparse

import torch

import geosparse as gs
from geosparse.plan.policies import POLICIES, policy


@policy("heads of early layers: as fisher, with their errors counted up to twice")
def early_layers(choices, total, seed):
    """Errors of early layers pass through all later ones."""
    curves = choices.curves("fisher")  # [layers, heads, N]: predicted error of each head at N = 1, 2, ...
    weight = torch.linspace(2.0, 1.0, len(curves), dtype=curves.dtype)
    return choices.spend(weight[:, None, None] * curves, total)


def main() -> None:
    parser = argparse.ArgumentParser(description="A policy of your own, next to fisher.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window")
    parser.add_argument("--windows", type=int, default=4, help="windows to profile and to score")
    options = parser.parse_args()

    POLICIES.add("early_layers", early_layers)
    model, tokenizer = gs.load_model(options.model, dtype="float32")
    config = gs.ProfileConfig(length=options.length, windows=options.windows)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)
    windows = gs.token_windows(tokenizer, gs.load_texts("pydoc:test"), options.length, options.windows)
    for name in ("fisher", "early_layers"):
        plan = gs.make_plan(profile, mean_keep=32, policy=name)
        sparse = gs.score(model, plan, windows)["sparse"]
        first, last = (plan.n_keep[layer].double().mean() for layer in (0, -1))
        print(f"{name}: N {first:.1f} in the first layer, {last:.1f} in the last, {sparse['excess_nll']:+.4f} nats")


if __name__ == "__main__":
    main()
