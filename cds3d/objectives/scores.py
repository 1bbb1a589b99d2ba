"""Gradients on the latent that come from noise predictions alone: SDS and DDS.

The paper's equations are losses whose gradient leaves out the U-Net's Jacobian; these functions are that gradient.
"""

from __future__ import annotations

from torch import Tensor


def classifier_free(eps_null: Tensor, eps_text: Tensor, scale: float) -> Tensor:
    """Guided noise, any shape: eps_null + scale (eps_text - eps_null).

    CDS, equation 1, which writes (1 + w) eps_text - w eps_null: the same with scale = 1 + w.
    """
    return eps_null + scale * (eps_text - eps_null)


def sds_gradient(eps_tgt: Tensor, noise: Tensor) -> Tensor:
    """CDS, equation 2 (Score Distillation Sampling): the target branch's guided noise less the noise added."""
    return eps_tgt - noise


def dds_gradient(eps_tgt: Tensor, eps_src: Tensor) -> Tensor:
    """CDS, equations 4 and 7 (Delta Denoising Score): the target branch's guided noise less the source branch's."""
    return eps_tgt - eps_src
