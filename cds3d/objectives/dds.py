"""Delta Denoising Score (Hertz et al., ICCV 2023; CDS, equations 4 and 7), and mixes of it with SDS."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.objectives.branches import branches, check_source_share
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class DDS(Objective):
    """The difference of the two branches' guided noise: four forwards.

    source_share: in [0, 1]. At 1 the noise predicted for the source is subtracted (DDS), at 0 the noise that was added
    (SDS), in between a mix of both. By subtracting the source's, DDS also restores parts of the source that have to go,
    such as a tail. With a smaller share shapes change more, and so does the background.
    """

    source_share: float

    def __post_init__(self):
        super().__post_init__()
        check_source_share(self.source_share)

    def gradient(self, prior, pair, prompts, draw) -> Step:
        delta = branches(prior, pair, prompts, draw).delta(self.scale, self.source_share)
        return self.step(draw, self.scaled(delta))
