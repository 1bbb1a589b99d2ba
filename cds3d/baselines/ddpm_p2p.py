"""DDPM inversion with Prompt-to-Prompt (Hertz et al., ICLR 2023): the target takes over the source's attention maps.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=ddpm-p2p
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from cds3d.baselines.baseline import check_share
from cds3d.baselines.ddpm_inversion import DDPMInversion, Predict
from cds3d.baselines.injection import attention_layers, cross_maps_replaced, self_maps_copied
from cds3d.baselines.sampling import noises
from cds3d.baselines.tokens import token_mapping
from cds3d.objectives.objective import classifier_free

_SOURCE, _NULL, _TARGET = range(3)  # rows of the batch


@dataclass(frozen=True)
class DDPMP2P(DDPMInversion):
    """cross_steps, self_steps: shares of `steps`, counted from the first step that is run, in which cross- and
    self-attention maps are taken over; self_max_queries: self-attention layers with more positions keep their own.

    The conditional forward alone takes maps. The source's branch is the inversion's latents, which replaying its maps
    gives; there is no local blend.
    """

    cross_steps: float
    self_steps: float
    self_max_queries: int

    def __post_init__(self):
        super().__post_init__()
        check_share("cross_steps", self.cross_steps)
        check_share("self_steps", self.self_steps)

    def predict(self, prior, src, tgt) -> Predict:
        null, source, target = prior.embed(""), prior.embed(src), prior.embed(tgt)
        tokenizer = prior.text.tokenizers[0]
        mapping, taken = token_mapping(tokenizer, src, tgt, target.tokens.shape[1])
        cross_run, self_run = int(self.cross_steps * self.steps), int(self.self_steps * self.steps)
        self_layers = attention_layers(prior.unet, "attn1")

        def predict(step, t, z_src, z):
            with ExitStack() as stack:
                if step < cross_run:
                    stack.enter_context(cross_maps_replaced(prior.unet, _SOURCE, _TARGET, mapping, taken))
                if step < self_run:
                    rows = (_SOURCE, _NULL, _SOURCE)
                    stack.enter_context(self_maps_copied(prior.unet, self_layers, rows, self.self_max_queries))
                _, eps_null, eps_target = noises(prior, t, (z_src, source), (z, null), (z, target))
            return classifier_free(eps_null, eps_target, self.target_scale)

        return predict
