"""Which space is worth sampling: a grid over the field's box, a bit a cell.

It works in the field's own coordinates and so serves NDC and boxes alike. How it is measured: `pruning.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_occupied(occupancy: Tensor, x: Tensor) -> Tensor:
    """occupancy (z, y, x) bool, x (n, 3) -> (n,) bool; outside [-1, 1] nothing is occupied."""
    inside = (x.abs() <= 1).all(-1)
    if occupancy.numel() == 1:
        return inside
    return inside & occupancy.view(-1)[cell_index(occupancy.shape, x)]


def cell_index(shape, x: Tensor) -> Tensor:
    depth, height, width = shape
    size = torch.tensor([width, height, depth], device=x.device, dtype=x.dtype)
    i = ((x.clamp(-1, 1) + 1) * 0.5 * size).long()
    ix, iy, iz = i[:, 0].clamp(max=width - 1), i[:, 1].clamp(max=height - 1), i[:, 2].clamp(max=depth - 1)
    return (iz * height + iy) * width + ix
