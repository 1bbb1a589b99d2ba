"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """dB between images (H, W, 3) in [0, 1]; mask (H, W) bool restricts it. Equal images give 100; no pixels, nan."""
    squared = (a - b).square()
    squared = squared if mask is None else squared[mask]
    if squared.numel() == 0:
        return float("nan")
    return float(-10 * torch.log10(squared.mean().clamp(min=1e-10)))
