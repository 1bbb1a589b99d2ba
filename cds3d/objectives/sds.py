"""Score Distillation Sampling (Poole et al., ICLR 2023; CDS, equation 2): guided noise less the noise added."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.guidance.prior import Query
from cds3d.objectives.objective import Objective, Step, classifier_free


@dataclass(frozen=True)
class SDS(Objective):
    """Two forwards. The source is not looked at."""

    def gradient(self, prior, pair, prompts, draw) -> Step:
        z_t = prior.noised(pair.target(), draw.t, draw.noise)
        null, text = prior.ask(Query(z_t, draw.t, prompts.null), Query(z_t, draw.t, prompts.target))
        guided = classifier_free(null.noise, text.noise, self.scale)
        return self.step(draw, self.scaled(guided - draw.noise))
