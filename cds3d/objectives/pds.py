"""Posterior Distillation Sampling (Koo et al., CVPR 2024): the difference of the noises that lead from t to s.

The stochastic latent of a DDPM step is the noise that the step adds to its posterior mean. Both branches' are matched:
psi (z - z_src) + chi (eps_tgt - eps_src), with factors of the schedule alone, as the authors' code has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.objectives.branches import branches
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class PDS(Objective):
    """stride: t - s. The authors' is 2, beside the variance of a single step; with 1, psi is zero and PDS is DDS."""

    stride: int

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.stride <= self.t_min:
            raise ValueError(f"stride={self.stride} has to be between 1 and t_min={self.t_min}")

    def gradient(self, prior, pair, prompts, draw) -> Step:
        found = branches(prior, pair, prompts, draw)
        psi, chi = posterior_factors(prior.alphas, draw.t, self.stride)
        difference = psi * (found.z - pair.source) + chi * found.delta(self.scale)
        return self.step(draw, self.scaled(difference))


def posterior_factors(alphas: Tensor, t: int, stride: int) -> tuple[float, float]:
    """(psi, chi) at t. alphas (T,): cumulative products of the noise schedule."""
    at_t, at_s, before = torch.stack([alphas[t], alphas[t - stride], alphas[t - 1]]).tolist()
    alpha = at_t / before
    beta = 1 - alpha
    c0 = at_s**0.5 * beta / (1 - at_t)
    c1 = alpha**0.5 * (1 - at_s) / (1 - at_t)
    sigma = (beta * (1 - at_s) / (1 - at_t)) ** 0.5
    psi = (at_s**0.5 - c0 - c1 * at_t**0.5) / sigma
    return psi, c0 * ((1 - at_t) / at_t) ** 0.5 / sigma
