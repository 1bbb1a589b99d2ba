"""Delta Denoising Score (Hertz et al., ICCV 2023; CDS, equations 4 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.objectives.branches import branches
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class DDS(Objective):
    """The difference of the two branches' guided noise: four forwards."""

    def gradient(self, prior, pair, prompts, draw) -> Step:
        return self.step(draw, self.scaled(branches(prior, pair, prompts, draw).delta(self.scale)))
