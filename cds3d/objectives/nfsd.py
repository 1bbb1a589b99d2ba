"""Noise-Free Score Distillation (Katzir et al., ICLR 2024): SDS without the noise that averages out.

Its gradient is delta + scale (eps_target - eps_null): delta is the domain's correction, eps_null at small t, where
little of it is noise, else eps_null - eps_negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.guidance.prior import Query
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class NFSD(Objective):
    """negative_prompt: what bad pictures look like. t_small: the t below which eps_null is the correction.

    Two or three forwards. The source is not looked at.
    """

    negative_prompt: str
    t_small: int

    def gradient(self, prior, pair, prompts, draw) -> Step:
        t, small = draw.t, draw.t < self.t_small
        z_t = prior.noised(pair.target(), t, draw.noise)
        asked = [prompts.null, prompts.target, *([] if small else [prior.embed(self.negative_prompt)])]
        answers = prior.ask(*(Query(z_t, t, prompt) for prompt in asked))
        null, text = answers[0].noise, answers[1].noise
        delta = null if small else null - answers[2].noise
        return self.step(draw, self.scaled(delta + self.scale * (text - null)))
