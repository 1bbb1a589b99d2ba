"""DDS with plug-and-play's feature injection: our reading of the comparison in CDS's figure 8.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=dds-pnp edit.iterations=100

It optimises the latent as DDS does, in the editor's loop, with the options of edit=latent.
"""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.baselines.injection import injected, pnp_layers
from cds3d.baselines.sampling import noises
from cds3d.objectives.objective import Objective, Step, classifier_free


@dataclass(frozen=True)
class DDSPnP(Objective):
    """feature_t_min, attention_t_min: features, and queries and keys, are injected at timesteps of at least these.

    CDS says "feature injection following the PnP approach" and no more. Our reading: the source's branch is the one
    that DDS has anyway, at the same t with the same noise, and the thresholds are the timesteps at which plug-and-play
    stops with 50 steps. Each forward of the target takes from the source's forward of its kind: the one without text
    from the one without text. So equal prompts have no gradient at the source, as in DDS.
    """

    feature_t_min: int
    attention_t_min: int

    def gradient(self, prior, pair, prompts, draw) -> Step:
        t = draw.t
        z_src, z = (prior.noised(latent, t, draw.noise) for latent in (pair.source, pair.target().detach()))
        features, attention = t >= self.feature_t_min, t >= self.attention_t_min
        with injected(prior.unet, pnp_layers(prior.unet), (0, 1, 0, 1), features=features, attention=attention):
            null_src, cond_src, null_tgt, cond_tgt = noises(
                prior, t, (z_src, prompts.null), (z_src, prompts.source), (z, prompts.null), (z, prompts.target)
            )
        source, target = (classifier_free(*p, self.scale) for p in ((null_src, cond_src), (null_tgt, cond_tgt)))
        return self.step(draw, self.scaled(target - source))
