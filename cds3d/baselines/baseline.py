"""What all sampled baselines share: one method, from the source's latent to the edited one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior

Track = Callable[[Iterable, str], Iterable]
"""(steps, label) -> the same steps, counted or shown: a progress bar."""


def untracked(steps: Iterable, label: str) -> Iterable:
    """No progress bar."""
    return steps


@dataclass(frozen=True)
class Baseline:
    """Options of a method. Each subclass raises ValueError for options that make no sense."""

    def check(self, prior: Prior) -> None:
        """Raises UserError for options that do not fit the prior, before any work is done."""
        raise NotImplementedError

    def edit(
        self,
        prior: Prior,
        source: Tensor,
        src: str,
        tgt: str,
        *,
        generator: torch.Generator,
        track: Track = untracked,
    ) -> Tensor:
        """The edited latent (1, C, h, w), float32, of the source latent (1, C, h, w), without gradients.

        src, tgt: source and target prompt. generator: a CPU generator, from which all noise comes. track: called with
        each loop's steps. Raises UserError as `check` does.
        """
        raise NotImplementedError


def check_share(name: str, value: float) -> None:
    """ValueError unless an option lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} has to lie in 0..1")


def check_positive(name: str, value: float) -> None:
    """ValueError unless an option is above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value} has to be above 0")


def noise_like(latent: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the latent's shape. It is drawn on the CPU, so that devices agree."""
    return torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
