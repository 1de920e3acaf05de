"""Gradients of sparse attention against the fp64 reference: `python -m eval.trust.gradients`.

Every tail, selector and kind of gradient checkpointing: the largest relative error, over all parameters of a tiny model
in fp32, against the same model in fp64 whose attention is `reference_attention`. Then a tiny model is trained sparsely,
and once more through the reference path. Ends with exit code 1 where an error is above TOLERANCE, or the losses
are further apart than APART.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import geosparse as gs
from geosparse.hf.interface import ATTRIBUTE
from geosparse.ops import SELECTORS, TAILS, AttentionCall, Selector, Tail
from geosparse.ops.dispatch import SERVING_PATHS
from geosparse.ops.selectors import fits
from geosparse.sparsify.attention import SERVERS
from geosparse.utils.console import Parser, json_text, run_command
from geosparse.utils.files import check_writable, write_json
from geosparse.utils.provenance import versions

from ..harness.threads import torch_threads

SCHEMA = "geosparse.eval.gradients/1"
TOLERANCE = 1e-4
"""Largest relative error of a gradient."""
APART = 1e-3
"""Largest relative difference of the losses after training; a token chosen otherwise at a near tie is within it."""
CHECKPOINTING: dict[str, dict[str, bool] | None] = {
    "none": None,
    "non-reentrant": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
}
LENGTH = 40  # two complete pages of an index and a part
TRAINING_STEPS = 50


class GradientCase(NamedTuple):
    """A plan's words, a kind of checkpointing, and how far its gradients are off."""

    tail: str
    selector: str
    checkpointing: str
    error: float


def tiny_model(seed: int = 0) -> Any:
    """Two layers of six heads in two KV groups, fp32, in training mode; attention is not uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=128,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj")):
                parameter.mul_(8.0)
    return model.train()


def text(batch: int, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    """Random tokens `[batch, length]`."""
    return torch.randint(
        3, 128, (batch, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu"
    )


def varied_plan(model: Any, tail: Tail, selector: Selector) -> gs.Plan:
    """Every head another budget, from 3 tokens on, below the text's length."""
    plan = gs.Plan.uniform(model, 3, tail, selector=selector)
    plan.n_keep.add_(torch.arange(plan.n_keep.numel(), dtype=torch.int64, device="cpu").view_as(plan.n_keep))
    return plan


class _ByReference:
    """A handler whose attention is the fp64 reference."""

    def __init__(self, handler: Any) -> None:
        handler.servers = SERVERS | {"selected": SERVING_PATHS["reference"]}
        self.handler = handler

    def __call__(self, module: Any, call: AttentionCall) -> torch.Tensor:
        output: torch.Tensor = self.handler(module, call)
        return output.to(call.query.dtype)


@contextmanager
def by_reference(model: Any, plan: gs.Plan) -> Iterator[gs.Receipt]:
    """`sparsified` with the reference in the place of the path that would serve."""
    with gs.sparsified(model, plan) as receipt:
        for module in model.modules():
            if ATTRIBUTE in module.__dict__:
                module.__dict__[ATTRIBUTE] = _ByReference(module.__dict__[ATTRIBUTE])
        yield receipt


def gradients(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of the mean loss on `ids`, one tensor per parameter."""
    model.zero_grad(set_to_none=True)
    model(ids, labels=ids, use_cache=False).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def _checkpoint(model: Any, settings: dict[str, bool]) -> None:
    """Gradient checkpointing, by the name that this release of transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def relative_error(actual: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> float:
    """The largest, over tensors, of the difference's norm over the true norm."""
    pairs = zip(actual, true, strict=True)
    return max(float((one.double() - other).norm() / other.norm()) for one, other in pairs)


def cases(tails: Sequence[Tail] = TAILS, selectors: Sequence[Selector] = SELECTORS.names) -> Iterator[GradientCase]:
    """Each combination of words with each kind of checkpointing."""
    model, ids = tiny_model(), text(2)
    exact = copy.deepcopy(model).double()
    for selector in selectors:
        for tail in tails:
            if not fits(selector, tail):
                continue  # no plan says so: what scores nothing knows no missing mass
            plan = varied_plan(model, tail, selector)
            with by_reference(exact, varied_plan(exact, tail, selector)):
                true = gradients(exact, ids)
            for name, settings in CHECKPOINTING.items():
                served = copy.deepcopy(model)
                if settings is not None:
                    _checkpoint(served, settings)
                with gs.sparsified(served, plan):
                    actual = gradients(served, ids)
                yield GradientCase(tail, selector, name, relative_error(actual, true))


def train(model: Any, steps: int, rate: float = 0.05) -> list[float]:
    """The loss before each step of gradient descent on the same two texts."""
    optimizer, ids, losses = torch.optim.SGD(model.parameters(), lr=rate), text(2, seed=1), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def trained(steps: int = TRAINING_STEPS, tail: Tail = "blend50", selector: Selector = "topn") -> dict[str, float | int]:
    """The losses of a model that is trained sparsely and of one trained through the reference path."""
    losses = []
    for scope in (gs.sparsified, by_reference):
        model = tiny_model()
        with scope(model, varied_plan(model, tail, selector)):
            losses.append(train(model, steps))
    sparse, reference = losses
    return {"steps": steps, "first": reference[0], "sparse": sparse[-1], "reference": reference[-1]}


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 where a gradient is wrong."""
    return run_command("eval.trust.gradients", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m eval.trust.gradients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    if options.out is not None:
        check_writable(options.out)
    with torch_threads(1):
        rows, training = list(cases()), trained()
    worst = max(row.error for row in rows)
    apart = abs(training["sparse"] - training["reference"]) / training["reference"]
    result = {
        "schema": SCHEMA,
        "tolerance": TOLERANCE,
        "largest_error": worst,
        "cases": [row._asdict() for row in rows],
        "training": training | {"apart": apart},
        "provenance": versions(),
    }
    if options.out is not None:
        write_json(options.out, result)
    if options.json:
        print(json_text(result), end="")
    else:
        print(f"{'selector':<14}{'tail':<13}" + "".join(f"{name:>15}" for name in CHECKPOINTING))
        width = len(CHECKPOINTING)
        for start in range(0, len(rows), width):
            line = rows[start : start + width]
            print(f"{line[0].selector:<14}{line[0].tail:<13}" + "".join(f"{row.error:>15.1e}" for row in line))
        print(f"largest relative error {worst:.1e} of {len(rows)} cases, at most {TOLERANCE:g} allowed")
        print(
            f"{training['steps']} steps from a loss of {training['first']:.4f}: {training['sparse']:.6f} sparse, "
            f"{training['reference']:.6f} by the reference"
        )
    return 0 if worst <= TOLERANCE and apart <= APART else 1


if __name__ == "__main__":
    raise SystemExit(main())
