"""What outlives the mode that it is made in: tensors that are written to later on, with autograd or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lasting() -> Iterator[None]:
    """Tensors made inside may be written to at any time: they are none of `inference_mode` and of no graph."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():  # the first alone turns autograd on
            yield
    else:
        with torch.no_grad():
            yield
