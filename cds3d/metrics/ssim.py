"""Structural similarity (Wang et al., 2004), by torchmetrics."""

from __future__ import annotations

from torch import Tensor


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean SSIM between images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma 1.5."""
    return float(_ssim(a, b))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(H, W) SSIM of each pixel's window, the mean over channels."""
    return _ssim(a, b, return_full_image=True)[1][0].mean(0)


def _ssim(a: Tensor, b: Tensor, **options):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (x.permute(2, 0, 1)[None].float() for x in (a, b))
    return structural_similarity_index_measure(a, b, data_range=1.0, **options)
