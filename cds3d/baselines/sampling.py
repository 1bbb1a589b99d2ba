"""Sampling with diffusers' schedulers on a prior's own noise schedule.

The prior turns v-predictions into noise. So the schedulers here always take noise ("epsilon").
"""

from __future__ import annotations

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from cds3d.guidance.prior import Prior, Query
from cds3d.guidance.text import Prompt
from cds3d.objectives.objective import classifier_free
from tensorf.errors import UserError


def ddim(prior: Prior, steps: int, option: str = "baseline.steps") -> DDIMScheduler:
    """From noise to image in `steps` steps, at Stable Diffusion's timesteps: 981, 961, ..., 1 of 1000 for 50.

    option: what a user calls `steps`. Raises UserError if the schedule has no room for that many.
    """
    scheduler = _scheduler(DDIMScheduler, prior, steps, option)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def ddim_inverse(prior: Prior, steps: int) -> DDIMInverseScheduler:
    """From image to noise: `ddim`'s timesteps in rising order. Raises UserError as `ddim` does."""
    scheduler = _scheduler(DDIMInverseScheduler, prior, steps, "baseline.inversion_steps")
    scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def _scheduler(kind: type, prior: Prior, steps: int, option: str):
    total = len(prior.alphas)
    if not 1 <= steps < total:
        raise UserError(f"{option}={steps} has to lie in 1..{total - 1}: the model has {total} timesteps")
    alphas = prior.alphas.double().cpu()
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    scheduler = kind(
        num_train_timesteps=total,
        trained_betas=(1 - alphas / before).tolist(),
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.alphas_cumprod = prior.alphas.cpu()  # which the betas' product is up to rounding
    scheduler.set_timesteps(steps)
    return scheduler


def noises(prior: Prior, t: int, *rows: tuple[Tensor, Prompt]) -> list[Tensor]:
    """The noise (1, C, h, w) in each row's latent, given its prompt: one forward, whose batch has the rows in order."""
    return [answer.noise for answer in prior.ask(*(Query(z_t, t, prompt) for z_t, prompt in rows))]


def guided(prior: Prior, z_t: Tensor, t: int, null: Prompt, text: Prompt, scale: float) -> Tensor:
    """Classifier-free guidance: the noise (1, C, h, w) in z_t. null: the empty or the negative prompt."""
    return classifier_free(*noises(prior, t, (z_t, null), (z_t, text)), scale)
