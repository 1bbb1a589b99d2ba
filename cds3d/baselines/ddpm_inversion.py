"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al., CVPR 2024): noise maps that give back the source.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=ddpm-inversion
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cds3d.baselines.baseline import Baseline, Track, check_positive, noise_like, untracked
from cds3d.baselines.sampling import ddim, guided
from cds3d.guidance.prior import Prior

Predict = Callable[[int, int, Tensor, Tensor], Tensor]
"""(steps run before, t, the source's noisy latent, the target's) -> the target's guided noise, each (1, C, h, w)."""


@dataclass(frozen=True)
class Inversion:
    """timesteps: T of them, falling; latents (T + 1, C, h, w): the source at each, then the source itself;
    maps (T, C, h, w): the noise that each step adds.
    """

    timesteps: list[int]
    latents: Tensor
    maps: Tensor


@dataclass(frozen=True)
class DDPMInversion(Baseline):
    """steps: T; skip: of them are left out, the edit starts at the source's latent there; source_scale, target_scale:
    classifier-free guidance of the inversion and of the edit; zero_last_map: the last step adds no noise, as in the
    authors' code. With equal prompts and scales the edit is the source, but for the last map.
    """

    steps: int
    skip: int
    source_scale: float
    target_scale: float
    zero_last_map: bool

    def __post_init__(self):
        check_positive("steps", self.steps)
        if not 0 <= self.skip < self.steps:
            raise ValueError(f"skip={self.skip} has to lie in 0..{self.steps - 1}, below steps")

    def check(self, prior) -> None:
        ddim(prior, self.steps)

    def edit(self, prior, source, src, tgt, *, generator, track=untracked) -> Tensor:
        scheduler = ddim(prior, self.steps)
        inversion = invert(
            prior, scheduler, source, src, scale=self.source_scale, generator=generator, track=track,
            zero_last_map=self.zero_last_map,
        )  # fmt: skip
        predict = self.predict(prior, src, tgt)
        z = inversion.latents[self.skip, None]
        for i in track(range(self.skip, self.steps), "sample"):
            t = inversion.timesteps[i]
            noise = predict(i - self.skip, t, inversion.latents[i, None], z)
            z = scheduler.step(noise, t, z, eta=1.0, variance_noise=inversion.maps[i, None]).prev_sample
        return z

    def predict(self, prior: Prior, src: str, tgt: str) -> Predict:
        """How the target's noise is predicted. Subclasses inject from the source's branch here."""
        null, target = prior.embed(""), prior.embed(tgt)
        return lambda step, t, z_src, z: guided(prior, z, t, null, target, self.target_scale)


def invert(
    prior: Prior,
    scheduler: DDIMScheduler,
    source: Tensor,
    src: str,
    *,
    scale: float,
    zero_last_map: bool,
    generator: torch.Generator,
    track: Track = untracked,
) -> Inversion:
    """The noise maps of a source latent (1, C, h, w): the paper's section 3.2 and algorithm 1.

    Each timestep's noisy latent has noise of its own, independent of the others', and the map is what leads from one to
    the next. Replaying the maps with the same prompt and scale gives the same latents.
    """
    null, prompt = prior.embed(""), prior.embed(src)
    timesteps = scheduler.timesteps.tolist()
    latents = torch.cat([prior.noised(source, t, noise_like(source, generator)) for t in timesteps] + [source])
    maps = torch.zeros_like(latents[:-1])
    for i, t in enumerate(track(timesteps, "invert")):
        x_t, x_s = latents[i, None], latents[i + 1, None]
        noise = guided(prior, x_t, t, null, prompt, scale)
        mean, sigma = step_distribution(prior, x_t, noise, t, t - len(prior.alphas) // len(timesteps))
        maps[i] = (x_s - mean) / sigma
        # What a replay gives at this step, rounded as the replay rounds it: errors do not add up.
        latents[i + 1] = scheduler.step(noise, t, x_t, eta=1.0, variance_noise=maps[i, None]).prev_sample
    if zero_last_map:
        maps[-1] = 0
    return Inversion(timesteps, latents, maps)


def step_distribution(prior: Prior, x_t: Tensor, noise: Tensor, t: int, s: int) -> tuple[Tensor, Tensor]:
    """Mean (1, C, h, w) and standard deviation () of the DDPM step from t to s (DDIM, equations 12 and 16, eta 1).

    x_t, noise: (1, C, h, w), a noisy latent and the noise in it. s: below 0 it stands for the schedule's first entry.
    """
    a_t, a_s = prior.alphas[t], prior.alphas[max(s, 0)]
    variance = (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    mean = a_s.sqrt() * prior.denoised(x_t, t, noise) + (1 - a_s - variance).sqrt() * noise
    return mean, variance.sqrt()
