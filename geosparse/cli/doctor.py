"""`geosparse doctor`: what is installed, and whether sparse attention works on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from ..errors import GeosparseError
from ..hf.aliases import ALIASES, cache_dir
from ..ops import PATHS, SELECTORS, TAILS, best_path, cpu, reference_attention
from ..ops.cpu.fast_call import direct
from ..ops.serving import serving
from ..utils.provenance import device_name, versions

EXTRAS = {"lm-eval": "lm_eval", "plots": "matplotlib", "triton": "triton", "flash": "flash_attn"}

NO_KERNELS = "served by plain PyTorch, as it has no kernels"

# Sums of 65 fp32 products of size 1: rounding stays below 1e-5, a wrong token is off by 1e-2 and more.
ALLOWED = 1e-4


def examine() -> tuple[dict[str, Any], str]:
    """Versions, extras, cached models and a self-test, as a JSON object and as text."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = cache_dir() / "models"
    path, why = serving(device)
    data: dict[str, Any] = {
        "versions": versions(),
        "device": device_name(device),
        "device_type": device,
        "path": path,
        "path_reason": why,
        "extras": {extra: find_spec(module) is not None for extra, module in EXTRAS.items()},
        "cache": str(cache_dir()),
        "cached_models": sorted(name for name in ALIASES if any(models.glob(f"{name}-*"))),
        "weights": {name: alias.weights for name, alias in ALIASES.items()},
        "cpu_kernels": cpu.isa() if cpu.library() is not None else cpu.load_error(),
        "cpu_calls": "C" if direct() is not None else "ctypes",
        "selectors": {name: _served_by(name, path) for name in SELECTORS},
        "self_test_error": _self_test(device),
    }
    if not data["self_test_error"] <= ALLOWED:
        raise GeosparseError(
            f"The self-test failed on {data['device']}: sparse attention is off by {data['self_test_error']:.1e} from "
            f"the fp64 reference, more than {ALLOWED:.0e}; install another version of torch."
        )
    lines = [" ".join(f"{name} {version}" for name, version in data["versions"].items()), f"device: {data['device']}"]
    for extra, present in data["extras"].items():
        remedy = f"missing (in the checkout: pip install -e '.[{extra}]')"
        lines.append(f"extra {extra}: {'installed' if present else remedy}")
    lines.append(f"model cache: {data['cache']} ({', '.join(data['cached_models']) or 'empty'})")
    lines += [f"  {name}: {text}" for name, text in data["weights"].items()]
    kernels = data["cpu_kernels"]
    called = f"{kernels}, called through {data['cpu_calls']}"
    lines.append("CPU kernels: " + (called if cpu.library() is not None else f"the torch path is in use ({kernels})"))
    lines.append(f"sparse attention is served by: {data['path']} ({data['path_reason']})")
    slow = [name for name, by in data["selectors"].items() if by != data["path"]]
    lines.append(f"selectors: {', '.join(data['selectors'])}" + "".join(f"; {name}: {NO_KERNELS}" for name in slow))
    lines.append(f"self-test: sparse attention within {data['self_test_error']:.1e} of the fp64 reference")
    return data, "\n".join(lines)


def _served_by(name: str, path: str) -> str:
    """The path that serves the selector `name` in a decode step, where `path` serves those with kernels."""
    return path if SELECTORS[name].kernel is not None else "torch"


def _self_test(device: str) -> float:
    """Largest difference of the fast path from the fp64 reference on random tensors, over all tails."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 65, 16, generator=generator, dtype=torch.float32, device="cpu").to(device)
        for heads in (6, 2, 2)
    )
    worst = 0.0
    for tail in TAILS:
        arguments: dict[str, Any] = {"tail": tail, "scaling": 0.25}
        for part in (query, query[:, :, -1:]):
            fast = PATHS[best_path(part, key, value, None)](part, key, value, [1, 2, 4, 8, 16, 80], **arguments)
            true = reference_attention(part, key, value, [1, 2, 4, 8, 16, 80], **arguments)
            worst = max(worst, float((fast.output - true.output).abs().max()))
    return worst
