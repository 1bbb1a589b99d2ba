"""SDEdit (Meng et al., ICLR 2022) with word swap: noise on the source, and sampling with the target's prompt.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=sdedit baseline.strength=0.6
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cds3d.baselines.baseline import Baseline, check_positive, check_share, noise_like, untracked
from cds3d.baselines.sampling import ddim, guided


@dataclass(frozen=True)
class SDEdit(Baseline):
    """steps: of DDIM from pure noise; strength: int(steps strength) of them are run, 0 gives the source back;
    scale: classifier-free guidance. Start and number of steps are those of diffusers' image-to-image pipeline.
    """

    steps: int
    strength: float
    scale: float

    def __post_init__(self):
        check_positive("steps", self.steps)
        check_share("strength", self.strength)

    def check(self, prior) -> None:
        ddim(prior, self.steps)

    def edit(self, prior, source, src, tgt, *, generator, track=untracked) -> Tensor:
        scheduler, run = ddim(prior, self.steps), int(self.steps * self.strength)
        timesteps = scheduler.timesteps.tolist()[self.steps - run :]
        null, target = prior.embed(""), prior.embed(tgt)
        z = prior.noised(source, timesteps[0], noise_like(source, generator)) if timesteps else source
        for t in track(timesteps, "sample"):
            z = scheduler.step(guided(prior, z, t, null, target, self.scale), t, z).prev_sample
        return z
