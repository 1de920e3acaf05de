"""The tasks that a recipe may name, one per file; `README.md` in this folder documents each and its version."""

from __future__ import annotations

from ..harness.task import Task
from .decode import Decode
from .key_value import KeyValue
from .lm_eval import LmEval
from .needle import Needle
from .perplexity import Perplexity

__all__ = ["TASKS"]

TASKS: dict[str, type[Task]] = {
    "perplexity": Perplexity,
    "needle": Needle,
    "key_value": KeyValue,
    "decode": Decode,
    "lm_eval": LmEval,
}
