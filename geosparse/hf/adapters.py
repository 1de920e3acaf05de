"""Adapters of peft: the model inside a PeftModel, and what of an adapted module serves at this moment."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch

from ..errors import GeosparseError


class AdapterParts(NamedTuple):
    """What an adapted module is at this moment.

    Attributes:
        module: What serves without adapters, or in the place of that.
        extra: By name, what the adapters in use add: modules, tensors and numbers.
    """

    module: torch.nn.Module
    extra: list[tuple[str, Any]]


# Modules of torch that pass calls on to a model, and where they keep it.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def inner_model(model: Any) -> Any:
    """The transformers model inside a PeftModel, adapters included; any other model as it is.

    Raises:
        GeosparseError: The adapter is not in the model's modules but in virtual tokens before its input; or something
            else is wrapped around the model.
    """
    peft = sys.modules.get("peft")  # whose classes a model cannot be of where nobody has imported it
    kinds = tuple(getattr(peft, name) for name in ("PeftModel", "PeftMixedModel") if hasattr(peft, name))
    if not isinstance(model, kinds):
        kind = type(model).__name__
        if kind in WRAPPERS:
            raise GeosparseError(f"{kind} is a wrapper around a model: give model.{WRAPPERS[kind]}, the model itself.")
        return model
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise GeosparseError(
            f"{type(model).__name__} is not supported with {config.peft_type.value}: its virtual tokens are no part of "
            "the model's modules; give model.get_base_model(), which is the model without them."
        )
    return model.base_model.model


def is_adapted(module: torch.nn.Module) -> bool:
    """Whether peft has put `module` in the place of another one."""
    return _original(module) is not None and getattr(type(module), "adapter_layer_names", None) is not None


def _original(module: torch.nn.Module) -> torch.nn.Module | None:
    names = ("base_layer", "token_adapter", "original_module")
    return next((found for name in names if (found := module._modules.get(name)) is not None), None)


def parts_of(module: Any) -> AdapterParts:
    """What serves in an adapted module: the adapters that are active, neither disabled nor merged into the weights."""
    original = _original(module)
    assert original is not None
    if "token_adapter" in module._modules:  # trainable tokens: an adapted module in a wrapper
        return AdapterParts(original, [])
    if module.disable_adapters:
        if module.merged_adapters:
            module.unmerge()  # as the module itself does when it is called
        return AdapterParts(original, [])
    if module.merged_adapters:
        return AdapterParts(original, [])
    if "modules_to_save" in module._modules:
        saved: Any = module.modules_to_save
        replacing = [saved[name] for name in module.active_adapters if name in saved]
        return AdapterParts(replacing[0] if replacing else original, [])
    extra = []
    for attribute in (*module.adapter_layer_names, *module.other_param_names):
        held: Any = getattr(module, attribute, None)
        served = [name for name in module.active_adapters if _has(held, name)]
        # By place: the name of an adapter changes nothing.
        extra += [(f"{attribute}.{place}", held[name]) for place, name in enumerate(served)]
    return AdapterParts(original, extra)


def _has(held: Any, name: str) -> bool:
    """Whether `held` is a container by adapter, a dict or a module like one, that has something for `name`."""
    by_name = isinstance(held, dict | torch.nn.Module) and hasattr(held, "__contains__")
    return by_name and name in held
