"""What is edited. A subject gives a pair of latents each step, learns from the step, and is saved."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Pair(Protocol):
    """One step: its source and target, and whatever it draws at random, fixed when the pair is made.

    source: the source's latent (1, C, h, w), detached.
    """

    source: Tensor

    def target(self) -> Tensor:
        """The target's latent (1, C, h, w), detached. It is computed, and its graph kept, when first asked for."""

    def backward(self, gradient: Tensor) -> Tensor:
        """Add dLoss/dlatent (1, C, h, w) of the target to the parameters' gradients; call it once.

        Returns dLoss/dimage as `Subject.observe` takes it.
        """


class Subject(Protocol):
    """`editor.Editor` knows subjects by these five alone."""

    def parameter_groups(self, lr: float) -> list[dict]:
        """What to optimise, as an optimiser's parameter groups."""

    def pair(self, step: int, generator: torch.Generator | None = None) -> Pair:
        """The pair of this step. All that a step draws at random, but what the objective draws, is drawn here.

        generator: the step's own, on the CPU; None is torch's global one.
        """

    def observe(self, pair: Pair, image_gradient: Tensor) -> None:
        """Called once the optimiser has moved the parameters."""

    def state(self) -> dict:
        """What a resume needs beside the parameters: numbers and tensors, of which `Editor` keeps a copy."""

    def load_state(self, state: dict) -> None:
        """Take what `state` gave."""
