"""Identity-preserving Distillation Sampling (Kim et al., CVPR 2025): noise that denoises to the source itself.

With random noise the prior's guess of the source is not the source, and that error goes into the edit. So the source's
noisy latent is first moved until the guess fits. Both branches then use the noise that this latent stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior, Query
from cds3d.objectives.cds import CDS
from cds3d.objectives.objective import Draw, Prompts, Step, classifier_free


@dataclass(frozen=True)
class IDS(CDS):
    """DDS, or CDS if weight is above 0, with prepared noise.

    noise_steps: how often the source's noisy latent is moved; each costs two forwards and backwards of the U-Net.
    noise_rate: how far, in units of the gradient of the distance, which is not squared.
    """

    noise_steps: int
    noise_rate: float

    def __post_init__(self):
        super().__post_init__()
        if self.noise_steps < 0 or not 0 <= self.noise_rate < math.inf:
            raise ValueError(f"noise_steps={self.noise_steps} and noise_rate={self.noise_rate} have to be 0 or more")

    @property
    def unet_graphs(self) -> int:
        return 2 if self.noise_steps > 0 else super().unet_graphs

    def gradient(self, prior, pair, prompts, draw) -> Step:
        noise = fixed_point_noise(
            prior, pair.source, prompts, draw, scale=self.scale, steps=self.noise_steps, rate=self.noise_rate
        )
        return super().gradient(prior, pair, prompts, replace(draw, noise=noise))


def fixed_point_noise(
    prior: Prior, z: Tensor, prompts: Prompts, draw: Draw, *, scale: float, steps: int, rate: float
) -> Tensor:
    """(1, C, h, w) noise for the source latent z, prepared from the draw's. Any objective can use it."""
    t, z_t = draw.t, prior.noised(z, draw.t, draw.noise)
    for _ in range(steps):
        z_t = z_t.detach().requires_grad_()
        null, text = prior.ask(Query(z_t, t, prompts.null, grad=True), Query(z_t, t, prompts.source, grad=True))
        guess = prior.denoised(z_t, t, classifier_free(null.noise, text.noise, scale))
        distance = torch.linalg.vector_norm(z - guess)
        z_t = z_t.detach() - rate * torch.autograd.grad(distance, z_t)[0]
    a = prior.alphas[t]
    return (z_t - a.sqrt() * z) / (1 - a).sqrt()
