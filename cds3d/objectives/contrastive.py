"""What objectives with PatchNCE share: options, and the term's pull on the target's latent (CDS, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cds3d.guidance.prior import FEATURES
from cds3d.objectives.objective import Draw, Objective, Step, rms
from cds3d.objectives.patchnce import contrastive_loss

_ENLARGED = 4096.0  # the factor of PatchNCE's loss on its way back through the U-Net


@dataclass(frozen=True)
class Contrastive(Objective):
    """Options of objectives with a contrastive term.

    weight: of PatchNCE; 0 leaves it out. features: where it looks: "self" or "cross" (outputs of the up-sampling
    attention layers) or "score" (the noise prediction). patch_sizes, patches, temperature, center: `contrastive_loss`.
    """

    weight: float
    features: str
    patch_sizes: tuple[int, ...]
    patches: int
    temperature: float
    center: bool

    def __post_init__(self):
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"features={self.features} is unknown; use self, cross or score")
        if not 0 <= self.weight < math.inf or not self.temperature > 0:
            raise ValueError(f"weight={self.weight} has to be 0 or more, temperature={self.temperature} above 0")
        if self.patches < 1:
            raise ValueError(f"patches={self.patches} has to be at least 1")
        if not self.patch_sizes or min(self.patch_sizes) < 1:
            raise ValueError(
                f"patch_sizes={list(self.patch_sizes)} has to be a list of whole numbers of at least 1, as in [1,2]"
            )

    @property
    def contrasted(self) -> str | None:
        """The features to ask for, or None if they are not compared."""
        return self.features if self.weight > 0 else None

    @property
    def unet_graphs(self) -> int:
        return int(self.contrasted is not None)

    def with_contrast(
        self, step: Step, draw: Draw, z: Tensor, reference: tuple[Tensor, ...], current: tuple[Tensor, ...]
    ) -> Step:
        """The step, and the pull of PatchNCE on z if features are compared: those of the two conditional forwards."""
        if self.contrasted is None:
            return step
        loss = contrastive_loss(
            zip(reference, current, strict=True),
            patch_sizes=self.patch_sizes,
            patches=self.patches,
            temperature=self.temperature,
            center=self.center,
            generator=draw.generator,
        )
        # In half precision the gradient on a feature is near the smallest number that there is. The score is float32,
        # but its gradient goes through the same network. A power of two leaves float32's bits as they are.
        pull = self.weight / _ENLARGED * torch.autograd.grad(_ENLARGED * loss, z)[0]
        figures = step.figures | {"contrastive_loss": loss.detach(), "contrastive_gradient_rms": rms(pull)}
        return replace(step, gradient=step.gradient + pull, figures=figures)
