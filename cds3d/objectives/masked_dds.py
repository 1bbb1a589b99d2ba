"""Masked DDS with a background term, after ED-NeRF (Park et al., ICLR 2024): DDS inside a mask, the source outside.

ED-NeRF's code is not public. Its mask comes from a text-driven segmentation; ours is the region of the edit
(`subjects.region`). It optimises a field of latents; here the latent is an encoded render.
"""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.objectives.branches import branches
from cds3d.objectives.objective import Objective, Step
from tensorf.errors import UserError


@dataclass(frozen=True)
class MaskedDDS(Objective):
    """M g_DDS + background (1 - M) (z - z_src), with the mask M in [0, 1] of each latent element.

    background: weight of the pull towards the source's latent, in the same units as DDS's difference of noises. Needs
    a pair with a mask: UserError for images, which have none.
    """

    background: float

    def __post_init__(self):
        super().__post_init__()
        if not self.background >= 0:
            raise ValueError(f"background={self.background} has to be 0 or more")

    def gradient(self, prior, pair, prompts, draw) -> Step:
        mask = pair.mask()
        if mask is None:
            raise UserError("objective=masked-dds needs the region of a field's edit: images have none")
        found = branches(prior, pair, prompts, draw)
        pull = self.background * (1 - mask) * (found.z - pair.source)
        return self.step(draw, self.scaled(mask * found.delta(self.scale) + pull))
