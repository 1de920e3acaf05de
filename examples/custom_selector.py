"""A selector of your own: which N tokens a head keeps, measured and planned next to the built-in `topn`.

    python examples/custom_selector.py [MODEL]

The guide "A selector of your own" makes it a package, so that `geosparse plan --selector anchored` finds it. The
default model is SmolLM2-135M-Instruct from a Q4_1 file, unpacked to fp32.
"""

import argparse

import torch

import geosparse as gs
from geosparse.ops.selectors import SELECTORS, selector

ANCHORS = 4


@selector("the first 4 tokens, then the highest scores of the others")
def anchored(view):
    """Many heads give the first tokens much weight: attention sinks."""
    first = view.seen & (view.seen.cumsum(-1) <= ANCHORS)
    return view.highest(view.scores.masked_fill(first, torch.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description="A selector of your own, next to topn.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window")
    parser.add_argument("--windows", type=int, default=4, help="windows to profile and to score")
    options = parser.parse_args()

    SELECTORS.add("anchored", anchored)
    model, tokenizer = gs.load_model(options.model, dtype="float32")
    names = ("topn", "anchored")
    config = gs.ProfileConfig(length=options.length, windows=options.windows, selectors=names)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)
    windows = gs.token_windows(tokenizer, gs.load_texts("pydoc:test"), options.length, options.windows)
    for name in names:
        plan = gs.make_plan(profile, mean_keep=32, selector=name)
        sparse = gs.score(model, plan, windows)["sparse"]
        print(f"{name}: {sparse['excess_nll']:+.4f} nats over dense attention at density {sparse['density']:.3f}")

    ids = tokenizer("Sparse attention keeps", return_tensors="pt")
    with gs.sparsified(model, plan) as receipt:
        model.generate(**ids, max_new_tokens=20, do_sample=False)
    print(*receipt.notes, sep="\n")


if __name__ == "__main__":
    main()
