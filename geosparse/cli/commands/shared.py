"""What several commands share: how models, texts and plans are named, loaded and shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.console import json_text, printable, say

if TYPE_CHECKING:
    from ...artifacts.plan import Plan

Options = argparse.Namespace
Add = Callable[..., object]
"""`ArgumentParser.add_argument` of the command's own parser."""

DEFAULT_MODEL = "smollm2-135m"
MODEL_HELP = "folder, .gguf file, hub id owner/name, or alias: smollm2-135m (default), gemma3-270m"
TEXT_HELP = ".txt or .jsonl file, hf:owner/name[:split], pydoc:calibration|planning|test, or builtin:KIND (code, ...)"


def add_model(add: Add) -> None:
    """The model's name and where to put it."""
    add("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    add("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    add("--device", help="where to put the model, e.g. cuda (default: cpu)")


def load(options: Options) -> tuple[Any, Any]:
    """The model and tokenizer that `add_model` let the user name."""
    from ...hf.loading import load_model

    model, tokenizer = load_model(options.model, dtype=options.dtype, device=options.device)
    mention_missing_kernels(model.get_input_embeddings().weight.device)
    return model, tokenizer


def mention_missing_kernels(device: Any) -> None:
    """Say, once, on standard error that the kernels for a device are missing, and how to get them."""
    from ...ops.serving import first_mention

    if sentence := first_mention(device):
        say(f"geosparse: warning: {sentence}")


def load_plan(path: Path | None) -> Plan | None:
    """The plan, where the user gave one."""
    from ...artifacts.plan import Plan

    return None if path is None else Plan.load(path)


def show(options: Options, data: Any, text: str) -> None:
    """Print a result: JSON with `--json`, else words."""
    print(json_text(data) if options.json else printable(text), end="" if options.json else "\n")


def listed(names: Iterable[str], default: str, remark: str = "default") -> str:
    """Names for a help text, one of them with a remark."""
    return ", ".join(f"{name} ({remark})" if name == default else name for name in names)


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(text.split(","))
