"""Stabilized Score Distillation (Zhu et al., 2024): a classifier for the edit, one for the prompt, and identity terms.

The gradient is a sum, in the authors' code, over noisy latents z_t of the target and z'_t of the source:

    cross (eps(z_t, source) - eps(z'_t, null))      the two branches' difference, without the edit
    edit  (eps(z_t, target) - eps(z_t, source))     the edit
    text  (eps(z_t, target) - eps(z_t, null))       the prompt
    identity e^(t/1000) (z_t - z'_t)                the source's latent
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cds3d.guidance.prior import Query
from cds3d.objectives.contrastive import Contrastive
from cds3d.objectives.objective import Step


@dataclass(frozen=True)
class SSD(Contrastive):
    """cross, edit, text, identity: the terms' weights. weight above 0 adds CDS's contrastive term.

    Four forwards: the source's branch without text (and with its prompt, if features are compared), the target's with
    none, with the source's and with the target's prompt. `scale` is not used: the weights stand for it.
    """

    cross: float
    edit: float
    text: float
    identity: float

    def gradient(self, prior, pair, prompts, draw) -> Step:
        t, features = draw.t, self.contrasted
        z_src = prior.noised(pair.source, t, draw.noise)
        reference = [Query(z_src, t, prompts.source, features)] if features else []
        source = prior.submit(Query(z_src, t, prompts.null), *reference)
        z = pair.target().detach().requires_grad_(features is not None)
        z_t = prior.noised(z.detach(), t, draw.noise)
        others = prior.submit(Query(z_t, t, prompts.null), Query(z_t, t, prompts.source))
        wanted = Query(prior.noised(z, t, draw.noise), t, prompts.target, features, grad=features is not None)
        (null_src, *cond_src), (null, like_source), (target,) = prior.gather(source, others, prior.submit(wanted))
        noise = target.noise.detach()
        difference = (
            self.cross * (like_source.noise - null_src.noise)
            + self.edit * (noise - like_source.noise)
            + self.text * (noise - null.noise)
            + self.identity * math.exp(t / 1000) * (z_t - z_src)
        )
        step = self.step(draw, self.scaled(difference))
        return self.with_contrast(step, draw, z, cond_src[0].features if cond_src else (), target.features)
