"""What the geometry commands share: arguments, windows, the head of a result, the way it is shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from geosparse.errors import GeosparseError
from geosparse.hf.identity import identify
from geosparse.hf.loading import load_model
from geosparse.profile.sampling import sample_positions
from geosparse.text import load_texts, text_sha256, token_windows
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import check_writable, write_json
from geosparse.utils.progress import track
from geosparse.utils.provenance import device_name, versions

from .attention_rows import Visit, visit_attention_rows


class Text(NamedTuple):
    """A text and where it comes from."""

    name: str
    sha256: str
    texts: list[str]


def parser(name: str, what: str) -> Parser:
    """The arguments that every study takes."""
    parser = Parser(prog=f"python -m eval.studies.geometry.{name}", description=what)
    add = parser.add_argument
    add("model", help="folder, hub id, or alias: smollm2-135m, gemma3-270m")
    add("--text", default="pydoc:calibration", help=".txt or .jsonl file, hf:owner/name, or pydoc:part")
    add("--other", default="pydoc:test", help="a second text, disjoint from the first")
    add("--length", type=whole(8), default=1024, help="tokens per window (1024)")
    add("--windows", type=whole(1), default=8, help="windows of each text, evenly spaced (8)")
    add("--queries", type=whole(1), default=64, help="query positions sampled per window (64)")
    add("--seed", type=whole(0), default=0, help="seed of all sampling (0)")
    add("--dtype", default="float32", help="dtype of the model (float32)")
    add("--device", help="where to put the model (default: cpu)")
    add("--out", type=Path, required=True, help=f"folder for {name}.json")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def main(
    name: str,
    options: argparse.Namespace,
    study: Callable[[Any, Any, dict[str, Text], argparse.Namespace], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> int:
    """Run `study`, write `name`.json into the folder `--out`, print it; exit code 2 on a mistake of the user's."""

    def command() -> None:
        path = check_writable(options.out / f"{name}.json")
        texts = {role: read_text(getattr(options, role)) for role in ("text", "other")}
        if texts["text"].sha256 == texts["other"].sha256:
            raise GeosparseError("--text and --other are the same text: give two disjoint ones.")
        model, tokenizer = load_model(options.model, dtype=options.dtype, device=options.device)
        result = header(name, model, texts, options) | study(model, tokenizer, texts, options)
        write_json(path, result)
        text = json_text(result) if options.json else f"{describe(result)}\nWrote {path}."
        print(text, end="" if options.json else "\n")

    return run_command(f"eval.studies.geometry.{name}", command)


def read_text(source: str) -> Text:
    """A text by its source; the name is the file's, without its folder."""
    texts = load_texts(source)
    return Text(source.rsplit("/", 1)[-1], text_sha256(texts), texts)


def header(name: str, model: Any, texts: dict[str, Text], options: argparse.Namespace) -> dict[str, Any]:
    """What a result says about itself."""
    given = {key: value for key, value in vars(options).items() if key not in {"out", "json", "text", "other"}}
    return {
        "schema": f"geosparse.eval.geometry.{name}/1",
        "model": identify(model).to_json(),
        "texts": {role: {"name": text.name, "sha256": text.sha256} for role, text in texts.items()},
        "options": given,
        "device": device_name(model.device),
        "provenance": versions(),
    }


def windows_of(tokenizer: Any, text: Text, length: int, count: int) -> torch.Tensor:
    """Token windows `[W, L]` of a text."""
    return token_windows(tokenizer, text.texts, length, count)


def each_window(
    model: Any,
    windows: torch.Tensor,
    queries: int,
    seed: int,
    visit: Callable[[int, torch.Generator], Visit],
    what: str,
) -> None:
    """Walk over `windows`; `visit(window, generator)` makes the visitor of each, with sampled query positions."""
    for index, window in enumerate(track(list(windows), what)):
        generator = torch.Generator().manual_seed(1_000_003 * seed + index)
        positions = sample_positions(windows.shape[1], queries, generator)
        visit_attention_rows(model, window, positions, visit(index, generator))


def rounded(values: dict[str, Any], digits: int = 4) -> dict[str, Any]:
    """Numbers as JSON has them: tensors become lists, NaN None, floats a few digits."""
    return {key: _rounded(value, digits) for key, value in values.items()}


def _rounded(values: Any, digits: int) -> Any:
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, dict):
        return rounded(values, digits)
    if isinstance(values, list | tuple):
        return [_rounded(value, digits) for value in values]
    if isinstance(values, float):
        return None if values != values or values in (float("inf"), float("-inf")) else float(f"{values:.{digits}g}")
    return values
