"""The identity of a model: what decides whether a profile or plan fits it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..errors import GeosparseError
from ..utils.files import is_count, require
from .adapters import inner_model
from .held import FLOATS, held

SAMPLES_PER_TENSOR = 1024
# Below this, fp16 cannot hold every bf16 value; such weights are read as zero so that the dtype does not matter.
SMALLEST = 2.0**-16
MAX_HEADS = 1 << 22


@dataclass(frozen=True)
class ModelIdentity:
    """What makes a profile or plan fit a model: its shapes and a fingerprint of its weights."""

    name: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    fingerprint: str

    def difference(self, other: ModelIdentity) -> str | None:
        """The first thing in which two models differ, as "what (here, there)"; their names do not count."""
        for field in ("architecture", "layers", "heads", "kv_heads", "head_dim", "fingerprint"):
            value, other_value = getattr(self, field), getattr(other, field)
            if value != other_value:
                return f"{field} ({value}, {other_value})"
        return None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def identify(model: Any) -> ModelIdentity:
    """The identity of a loaded model. Raises GeosparseError where the architecture is not supported."""
    from .layers import attention_layers

    model = inner_model(model)
    layers = attention_layers(model)
    return ModelIdentity(
        name=str(getattr(model.config, "_name_or_path", "") or type(model).__name__).rstrip("/").rsplit("/", 1)[-1],
        architecture=type(model).__name__,
        layers=len(layers),
        heads=layers[0].heads,
        kv_heads=layers[0].kv_heads,
        head_dim=layers[0].value_dim,
        fingerprint=weight_fingerprint(model),
    )


def weight_fingerprint(model: Any) -> str:
    """A hash of evenly spaced values of every tensor that decides what the model computes.

    Floating values are rounded to bf16: the same in fp32, bf16 and fp16. Of quantized modules the codes and scales
    count, whatever their class; of adapters those that serve. The dtype of the arithmetic does not count.

    Raises:
        GeosparseError: A tensor is not in memory, or of a class that cannot be read.
    """
    digest = hashlib.sha256()
    for name, value in held(inner_model(model)):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(_sample(name, value))
        else:
            digest.update(f"{name}={value!r}".encode())
    return digest.hexdigest()[:16]


def _sample(name: str, tensor: torch.Tensor) -> bytes:
    """The bytes of evenly spaced elements; floating ones as bf16."""
    if tensor.is_meta:
        raise GeosparseError(f"The weights {name} are on the meta device, which holds no values: load the model again.")
    flat = tensor.reshape(-1)
    picks = torch.linspace(
        0, flat.numel() - 1, min(SAMPLES_PER_TENSOR, flat.numel()), dtype=torch.float64, device="cpu"
    ).long()
    if tensor.dtype not in FLOATS:
        width = flat.element_size()
        codes = flat.contiguous().view(torch.uint8).reshape(-1, width)
        return bytes(codes[picks.to(flat.device)].cpu().numpy().tobytes())
    sample = flat[picks.to(flat.device)].float().cpu()
    sample = torch.where(sample.abs() < SMALLEST, 0.0, sample).bfloat16()
    return bytes(sample.view(torch.int16).numpy().tobytes())


def parse_identity(data: Any) -> ModelIdentity:
    """A ModelIdentity from a JSON object; raises GeosparseError where it is not one."""
    names = {item.name: item.type for item in fields(ModelIdentity)}
    require(isinstance(data, dict) and data.keys() == names.keys(), "the model's identity is not complete.")
    for name in names:
        good = (
            is_count(data[name]) if name in ("layers", "heads", "kv_heads", "head_dim") else isinstance(data[name], str)
        )
        require(good, f"the model's {name} is not valid.")
    identity = ModelIdentity(**data)
    require(identity.layers * identity.heads <= MAX_HEADS, "the model has more heads than any model.")
    require(identity.heads % identity.kv_heads == 0, "the query heads do not divide over the KV heads.")
    return identity
