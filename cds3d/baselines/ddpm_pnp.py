"""DDPM inversion with plug-and-play injection: our reading of a baseline of CDS without public code or settings.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=ddpm-pnp
"""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.baselines.baseline import check_share
from cds3d.baselines.ddpm_inversion import DDPMInversion, Predict
from cds3d.baselines.injection import injected, pnp_layers
from cds3d.baselines.sampling import noises
from cds3d.objectives.objective import classifier_free


@dataclass(frozen=True)
class DDPMPnP(DDPMInversion):
    """feature_steps, attention_steps: shares of the steps that are run in which features, and queries and keys, are
    injected.

    Our reading, all of it. The layers are plug-and-play's (`pnp_layers`). The source's branch is the inversion's
    latents, which replaying its maps gives. Each forward of the target takes from the source's forward of its kind: the
    one without text from the one without text. So equal prompts and scales give the source back.
    """

    feature_steps: float
    attention_steps: float

    def __post_init__(self):
        super().__post_init__()
        check_share("feature_steps", self.feature_steps)
        check_share("attention_steps", self.attention_steps)

    def check(self, prior) -> None:
        super().check(prior)
        pnp_layers(prior.unet)

    def predict(self, prior, src, tgt) -> Predict:
        null, source, target = prior.embed(""), prior.embed(src), prior.embed(tgt)
        layers, run = pnp_layers(prior.unet), self.steps - self.skip
        features, attention = int(self.feature_steps * run), int(self.attention_steps * run)

        def predict(step, t, z_src, z):
            now = {"features": step < features, "attention": step < attention}
            with injected(prior.unet, layers, (0, 1, 0, 1), **now):
                rows = noises(prior, t, (z_src, null), (z_src, source), (z, null), (z, target))
            return classifier_free(*rows[2:], self.target_scale)

        return predict
