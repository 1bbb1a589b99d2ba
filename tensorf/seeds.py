"""Random numbers that follow from a seed alone: torch's global random state is neither read nor changed."""

from __future__ import annotations

import torch

_APART = 1_000_003  # steps, from which on the numbers of one seed would be those of the next


def seeded(device: torch.device, seed: int) -> torch.Generator:
    """A generator of random numbers on the device."""
    return torch.Generator(device).manual_seed(seed)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of a step's own numbers: a resumed run draws what an unbroken one would have drawn."""
    return seed * _APART + step
