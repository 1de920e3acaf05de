"""The tasks that a recipe may name, one per file; `README.md` in this folder documents each and its version."""

from __future__ import annotations

from .base import Column, Metric, Outcome, Setting, Task
from .decode import Decode
from .harness import Harness
from .key_value import KeyValue
from .needle import Needle
from .perplexity import Perplexity

__all__ = ["TASKS", "Column", "Metric", "Outcome", "Setting", "Task"]

TASKS: dict[str, type[Task]] = {
    "perplexity": Perplexity,
    "needle": Needle,
    "key_value": KeyValue,
    "decode": Decode,
    "lm_eval": Harness,
}
