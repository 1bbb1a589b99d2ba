"""What is edited. A subject gives pairs of latents, takes a latent's gradient back to its parameters, and is saved."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Subject(Protocol):
    """`editor.Editor` knows subjects by these seven alone."""

    def parameter_groups(self, lr: float) -> list[dict]:
        """What to optimise, as an optimiser's parameter groups."""

    def source_latent(self, step: int) -> Tensor:
        """The source's latent (1, C, h, w) in this step. All that a step draws at random is drawn here."""

    def target_latent(self) -> Tensor:
        """The target's latent (1, C, h, w) in the step that `source_latent` began, detached; its graph is kept."""

    def backward(self, gradient: Tensor) -> None:
        """Add dLoss/dlatent (1, C, h, w) of the step's target latent to the parameters' gradients."""

    def after_step(self) -> None:
        """Called once the optimiser has moved the parameters."""

    def state(self) -> dict:
        """What a resume needs beside the parameters: numbers and tensors."""

    def load_state(self, state: dict) -> None:
        """Take what `state` gave."""
