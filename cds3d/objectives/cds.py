"""Contrastive Denoising Score (CDS, section 3.2 and appendix A): DDS and PatchNCE on the U-Net's own features."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.objectives.branches import branches, check_source_share
from cds3d.objectives.contrastive import Contrastive
from cds3d.objectives.objective import Step


@dataclass(frozen=True)
class CDS(Contrastive):
    """Four forwards, and one backward through the target's conditional one. source_share: as in `DDS`."""

    source_share: float

    def __post_init__(self):
        super().__post_init__()
        check_source_share(self.source_share)

    def gradient(self, prior, pair, prompts, draw) -> Step:
        found = branches(prior, pair, prompts, draw, self.contrasted)
        step = self.step(draw, self.scaled(found.delta(self.scale, self.source_share)))
        return self.with_contrast(step, draw, found.z, found.features_source, found.features_target)
