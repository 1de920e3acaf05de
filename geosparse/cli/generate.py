"""Greedy text generation with the sparse model, streamed to the terminal."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..hf.adapters import inner_model
from ..hf.layers import check_context, input_device
from ..hf.nonfinite import ADVICE, first_fault
from ..measure.loss import density, served
from ..sparsify.patch import sparsified
from ..text import check_text
from ..utils.bounds import check_whole


class _Finite:
    """Watches the logits of `model.generate`, and stops it where they hold NaN or infinity above all."""

    def __init__(self) -> None:
        self.broken: int | None = None  # tokens before the first logits at fault

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.broken is None and not bool(torch.isfinite(scores.amax(-1)).all()):
            self.broken = input_ids.shape[1]
        return scores

    def stop(self, input_ids: torch.Tensor, scores: torch.Tensor, **rest: object) -> torch.Tensor:
        """Which sequences end here."""
        return torch.full((len(input_ids),), self.broken is not None, device=input_ids.device, dtype=torch.bool)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    plan: Plan | None,
    max_new_tokens: int,
    *,
    chat: bool = False,
    stream: bool = False,
    prefill: str = "exact",
    dense_below: int | Literal["measured"] = 0,
) -> dict[str, Any]:
    """Continue `prompt` greedily through `model.generate`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Text to continue.
        plan: A plan for it, or None for the dense model.
        max_new_tokens: At most so many tokens.
        chat: Put the prompt into the tokenizer's chat template.
        stream: Print tokens as they come.
        prefill, dense_below: As in `sparsify_`.

    Returns:
        A JSON object: text, prompt_tokens, new_tokens and, with a plan, density, mean_kept and the receipt's notes.

    Raises:
        GeosparseError: A prompt that is empty or no text, no chat template, nothing to generate, or logits that are not
            finite.
    """
    check_text(prompt, "The prompt")
    if not prompt.strip():
        raise GeosparseError("The prompt is empty: give some text to continue.")
    max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
    if chat and not tokenizer.chat_template:
        raise GeosparseError("This tokenizer has no chat template: leave out --chat.")
    if chat:
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    else:
        ids = tokenizer(prompt, return_tensors="pt")
    length = ids["input_ids"].shape[1]
    if not length:
        raise GeosparseError("The prompt holds no token that this tokenizer knows: give other text.")
    model = inner_model(model)
    check_context(model, length + max_new_tokens, "give a shorter prompt or a smaller --max-new-tokens")
    ids = ids.to(input_device(model))
    from transformers import TextStreamer

    guard = _Finite()
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    with (
        nullcontext(None) if plan is None else sparsified(model, plan, prefill, dense_below) as receipt,
        torch.no_grad(),
    ):
        output = model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
            logits_processor=[guard],
            stopping_criteria=[guard.stop],
        )
    if guard.broken is not None:
        where = first_fault(model, output[:, : guard.broken])
        raise GeosparseError(
            f"The logits of token {guard.broken - length + 1} are not finite: the model's weights or its dtype, "
            f"{model.dtype}, overflow on this prompt, first at {where}; {ADVICE}."
        )
    new = output[0, length:]
    return (
        {
            "text": tokenizer.decode(new, skip_special_tokens=True),
            "prompt_tokens": length,
            "new_tokens": len(new),
        }
        | served(model, plan)
        | ({} if receipt is None else density(receipt) | {"notes": receipt.notes})
    )
