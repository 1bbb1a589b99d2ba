"""Delta Denoising Score (Hertz et al., ICCV 2023; CDS, equations 4 and 7), also on the way to SDS."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.objectives.branches import branches
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class DDS(Objective):
    """The difference of the two branches' guided noise: four forwards.

    source_share: in [0, 1]. 1 is DDS. Below, so much of the source's noise is subtracted, and for the rest the noise
    that was added, as in SDS. What the prior would change in the source, DDS adds to the target: where a tail has to
    go, the tail of the source. With less of the source, shapes move further, and more of the rest does too.
    """

    source_share: float

    def __post_init__(self):
        super().__post_init__()
        check_source_share(self.source_share)

    def gradient(self, prior, pair, prompts, draw) -> Step:
        delta = branches(prior, pair, prompts, draw).delta(self.scale, self.source_share)
        return self.step(draw, self.scaled(delta))


def check_source_share(share: float) -> None:
    """ValueError if `source_share` is no share."""
    if not 0 <= share <= 1:
        raise ValueError(f"source_share={share} has to be between 0 and 1")
