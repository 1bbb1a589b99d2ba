"""Plug-and-Play (Tumanyan et al., CVPR 2023): DDIM inversion; features, queries and keys of the source are injected.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=pnp
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDIMInverseScheduler
from torch import Tensor

from cds3d.baselines.baseline import Baseline, Track, check_positive, check_share, untracked
from cds3d.baselines.injection import injected, pnp_layers
from cds3d.baselines.sampling import ddim, ddim_inverse, noises
from cds3d.guidance.prior import Prior
from cds3d.objectives.objective import classifier_free
from tensorf.errors import UserError


@dataclass(frozen=True)
class PnP(Baseline):
    """steps: of DDIM sampling; inversion_steps: of DDIM inversion, with `inversion_prompt` and no guidance; scale:
    classifier-free guidance against `negative_prompt`; feature_steps, attention_steps: shares of the steps, from the
    first on, in which features, and queries and keys, are injected.

    The settings are those of the authors' diffusers version. The source's branch is the inversion's latents under the
    empty prompt, and both forwards of the target take from it.
    """

    steps: int
    inversion_steps: int
    inversion_prompt: str
    scale: float
    negative_prompt: str
    feature_steps: float
    attention_steps: float

    def __post_init__(self):
        check_positive("steps", self.steps)
        check_positive("inversion_steps", self.inversion_steps)
        check_share("feature_steps", self.feature_steps)
        check_share("attention_steps", self.attention_steps)

    def check(self, prior) -> None:
        _inversion(prior, self.inversion_steps, ddim(prior, self.steps).timesteps.tolist())
        pnp_layers(prior.unet)

    def edit(self, prior, source, src, tgt, *, generator, track=untracked) -> Tensor:
        scheduler = ddim(prior, self.steps)
        timesteps = scheduler.timesteps.tolist()
        latents = ddim_inversion(prior, source, self.inversion_prompt, self.inversion_steps, timesteps, track)
        empty, null, target = prior.embed(""), prior.embed(self.negative_prompt), prior.embed(tgt)
        layers = pnp_layers(prior.unet)
        features, attention = int(self.feature_steps * self.steps), int(self.attention_steps * self.steps)
        z = latents[timesteps[0]]
        for i, t in enumerate(track(timesteps, "sample")):
            with injected(prior.unet, layers, (0, 0, 0), features=i < features, attention=i < attention):
                _, eps_null, eps_target = noises(prior, t, (latents[t], empty), (z, null), (z, target))
            z = scheduler.step(classifier_free(eps_null, eps_target, self.scale), t, z).prev_sample
        return z


def ddim_inversion(
    prior: Prior, source: Tensor, text: str, steps: int, kept: list[int], track: Track = untracked
) -> dict[int, Tensor]:
    """The latents (1, C, h, w) at the timesteps `kept` on the way from a source latent to noise, without guidance.

    Raises UserError if the way in `steps` steps does not pass all of `kept`.
    """
    scheduler, prompt = _inversion(prior, steps, kept), prior.embed(text)
    timesteps = scheduler.timesteps.tolist()
    z, latents = source, {}
    for t in track(timesteps[: timesteps.index(max(kept)) + 1], "invert"):
        z = scheduler.step(noises(prior, t, (z, prompt))[0], t, z).prev_sample
        latents[t] = z
    return {t: latents[t] for t in kept}


def _inversion(prior: Prior, steps: int, kept: list[int]) -> DDIMInverseScheduler:
    """The scheduler of so many steps; UserError if it does not pass all timesteps in `kept`."""
    scheduler = ddim_inverse(prior, steps)
    if not set(kept) <= set(scheduler.timesteps.tolist()):
        raise UserError(
            f"baseline.inversion_steps={steps} does not pass all timesteps of sampling: use "
            f"{len(prior.alphas) - 1}, or as many as baseline.steps"
        )
    return scheduler
