"""What lies around each pixel of a mask or a picture: its largest value, and its mean."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dilated(mask: Tensor, radius: int) -> Tensor:
    """(..., H, W): the largest of the square of 2 radius + 1 pixels around each. Of true and false: where any is true.

    Of the negative of a mask it is the negative of the smallest.
    """
    grown = mask.float().reshape(-1, *mask.shape[-2:])
    for size, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        grown = F.max_pool2d(grown, size, 1, padding)
    return grown.view(mask.shape).to(mask.dtype)


def averaged(picture: Tensor, side: int) -> Tensor:
    """(N, C, H, W): the mean of the square of `side` pixels, an odd number, around each; at borders of what is left."""
    return F.avg_pool2d(picture, side, 1, side // 2, count_include_pad=False)
