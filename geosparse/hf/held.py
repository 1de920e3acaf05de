"""The tensors that decide what a model computes, whatever holds them: quantized, adapted, parametrized or plain."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from ..errors import GeosparseError
from .adapters import is_adapted, parts_of
from .modes import evaluating

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLAIN = (torch.Tensor, torch.nn.Parameter)
Held = tuple[str, torch.Tensor | float]
"""A name and a tensor without a subclass, or a number."""


def is_plain(module: torch.nn.Module) -> bool:
    """Whether `module` itself keeps nothing but floating parameters of torch's own class, and saves them as usual."""
    kind = type(module)
    as_usual = (
        kind.state_dict is torch.nn.Module.state_dict
        and kind._save_to_state_dict is torch.nn.Module._save_to_state_dict
        and kind.get_extra_state is torch.nn.Module.get_extra_state
    )
    return (
        as_usual
        and "parametrizations" not in module._modules
        and all(each is None or _is_usual(each) for each in module._parameters.values())
        and not any(True for _ in _packed(module))
        and not any(True for _ in _pruned(module))
    )


def held(model: torch.nn.Module) -> Iterator[Held]:
    """What decides the results of `model`, by name: of plain modules the parameters, of others what they save.

    An adapter that serves counts, one that does not is left out; a name is that which the module has without adapters.

    Raises:
        GeosparseError: A tensor of a class that gives neither its parts nor its values.
    """
    for name, value, owner in sorted(_walk(model, "", set()), key=lambda each: each[0]):
        yield name, value if owner is None else _at_hand(owner, name.rpartition(".")[2], value)


def _walk(module: torch.nn.Module, path: str, visited: set[int]) -> Iterator[tuple[str, Any, torch.nn.Module | None]]:
    """Names, values, and the module that has a parameter, which is only fetched when its turn comes."""
    if id(module) in visited:
        return
    visited.add(id(module))
    children = {name: child for name, child in module._modules.items() if child is not None}
    if is_adapted(module):
        serving = parts_of(module)
        yield from _walk(serving.module, path, visited)
        for name, value in serving.extra:
            yield from ((*part, None) for part in _parts(_join(path, name), value))
        return
    if is_plain(module):
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in visited:
                visited.add(id(parameter))
                yield _join(path, name), parameter, module
    else:
        yield from ((*part, None) for part in _saved(module, path))
        children.pop("parametrizations", None)
    for name, child in children.items():
        yield from _walk(child, _join(path, name), visited)


def _saved(module: Any, path: str) -> Iterator[Held]:
    """What a module that is not plain saves of itself, and what it would not save but needs."""
    with _fetched(module), evaluating(module), torch.no_grad():
        four_bit = {name: each for name, each in module._parameters.items() if getattr(each, "quant_state", None)}
        state = {} if four_bit else module.state_dict()
        children = tuple(f"{name}." for name in module._modules)
        found = {name: value for name, value in state.items() if not name.startswith(children)}
        found |= {name: getattr(module, name) for name in module._modules.get("parametrizations") or ()}
        found |= dict(_packed(module))
        for name, value in _pruned(module):
            found |= {name: value}
            del found[f"{name}_orig"], found[f"{name}_mask"]
        if isinstance(getattr(type(module), "qweight", None), property):  # quantized at each call until it is frozen
            found = {name: value for name, value in found.items() if name.split(".")[0] != "weight"}
            found["weight"] = module.qweight
        if four_bit:
            found |= dict(module._parameters) | {name: _four_bit(each) for name, each in four_bit.items()}
        for name, value in found.items():
            yield from _parts(_join(path, name), value)


