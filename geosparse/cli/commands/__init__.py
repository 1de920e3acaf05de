"""The commands, one per module: `WHAT` and `EXAMPLE` for its help, `arguments(add)`, and `run(options)`."""

from __future__ import annotations

from types import ModuleType

from . import bench, demo, doctor, export, generate, inspect, lm_eval, plan, profile, score

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "profile": profile,
    "plan": plan,
    "inspect": inspect,
    "export": export,
    "score": score,
    "generate": generate,
    "lm-eval": lm_eval,
    "bench": bench,
    "doctor": doctor,
}
"""In the order of the help. What a command needs is imported when it runs."""
