"""Hide a number in a long text and ask for it, with dense attention and with a plan.

    python examples/long_context.py [MODEL] [--context 4096]

The profile has windows as long as the context: budgets beyond the longest profiled window would be extrapolated. The
default model is SmolLM2-135M-Instruct from a Q4_1 file, unpacked to fp32, which was trained for 8,192 tokens.
"""

import argparse
import time

import torch

import geosparse as gs

FACT = "The secret number of the lighthouse is 48213."
QUESTION = "Question: What is the secret number of the lighthouse?\nAnswer: The secret number of the lighthouse is"


def main() -> None:
    parser = argparse.ArgumentParser(description="A fact in a long context, dense and sparse.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--context", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--mean-keep", type=float, default=64, help="tokens kept per head, on average")
    options = parser.parse_args()

    model, tokenizer = gs.load_model(options.model, dtype="float32")
    lengths = (options.context // 4, options.context)
    config = gs.ProfileConfig(lengths=lengths, windows=4)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config, show_progress=True)
    plan = gs.make_plan(profile, mean_keep=options.mean_keep)

    prompt = haystack(tokenizer, options.context)
    print("dense: ", answer(model, tokenizer, prompt))
    with gs.sparsified(model, plan) as receipt:
        print("sparse:", answer(model, tokenizer, prompt))
    print(f"density {receipt.density:.4f}")


def haystack(tokenizer, context: int) -> torch.Tensor:
    """Prose of `context` tokens `[1, context]` with the fact a third into it and the question at the end."""
    fact, question = (tokenizer.encode(text, add_special_tokens=False) for text in (f" {FACT} ", f"\n\n{QUESTION}"))
    prose = gs.token_windows(tokenizer, gs.load_texts("pydoc:test"), context, 1)[0].tolist()
    prose = prose[: context - len(fact) - len(question)]
    third = len(prose) // 3
    return torch.tensor([prose[:third] + fact + prose[third:] + question])


def answer(model, tokenizer, prompt: torch.Tensor) -> str:
    """The first tokens that the model writes, and the seconds it took."""
    start = time.perf_counter()
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    words = tokenizer.decode(output[0, prompt.shape[1] :]).split("\n")[0].strip()
    return f"{words!r} ({time.perf_counter() - start:.1f} s)"


if __name__ == "__main__":
    main()
