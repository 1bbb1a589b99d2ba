"""The two branches of a step: the source's latent and the target's, same t and noise, with text and without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior, Query
from cds3d.objectives.objective import Draw, Prompts, classifier_free
from cds3d.subjects import Pair


@dataclass(frozen=True)
class Branches:
    """Noise predictions (1, C, h, w): null_* for the empty prompt, source and target for their branch's own prompt.

    noise: (1, C, h, w) that was added to both latents. z: the target latent; the target's noise and features depend on
    it differentiably where features were asked for. features_*: (C_l, h_l, w_l) maps of the conditional forwards.
    """

    noise: Tensor
    z: Tensor
    null_source: Tensor
    source: Tensor
    null_target: Tensor
    target: Tensor
    features_source: tuple[Tensor, ...] = ()
    features_target: tuple[Tensor, ...] = ()

    def delta(self, scale: float, source_share: float = 1.0) -> Tensor:
        """The target's guided noise less the source's, detached: CDS, equations 4 and 7 (Delta Denoising Score).

        source_share: in [0, 1]. Below 1 a mix is subtracted: this share of the source's noise, and for the rest the
        noise that was added, which is what Score Distillation Sampling subtracts (equation 2).
        """
        target = classifier_free(self.null_target, self.target.detach(), scale)
        source = classifier_free(self.null_source, self.source, scale)
        return target - torch.lerp(self.noise, source, source_share)


def branches(prior: Prior, pair: Pair, prompts: Prompts, draw: Draw, features: str | None = None) -> Branches:
    """Four forwards of the U-Net; the one of the target's prompt keeps its graph if `features` are asked for.

    The source's branch may run in a thread while the pair makes its target.
    """
    t = draw.t
    z_src = prior.noised(pair.source, t, draw.noise)
    source = prior.submit(Query(z_src, t, prompts.null), Query(z_src, t, prompts.source, features))
    z = pair.target().detach().requires_grad_(features is not None)
    null = prior.submit(Query(prior.noised(z.detach(), t, draw.noise), t, prompts.null))
    text = prior.submit(Query(prior.noised(z, t, draw.noise), t, prompts.target, features, grad=features is not None))
    (null_source, cond_source), (null_target,), (cond_target,) = prior.gather(source, null, text)
    return Branches(
        noise=draw.noise,
        z=z,
        null_source=null_source.noise,
        source=cond_source.noise,
        null_target=null_target.noise,
        target=cond_target.noise,
        features_source=cond_source.features,
        features_target=cond_target.features,
    )


def check_source_share(share: float) -> None:
    """ValueError if `source_share` is no share."""
    if not 0 <= share <= 1:
        raise ValueError(f"source_share={share} has to be between 0 and 1")
