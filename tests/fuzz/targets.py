"""What reads files: a sound file for each, how to damage it, and what must hold however it was damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import geosparse as gs
from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import Profile
from geosparse.artifacts.tail_moments import TAIL_ARRAYS
from geosparse.geometry.moments import Moments
from geosparse.hf import aliases
from geosparse.ops import SELECTORS, TAILS
from geosparse.profile.checkpoints import Parts, Window
from geosparse.reports.comparison import compare_plans, describe_comparison
from geosparse.reports.terminal import describe_plan, describe_profile, is_profile
from geosparse.sparsify import break_even

from ..synthetic import synthetic
from ..tiny import VOCABULARY, tiny_model, tiny_tokenizer
from .mutations import damaged_bytes, damaged_json, damaged_safetensors, json_bytes


class Target(NamedTuple):
    """Something that reads a file.

    Attributes:
        path: Where it looks for it.
        sound: Files that it reads.
        damage: From a sound file to a damaged one.
        read: Reads it and uses what it read; may raise GeosparseError and nothing else.
    """

    path: Path
    sound: list[bytes]
    damage: Callable[[random.Random, bytes], bytes]
    read: Callable[[], Any]


def targets(folder: Path) -> dict[str, Target]:
    """All targets, with their sound files in `folder`."""
    return {
        "plan": _plan(folder),
        "profile": _profile(folder),
        "part": _part(folder),
        "model folder": _model_folder(folder),
        "break-evens": _breakevens(folder),
        "cached weights": _cached_weights(folder),
        "text": _text(folder),
    }


def damaged_document(rng: random.Random, blob: bytes) -> bytes:
    """Damage of a JSON file, in its structure two times of three."""
    return json_bytes(damaged_json(rng, json.loads(blob))) if rng.randrange(3) else damaged_bytes(rng, blob)


def sound_profile() -> Profile:
    """A profile of two lengths and two selectors."""
    return synthetic(budgets=(1, 2, 4, 8), lengths=(16, 16, 32), selectors=("topn", "lowbit"), kv_heads=2)


def measured_profile() -> Profile:
    """A profile of a tiny model, with all that a profile may hold."""
    model = tiny_model(vocab_size=len(VOCABULARY))
    text = " ".join(f"word{number}" for number in range(99))
    config = gs.ProfileConfig(length=40, windows=1, queries=4, budgets=(1, 8), kinds=())
    return gs.profile_model(model, tiny_tokenizer(), text, config)


def sound_plans() -> list[Plan]:
    """Plans with every optional part between them."""
    plan = gs.make_plan(sound_profile(), 4)
    shape = plan.n_keep.shape
    places = torch.arange(plan.n_keep.numel()).view(shape)
    verified = {"tolerance": 0.01, "increase": 0.002, "limit": 0.004, "windows": 8, "failed": 1, "search": [{"a": 1}]}
    return [
        plan,
        replace(plan, tail="drop", head_tails=None, growth=None, share_kv=True, n_keep=torch.full(shape, 3)),
        replace(
            plan,
            tail="best",
            head_tails=places % len(TAILS) * 0 + 1,
            head_selectors=places % len(SELECTORS),
            growth=torch.full(shape, 0.25, dtype=torch.float64),
            verified=verified,
        ),
    ]


def _saved(path: Path, artifacts: list[Any]) -> list[bytes]:
    return [artifact.save(path).read_bytes() for artifact in artifacts]


def _plan(folder: Path) -> Target:
    path = folder / "plan.json"

    def read() -> None:
        plan = Plan.load(path)
        describe_plan(plan)
        describe_comparison(compare_plans(plan, plan))
        plan.at(1000)
        assert plan.save(folder / "again.json").stat().st_size

    return Target(path, _saved(path, sound_plans()), damaged_document, read)


def _profile(folder: Path) -> Target:
    path = folder / "profile.safetensors"
    count = 0

    def read() -> None:
        nonlocal count
        count += 1
        is_profile(path)
        describe_profile(Profile.load(path))
        if count % 8 == 0:
            gs.make_plan(Profile.load(path), 4)

    return Target(path, _saved(path, [sound_profile(), measured_profile()]), damaged_safetensors, read)


def _part(folder: Path) -> Target:
    parts = Parts(folder / "parts", {"seed": 0})
    arrays = {name: array[0] for name, array in synthetic(budgets=(1, 2)).arrays.items()}
    arrays |= {name: torch.rand(2) for name in TAIL_ARRAYS}
    sums = Moments(*(torch.rand(2).double() for _ in fields(Moments)))
    parts.save(0, Window(arrays, sums, 2.5))
    (path,) = (folder / "parts").iterdir()

    def read() -> None:
        found = parts.load(0)
        if found is not None:
            assert found.nll == 2.5
            assert all(torch.equal(array, arrays[name]) for name, array in found.arrays.items())
            assert all(torch.equal(getattr(found.moments, f.name), getattr(sums, f.name)) for f in fields(Moments))

    return Target(path, [path.read_bytes()], damaged_safetensors, read)


def _model_folder(folder: Path) -> Target:
    model = folder / "model"
    model.mkdir()
    path = model / "config.json"
    path.write_text('{"model_type": "llama", "num_attention_heads": 4, "hidden_size": 48}')
    from geosparse.integrations.model_folder import save_plan

    save_plan(sound_plans()[0], model)
    (folder / "outside.json").write_bytes((model / "geosparse_plan.json").read_bytes())

    def read() -> None:
        gs.find_plan(model)

    return Target(path, [path.read_bytes()], damaged_document, read)


def _breakevens(folder: Path) -> Target:
    path = folder / "breakeven.json"
    shape = break_even.Shape(4, 2, 8, torch.float32, torch.device("cpu"))
    table = {"schema": break_even.SCHEMA, "shapes": {shape.key: {"topn": 64, "lowbit": break_even.NEVER}}}

    def read() -> None:
        for selector in ("topn", "lowbit"):
            assert break_even.break_even(shape, selector) >= 1

    return Target(path, [json_bytes(table)], damaged_document, read)


def _cached_weights(folder: Path) -> Target:
    cached = folder / "models" / "tiny"
    cached.mkdir(parents=True)
    alias = aliases.Alias("nobody/tiny", 1, "ab" * 32, ())
    (cached / aliases.WEIGHTS).write_bytes(b"weights")
    (cached / "config.json").write_bytes(b"{}")
    files = {path.name: {"sha256": aliases._sha256(path)} for path in cached.iterdir()}
    manifest = json_bytes({"gguf_sha256": alias.gguf_sha256, "wheels": [], "files": files})

    def read() -> None:
        if aliases._intact(cached, alias):
            kept = json.loads((cached / aliases.MANIFEST).read_bytes())
            assert kept["gguf_sha256"] == alias.gguf_sha256
            assert all(kept["files"][name]["sha256"] == entry["sha256"] for name, entry in files.items())

    return Target(cached / aliases.MANIFEST, [manifest], damaged_document, read)


def _text(folder: Path) -> Target:
    path = folder / "text.jsonl"
    lines = b'{"text": "one"}\n"two"\n\n{"id": 3, "body": "three \\u2028 and more"}\n'

    def read() -> None:
        assert all(text.strip() for text in gs.load_texts(path))

    return Target(path, [lines], damaged_bytes, read)
