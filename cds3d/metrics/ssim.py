"""Structural similarity (Wang et al., 2004), by torchmetrics."""

from __future__ import annotations

from torch import Tensor


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean SSIM between images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma 1.5.

    mask: (H, W) bool; the mean is then over the windows at these pixels. Windows at its rim look a little beyond it.
    """
    return float(_ssim(a, b) if mask is None else ssim_map(a, b)[mask].mean())


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(H, W) SSIM of each pixel's window, the mean over channels."""
    return _ssim(a, b, return_full_image=True)[1][0].mean(0)


def _ssim(a: Tensor, b: Tensor, **options):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (x.permute(2, 0, 1)[None].float() for x in (a, b))
    return structural_similarity_index_measure(a, b, data_range=1.0, **options)
