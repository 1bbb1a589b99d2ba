"""Structural similarity (Wang et al., 2004), by torchmetrics."""

from __future__ import annotations

from torch import Tensor

from cds3d.metrics.psnr import require_one_shape

_RADIUS = 5  # of the window


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean SSIM between images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma 1.5, of windows that lie in the image.

    mask: (H, W) bool; the mean is then over the windows at these pixels. Windows at its rim look a little beyond it.
    At the image's rim, and in images of 6 to 10 pixels a side, windows are filled up by reflection.

    ValueError for smaller images, which reflection cannot fill up, and for images of two shapes.
    """
    values = ssim_map(a, b)
    if mask is not None:
        return float(values[mask].mean())
    within = values[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return float((within if within.numel() else values).mean())


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(H, W) SSIM of each pixel's window, the mean over channels. ValueError as `ssim`."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    require_one_shape(a, b)
    if min(a.shape[:2]) <= _RADIUS:
        raise ValueError(f"SSIM needs at least {_RADIUS + 1} pixels a side, and an image has {tuple(a.shape[:2])}")
    a, b = (x.permute(2, 0, 1)[None].float() for x in (a, b))
    return structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)[1][0].mean(0)
