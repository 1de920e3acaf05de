"""Which queries of a window are measured: positions stratified over it, from random numbers that are its alone."""

from __future__ import annotations

import hashlib

import torch


def window_generator(seed: int, length: int, index: int | str) -> torch.Generator:
    """The random numbers of one window: they depend on these three alone, not on the windows before it."""
    digest = hashlib.sha256(f"{seed} {length} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def sample_positions(length: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` ascending query positions, one drawn from each of equal parts of the window; never the last position,
    whose output predicts nothing."""
    edges = torch.linspace(0, length - 1, min(count, length - 1) + 1, dtype=torch.float64, device="cpu")
    draw = torch.rand(len(edges) - 1, generator=generator, dtype=torch.float64, device="cpu")
    positions: torch.Tensor = torch.unique((edges[:-1] + draw * edges.diff()).long().clamp_max(length - 2))
    return positions


def evenly(count: int, of: int) -> list[int]:
    """`count` places (or all) evenly spaced among `of`, each in the middle of its part."""
    count = min(count, of)
    return [(2 * part + 1) * of // (2 * count) for part in range(count)]