def _four_bit(weight: Any) -> dict[str, torch.Tensor]:
    """Codes, scales and values of a 4-bit weight of bitsandbytes, in the order in which they are saved.

    Not from `state_dict`: on CPUs the first call reorders the codes, and saving them would put them back for good.
    """
    state, codes = copy.copy(weight.quant_state), weight.data
    if getattr(state, "packing_format_for_cpu", False):
        scales = state.absmax.T.reshape(-1)
        codes, _ = sys.modules["bitsandbytes.functional"]._convert_weight_packed_for_cpu_inverse(codes, state)
    elif state.nested:
        functional: Any = sys.modules["bitsandbytes.functional"]
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    else:
        scales = state.absmax
    return {"codes": codes.reshape(-1).view(torch.uint8), "scales": scales.float(), "values": state.code}


def _parts(name: str, value: Any) -> Iterator[Held]:
    """The plain tensors and numbers in `value`; what else there is decides nothing."""
    if isinstance(value, torch.nn.Module):
        yield from ((_join(name, part), tensor) for part, tensor in held(value))
    elif isinstance(value, torch.Tensor):
        yield from _plain_parts(name, value.detach() if type(value) in PLAIN else value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _parts(f"{name}.{place}", part)
    elif isinstance(value, int | float):
        yield name, float(value)


def _plain_parts(name: str, tensor: Any) -> Iterator[Held]:
    if type(tensor) in PLAIN:
        yield name, tensor.dequantize() if tensor.is_quantized else tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, _without_class(name, tensor)


def _without_class(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor of a subclass; where it has none of its own, its values as the class gives them."""
    with torch._C.DisableTorchFunctionSubclass(), suppress(RuntimeError, NotImplementedError, TypeError):
        memory = torch.Tensor.as_subclass(tensor, torch.Tensor).detach()
        if memory.is_meta or memory.untyped_storage().data_ptr() or not memory.numel():
            return memory
    values: Any = None
    with suppress(RuntimeError, NotImplementedError, TypeError, AttributeError):
        values = tensor.dequantize()
    if type(values) not in PLAIN:
        kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
        raise GeosparseError(
            f"The weights {name} cannot be read: their class {kind} gives neither its parts (__tensor_flatten__) nor "
            "its values (dequantize); use a model with other weights."
        )
    plain: torch.Tensor = values.detach()
    return plain


def _is_usual(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.dtype in FLOATS and not tensor.is_quantized


def _packed(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Codes, or weights, that a module keeps as a saved buffer, or in an attribute that torch knows nothing of."""
    saved = {name: each for name, each in module._buffers.items() if name not in module._non_persistent_buffers_set}
    for name, value in saved.items():
        if value is not None and (_is_code(value, 1) or (name == "weight" and value.dim() > 1)):
            yield name, value
    for name, value in module.__dict__.items():
        if isinstance(value, torch.Tensor) and _is_code(value, 2):
            yield name, value


def _is_code(tensor: torch.Tensor, least: int) -> bool:
    """Whether a tensor with `least` axes or more is what plain modules do not keep besides weights, which is positions,
    masks and statistics."""
    beside = (*FLOATS, torch.int64, torch.bool, torch.complex64, torch.complex128)
    return type(tensor) not in PLAIN or (tensor.dim() >= least and tensor.dtype not in beside)


def _pruned(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that torch's pruning makes of `weight_orig` and `weight_mask` before each call."""
    for name in module._parameters:
        stem = name.removesuffix("_orig")
        if stem != name and f"{stem}_mask" in module._buffers and isinstance(module.__dict__.get(stem), torch.Tensor):
            yield stem, module.__dict__[stem]


def _at_hand(module: torch.nn.Module, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, fetched where a `device_map` keeps it on disk or on another device until it is used."""
    if not parameter.is_meta:
        return parameter.detach()
    with _fetched(module):
        fetched: torch.Tensor = getattr(module, name).detach().clone()
    return fetched


def _fetched(module: torch.nn.Module) -> AbstractContextManager[Any]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    if not hasattr(module, "_hf_hook") or not any(each is not None and each.is_meta for each in tensors):
        return nullcontext()
    from accelerate.utils import align_module_device

    context: AbstractContextManager[Any] = align_module_device(module, "cpu")
    return context


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
