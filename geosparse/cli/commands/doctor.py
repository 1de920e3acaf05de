"""`geosparse doctor`."""

from __future__ import annotations

from .shared import Add, Options, load, mention_missing_kernels, show

WHAT = "what is installed, and whether it works"
EXAMPLE = "--calibrate smollm2-135m"


def arguments(add: Add) -> None:
    """The flags."""
    what = "measure from which context on sparse decoding of this model is faster here"
    add("--calibrate", dest="model", metavar="MODEL", help=what)
    add("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    add("--device", help="where to measure, e.g. cuda (default: cpu)")


def run(options: Options) -> None:
    """Examine this machine; with a model, measure its break-even too."""
    from ..doctor import examine

    data, text = examine()
    mention_missing_kernels(data["device_type"])
    if options.model is not None:
        from ...hf.layers import attention_layers
        from ...sparsify.break_even import NEVER, calibrate
        from ...sparsify.patch import shape_of

        model, _ = load(options)
        shapes = {shape.key: shape for shape in (shape_of(model, layer) for layer in attention_layers(model))}
        data["break_even"] = {key: calibrate(shape) for key, shape in shapes.items()}
        for key, break_even in data["break_even"].items():
            facts = (f"{name} " + ("never" if n == NEVER else f"from {n} tokens") for name, n in break_even.items())
            text += f"\nsparse decoding is no slower than dense on {key}: {', '.join(facts)}"
    show(options, data, text)
