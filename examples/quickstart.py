"""Profile, plan and run a small model sparsely, and see what that costs.

    python examples/quickstart.py [MODEL]

The default model is SmolLM2-135M-Instruct from a Q4_1 file (93 MB, fetched once), unpacked to fp32. It takes a few
minutes on two cores.
"""

import argparse

import geosparse as gs


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile, plan, sparsify, score.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window")
    parser.add_argument("--windows", type=int, default=4, help="windows to profile and to score")
    options = parser.parse_args()

    model, tokenizer = gs.load_model(options.model, dtype="float32")
    config = gs.ProfileConfig(length=options.length, windows=options.windows)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)

    # 32 tokens per head on average: where they help most, and the same number for every head.
    plans = {
        "plan": gs.make_plan(profile, mean_keep=32),
        "uniform softmax": gs.make_plan(profile, mean_keep=32, policy="uniform", tail="renormalize"),
    }
    windows = gs.token_windows(tokenizer, gs.load_texts("pydoc:test"), options.length, options.windows)
    for name, plan in plans.items():
        sparse = gs.score(model, plan, windows)["sparse"]
        low, high = sparse["excess_nll_interval"]
        print(f"{name}: {sparse['excess_nll']:+.4f} nats over dense attention (95 %: {low:+.4f} to {high:+.4f})")

    ids = tokenizer("Sparse attention keeps", return_tensors="pt")
    with gs.sparsified(model, plans["plan"]) as receipt:
        answer = model.generate(**ids, max_new_tokens=20, do_sample=False)
    print(tokenizer.decode(answer[0]))
    print(f"density {receipt.density:.3f}")


if __name__ == "__main__":
    main()
