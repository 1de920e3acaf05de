"""`geosparse export`: a plan in the formats that others read; each says what it cannot hold.

The formats were read from the sources of NVIDIA/kvpress (`kvpress/presses/lukv_press.py`) and mit-han-lab/duo-attention
(`duo_attn/utils.py`); none of their code is here and none of it is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError, did_you_mean
from ..utils.files import check_writable, read_json, write_atomic, write_json
from .model_folder import save_plan

# LUKVPress looks up one of 99 rows by its compression ratio in percent.
RATIOS = 99
# What the tables that DuoAttention publishes were trained with: attention sinks and recent tokens of a streaming head.
SINK_SIZE, RECENT_SIZE = 128, 256


class Export(NamedTuple):
    """The files written and one sentence: what the format cannot express."""

    files: list[Path]
    note: str


def export_plan(plan: Plan, format: str, out: Path | str) -> Export:
    """Write `plan` to `out` in one of `FORMATS`.

    Raises:
        GeosparseError: An unknown format, or an output that cannot be written.
    """
    if format not in FORMATS:
        raise GeosparseError(f"Unknown format {format!r}: {did_you_mean(format, FORMATS)}")
    return FORMATS[format](plan, Path(out))


def to_csv(plan: Plan, out: Path) -> Export:
    """A table with one row per query head: layer, head, kv_head (the one whose keys it reads), n_keep."""
    group = plan.model.heads // plan.model.kv_heads
    rows = [
        f"{layer},{head},{head // group},{n}\n"
        for layer, row in enumerate(plan.n_keep.tolist())
        for head, n in enumerate(row)
    ]
    file = _write_text(out, "layer,head,kv_head,n_keep\n" + "".join(rows))
    return Export(
        [file],
        "The table holds neither tail, selector and growth nor the model that the plan is for: keep the plan too.",
    )


def to_model_folder(plan: Plan, out: Path) -> Export:
    """The plan in a model's folder, named by its config.json where there is one; `geosparse.find_plan` reads it."""
    return Export(
        save_plan(plan, out),
        "transformers loads the folder as before and ignores the plan: apply it with geosparse.find_plan(folder) and "
        "geosparse.sparsify_.",
    )


def to_kvpress(plan: Plan, out: Path) -> Export:
    """The budget curve of kvpress' LUKVPress: a .npy file `[99, layers, kv_heads]` fp32 of shares to evict.

    Row r is what LUKVPress evicts at a compression ratio of (r + 1) / 100. A plan is one point of that curve, so every
    row holds the same share, 1 - N / reference length, with N the largest of the query heads that read the KV head: a
    cache that keeps fewer cannot give that head its tokens.
    """
    import numpy as np

    keep = (kv_budgets(plan).double() / plan.reference_length).clamp_max(1.0)
    curve = (1.0 - keep).float().expand(RATIOS, *keep.shape).contiguous().numpy()
    buffer = io.BytesIO()
    np.save(buffer, curve, allow_pickle=False)
    file = write_atomic(out, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return Export(
        [file],
        "kvpress evicts once, for all query heads of a KV head and as a share of the context: the choice per query, "
        "N per query head, its law of growth, the selector and the tail are lost; LUKVPress evicts "
        f"{float(curve[0].mean(dtype=np.float64)):.4f} of the cache at any compression ratio above 0 (set "
        "press._budget_curves = numpy.load(file)).",
    )


def to_duo_attention(plan: Plan, out: Path) -> Export:
    """The folder that DuoAttention loads: full_attention_heads.tsv, `[layers, kv_heads]` in 0..1, and config.json.

    A head's score is log N / log(reference length), with N the largest of the query heads that read the KV head:
    0 keeps one token, 1 keeps all. DuoAttention gives the full context to the heads with the highest scores.
    """
    config = out / "config.json"
    sizes = {"sink_size": SINK_SIZE, "recent_size": RECENT_SIZE}
    _refuse_foreign(config, set(sizes))
    scores = (kv_budgets(plan).double().log() / math.log(max(plan.reference_length, 2))).clamp(0.0, 1.0)
    lines = ["\t".join(f"{score:.9e}" for score in row) + "\n" for row in scores.tolist()]
    files = [_write_text(out / "full_attention_heads.tsv", "".join(lines)), write_json(config, sizes)]
    return Export(
        files,
        "DuoAttention knows only full heads and streaming heads (sinks and recent tokens): N serves to order the KV "
        f"heads, and the sizes {SINK_SIZE} and {RECENT_SIZE} in config.json are its published ones, not the plan's.",
    )


FORMATS: dict[str, Callable[[Plan, Path], Export]] = {
    "csv": to_csv,
    "hf": to_model_folder,
    "kvpress": to_kvpress,
    "duo-attention": to_duo_attention,
}


def kv_budgets(plan: Plan) -> torch.Tensor:
    """The largest N among the query heads of each KV head, `[layers, kv_heads]` int64."""
    model = plan.model
    return plan.n_keep.view(model.layers, model.kv_heads, model.heads // model.kv_heads).amax(-1)


def _refuse_foreign(path: Path, keys: set[str]) -> None:
    """DuoAttention and transformers both call their file config.json: never replace a model's."""
    check_writable(path)
    if path.exists():
        old = read_json(path, "configuration")
        if not isinstance(old, dict) or old.keys() != keys:
            raise GeosparseError(f"{path} belongs to something else, perhaps a model: give another folder.")


def _write_text(path: Path, text: str) -> Path:
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
