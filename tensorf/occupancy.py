"""Which space is worth sampling: a grid of cells over the field's box, and the march along rays through it.

It works in the field's own coordinates and so serves NDC and boxes alike. How it is measured: `pruning.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.contraction import RayWarp, contract
from tensorf.lookup import compiled_for, in_parallel, kernels, spans

_RAYS = 1024  # a task


@dataclass(frozen=True, eq=False)
class Samples:
    """Packed samples, sorted by ray.

    x (n, 3) in [-1, 1]; ray (n,) ascending; t (n,) ray parameters; step (n,): length of the interval that a sample
    stands for, in the space's units of density; first (rays,): index of each ray's first sample, for a ray without any
    the next ray's (n, if it is the last).
    """

    x: Tensor
    ray: Tensor
    t: Tensor
    step: Tensor
    first: Tensor
    rays: int

    def subset(self, index: Tensor) -> Samples:
        """The samples `index` (m,) int64, ascending, of the same rays."""
        ray = self.ray[index]
        count = count_by_ray(ray, self.rays)
        x, t, step = self.x[index], self.t[index], self.step[index]
        return Samples(x, ray, t, step, count.cumsum(0) - count, self.rays)


def count_by_ray(ray: Tensor, rays: int) -> Tensor:
    """(rays,) how many samples each ray has; ray (n,) int64, ascending. `bincount` would wait for a GPU."""
    return torch.searchsorted(ray, torch.arange(rays + 1, device=ray.device)).diff()


def occupied_samples(
    occupancy: Tensor,
    origin: Tensor,
    direction: Tensor,
    begin: Tensor,
    end: Tensor,
    dt: float,
    steps: int,
    warp: RayWarp | None = None,
) -> Samples:
    """Samples at t = begin + i dt (i < steps, t < end) on each ray, in occupied cells only.

    occupancy (z, y, x) bool over [-1, 1]; origin, direction (rays, 3); begin, end (rays,). Outside nothing is occupied.
    Without `warp` the position at t is origin + t direction, and each step is dt long. With it, origin and direction
    are those of `contraction`, positions are contracted and halved, and steps are lengths of s.
    """
    if compiled_for(origin):
        return _compiled_march(occupancy, origin, direction, begin, end, dt, steps, warp)
    t = begin[:, None] + torch.arange(steps, device=begin.device, dtype=begin.dtype) * dt
    if warp is None:
        x = origin[:, None] + t[..., None] * direction[:, None]
    else:
        warp = warp[:, None]
        u = origin[:, None] + warp.distance(t)[..., None] * direction[:, None]
        x = contract(u) / 2
    inside = ((x.abs() <= 1).all(-1)) & (t < end[:, None])
    keep = inside & occupancy.view(-1)[cell_index(occupancy.shape, x.view(-1, 3))].view(t.shape)
    kept = keep.flatten().nonzero()[:, 0]  # once: each mask as an index would wait for a GPU
    count = keep.sum(1)
    step = _constant(dt, len(kept), x) if warp is None else warp.rate(t).view(-1)[kept] * dt
    return Samples(x.view(-1, 3)[kept], kept // steps, t.view(-1)[kept], step, count.cumsum(0) - count, len(begin))


def _constant(value: float, count: int, like: Tensor) -> Tensor:
    return like.new_full((1,), value).expand(count)


def _compiled_march(occupancy, origin, direction, begin, end, dt, steps, warp) -> Samples:
    rays = len(begin)
    arrays = [occupancy.contiguous().view(torch.uint8).numpy()]
    arrays += [a.detach().contiguous().numpy() for a in (origin, direction)]
    if warp is not None:
        arrays.append(torch.stack([warp.enter, warp.leave, warp.reach], 1).numpy())
    arrays += [a.detach().contiguous().numpy() for a in (begin, end)]
    kernel = kernels().march if warp is None else kernels().contracted_march
    count, first = np.zeros(rays, np.int64), np.zeros(rays, np.int64)

    def run(ray, t, x, *step) -> None:
        settings = (np.float32(dt), steps, count, first, ray, t, x, *step)
        in_parallel([lambda s=span: kernel(*arrays, *settings, *s) for span in spans(rays, _RAYS)])

    def empty(total: int):
        numbers = [np.empty(total, np.float32)] * (warp is not None)
        return np.empty(total, np.int64), np.empty(total, np.float32), np.empty((total, 3), np.float32), *numbers

    run(*empty(0))
    np.cumsum(count[:-1], out=first[1:])
    total = int(count.sum())
    found = empty(total)
    if total:
        run(*found)
    ray, t, x, *step = map(torch.from_numpy, found)
    return Samples(x, ray, t, step[0] if step else _constant(dt, total, x), torch.from_numpy(first), rays)


def cell_index(shape, x: Tensor) -> Tensor:
    """(n, 3) points in [-1, 1] (clamped) -> flat indices of their cells in a grid of `shape` (z, y, x).

    NaN becomes some cell, as no index may lie outside: whoever asks leaves it out.
    """
    depth, height, width = shape
    share = (x.clamp(-1, 1) + 1) * 0.5
    ix, iy, iz = ((share[:, k] * n).long().clamp(0, n - 1) for k, n in enumerate((width, height, depth)))
    return (iz * height + iy) * width + ix


def grown(cells: Tensor, radius: int) -> Tensor:
    """(z, y, x): the largest of the cube of 2 radius + 1 cells around each. Of true and false: where any is true."""
    largest = cells.float()[None, None]
    for axis in range(3):  # one after the other: a cube of cells takes three lines of them
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = 2 * radius + 1, radius
        largest = F.max_pool3d(largest, size, 1, padding)
    return largest[0, 0].to(cells.dtype)
