"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """dB between images (H, W, 3) in [0, 1]; mask (H, W) bool restricts it. Equal images give 100; no pixels, nan.

    ValueError for images of two shapes.
    """
    require_one_shape(a, b)
    squared = (a - b).square()
    squared = squared if mask is None else squared[mask]
    if squared.numel() == 0:
        return float("nan")
    return float(-10 * torch.log10(squared.mean().clamp(min=1e-10)))


def require_one_shape(a: Tensor, b: Tensor) -> None:
    """ValueError for images of two shapes, which torch may repeat until they are of one."""
    if a.shape != b.shape:
        raise ValueError(f"the images have different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
