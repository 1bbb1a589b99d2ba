"""Which space is worth sampling: a grid over the field's box, a bit a cell.

It works in the field's own coordinates and so serves NDC and boxes alike. How it is measured: `pruning.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4  # steps that are skipped together
_REACH = 2  # cells that half a block may cross: the coarse grid is grown by as many


class Lookup:
    """Fast queries of an occupancy grid (z, y, x) bool, for rays given in its cell coordinates.

    The grid is framed by one empty cell, so that outside needs no test: indices are clamped into the frame.
    """

    def __init__(self, occupancy: Tensor):
        depth, height, width = occupancy.shape
        self.size = torch.tensor([width, height, depth], dtype=torch.float32, device=occupancy.device)
        grown = F.max_pool3d(occupancy[None, None].float(), 2 * _REACH + 1, 1, _REACH)[0, 0] > 0
        self.fine, self.coarse = (F.pad(g, (1, 1, 1, 1, 1, 1)).contiguous() for g in (occupancy, grown))

    def cells(self, x: Tensor) -> Tensor:
        """[-1, 1] -> cell coordinates of the framed grid: the first true cell spans 1..2."""
        return (x + 1) * (0.5 * self.size) + 1

    def at(self, grid: Tensor, origin: Tensor, direction: Tensor, t: Tensor) -> Tensor:
        """(rays, k) bool at origin + t direction; origin, direction (rays, 3) in cells, t (rays, k)."""
        index = None
        for axis, size in zip((2, 1, 0), grid.shape):
            cell = torch.addcmul(origin[:, axis, None], direction[:, axis, None], t)
            cell = cell.clamp_(0, size - 0.5).int()
            index = cell if index is None else index.mul_(size).add_(cell)
        return grid.view(-1)[index.view(-1)].view(t.shape)


def is_occupied(occupancy: Tensor, x: Tensor) -> Tensor:
    """occupancy (z, y, x) bool, x (n, 3) -> (n,) bool; outside [-1, 1] nothing is occupied."""
    inside = (x.abs() <= 1).all(-1)
    return inside & occupancy.view(-1)[cell_index(occupancy.shape, x)]


def cell_index(shape, x: Tensor) -> Tensor:
    """(n, 3) points in [-1, 1] (clamped) -> flat indices of their cells in a grid of `shape` (z, y, x)."""
    depth, height, width = shape
    size = torch.tensor([width, height, depth], device=x.device, dtype=x.dtype)
    i = ((x.clamp(-1, 1) + 1) * 0.5 * size).long()
    ix, iy, iz = i[:, 0].clamp(max=width - 1), i[:, 1].clamp(max=height - 1), i[:, 2].clamp(max=depth - 1)
    return (iz * height + iy) * width + ix
