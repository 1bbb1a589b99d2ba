"""Space without end: contraction of positions, and a ray parameter that follows it.

Positions u are counted from the centre of an inner box in its half sizes, so that the box is [-1, 1]^3. With
n = max |u_k|, the contraction is c(u) = u inside the box and (2 - 1 / n) u / n outside: all of space in [-2, 2]^3, with
infinity on the surface. It is equation 10 of mip-NeRF 360 (Barron et al., CVPR 2022) in the L-infinity form of
nerfstudio (Tancik et al., SIGGRAPH 2023): its range is a cube, which grids fill.

Along a ray u(s) = o + s d with max |d_k| = 1, samples are equidistant in a parameter t:

- s is linear in t between `enter` and `leave`, where the ray is inside the box;
- beyond, with x the distance from there, t grows by x / (reach + x): linear in disparity, like the contraction;
- before `enter` the same backwards. A ray that misses the box has enter = leave where it is closest to the centre, and
  `reach` is n there; for all others reach is 1.

So t lies in (0, 4): 1 before the box, at most 2 inside it, 1 behind it. Samples are equidistant in t, which is about
equidistant in contracted space. Opacity is measured along s, not along t. Measured along t, fog right before a camera
would be as cheap as a whole background, and training would explain each photo by such fog.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPAN = 4.0  # of t


@dataclass(frozen=True, eq=False)
class RayWarp:
    """Where rays meet the inner box. enter, leave: s, (rays,), at least 0; reach: (rays,), at least 1."""

    enter: Tensor
    leave: Tensor
    reach: Tensor

    @staticmethod
    def of(origins: Tensor, directions: Tensor) -> RayWarp:
        """origins, directions (rays, 3): in half sizes of the inner box, with max |d_k| = 1."""
        safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
        a, b = (-1 - origins) / safe, (1 - origins) / safe
        enter, leave = torch.minimum(a, b).amax(1).clamp(min=0), torch.maximum(a, b).amin(1)
        hit = leave > enter
        closest = (-(origins * directions).sum(1) / directions.square().sum(1)).clamp(min=0)
        enter, leave = torch.where(hit, enter, closest), torch.where(hit, leave, closest)
        n = (origins + enter[:, None] * directions).abs().amax(1)
        return RayWarp(enter, leave, torch.where(hit, torch.ones_like(n), n.clamp(min=1)))

    def __getitem__(self, index) -> RayWarp:
        return RayWarp(self.enter[index], self.leave[index], self.reach[index])

    def parameter(self, s: Tensor) -> Tensor:
        """Distance s >= 0 (rays,) -> parameter t (rays,)."""
        before, behind = (self.enter - s).clamp(min=0), (s - self.leave).clamp(min=0)
        inside = torch.minimum(s, self.leave) - self.enter
        t = 1 + inside.clamp(min=0) + behind / (self.reach + behind)
        return t - before / (self.reach + before)

    def distance(self, t: Tensor) -> Tensor:
        """t in (0, end) -> s, (rays,)."""
        before, behind = self._outside(t)
        inside = torch.minimum(t - 1, self.leave - self.enter).clamp(min=0)
        s = self.enter + inside + self.reach * behind / (1 - behind)
        return s - self.reach * before / (1 - before)

    def rate(self, t: Tensor) -> Tensor:
        """ds / dt, (rays,)."""
        before, behind = self._outside(t)
        outside = before + behind
        return torch.where(outside > 0, self.reach / (1 - outside).square(), torch.ones_like(t))

    def _outside(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """How far t is before and behind the box, in [0, 1)."""
        most = 1 - 1e-4
        return (1 - t).clamp(0, most), (t - 1 - (self.leave - self.enter)).clamp(0, most)


def contract(u: Tensor) -> Tensor:
    """(..., 3) -> (..., 3) in [-2, 2]."""
    n = u.abs().amax(-1, keepdim=True).clamp(min=1)
    return (2 - 1 / n) * u / n


def expand(c: Tensor) -> Tensor:
    """The inverse of `contract`: (..., 3) in [-2, 2] -> (..., 3). The surface, which is infinity, stays finite."""
    n = c.abs().amax(-1, keepdim=True)
    return torch.where(n <= 1, c, c / (n * (2 - n).clamp(min=1e-6)))
