"""Structural similarity (Wang et al., 2004), by torchmetrics."""

from __future__ import annotations

from torch import Tensor


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean SSIM between images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma 1.5."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (x.permute(2, 0, 1)[None].float() for x in (a, b))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))
