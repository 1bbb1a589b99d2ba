"""Which space is worth sampling: a grid of cells over the field's box, and the march along rays through it.

It works in the field's own coordinates and so serves NDC and boxes alike. How it is measured: `pruning.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tensorf.lookup import compiled_for, in_parallel, kernels, spans

_RAYS = 1024  # a task


@dataclass(frozen=True)
class Samples:
    """Packed samples, sorted by ray.

    x (n, 3) in [-1, 1]; ray (n,) ascending; t (n,) ray parameters; first (rays,): index of each ray's first sample, for
    a ray without any the next ray's (n, if it is the last).
    """

    x: Tensor
    ray: Tensor
    t: Tensor
    first: Tensor
    rays: int

    def subset(self, index: Tensor) -> Samples:
        """The samples `index` (m,) int64, ascending, of the same rays."""
        ray = self.ray[index]
        count = torch.bincount(ray, minlength=self.rays)
        return Samples(self.x[index], ray, self.t[index], count.cumsum(0) - count, self.rays)


def occupied_samples(
    occupancy: Tensor, origin: Tensor, direction: Tensor, begin: Tensor, end: Tensor, dt: float, steps: int
) -> Samples:
    """Of the positions t = begin + i dt < end, i < steps, on each ray those in occupied cells.

    occupancy (z, y, x) bool over [-1, 1]; origin, direction (rays, 3); begin, end (rays,). Outside nothing is occupied.
    """
    if compiled_for(origin):
        return _compiled_march(occupancy, origin, direction, begin, end, dt, steps)
    t = begin[:, None] + torch.arange(steps, device=begin.device) * dt
    x = origin[:, None] + t[..., None] * direction[:, None]
    inside = ((x.abs() <= 1).all(-1)) & (t < end[:, None])
    keep = inside & occupancy.view(-1)[cell_index(occupancy.shape, x.view(-1, 3))].view(t.shape)
    ray = keep.nonzero()[:, 0]
    count = keep.sum(1)
    return Samples(x[keep], ray, t[keep], count.cumsum(0) - count, len(begin))


def _compiled_march(occupancy, origin, direction, begin, end, dt, steps) -> Samples:
    rays = len(begin)
    arrays = [occupancy.contiguous().view(torch.uint8).numpy()]
    arrays += [a.detach().contiguous().numpy() for a in (origin, direction, begin, end)]
    count, first = np.zeros(rays, np.int64), np.zeros(rays, np.int64)

    def run(ray, t, x) -> None:
        settings = (np.float32(dt), steps, count, first, ray, t, x)
        in_parallel([lambda s=span: kernels().march(*arrays, *settings, *s) for span in spans(rays, _RAYS)])

    run(np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 3), np.float32))
    np.cumsum(count[:-1], out=first[1:])
    total = int(count.sum())
    ray, t, x = np.empty(total, np.int64), np.empty(total, np.float32), np.empty((total, 3), np.float32)
    if total:
        run(ray, t, x)
    return Samples(*map(torch.from_numpy, (x, ray, t, first)), rays)


def cell_index(shape, x: Tensor) -> Tensor:
    """(n, 3) points in [-1, 1] (clamped) -> flat indices of their cells in a grid of `shape` (z, y, x)."""
    depth, height, width = shape
    size = torch.tensor([width, height, depth], device=x.device, dtype=x.dtype)
    i = ((x.clamp(-1, 1) + 1) * 0.5 * size).long()
    ix, iy, iz = i[:, 0].clamp(max=width - 1), i[:, 1].clamp(max=height - 1), i[:, 2].clamp(max=depth - 1)
    return (iz * height + iy) * width + ix
