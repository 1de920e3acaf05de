"""Evaluation mode for a while."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block, as the model is written: without autocast, and nothing compiled, as
    compiled modules may pass over hooks. Then every module is in the mode in which it was."""
    trained = [module for module in model.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        with _without_autocast(model), _uncompiled(model):
            yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def _without_autocast(model: torch.nn.Module) -> Iterator[None]:
    kinds = {parameter.device.type for parameter in model.parameters()}
    with ExitStack() as stack:
        for kind in kinds - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _uncompiled(model: torch.nn.Module) -> Iterator[None]:
    """Nothing of torch.compile runs, if any of it is in the model; compiled code of other threads runs as written, too,
    with the same numbers."""
    if "torch._dynamo" not in sys.modules or not any(_is_compiled(module) for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compiled(module: torch.nn.Module) -> bool:
    """By `module.compile()`, as a module of `torch.compile(module)`, or by a forward that was replaced."""
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
    )
