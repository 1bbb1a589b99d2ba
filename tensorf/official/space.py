"""Where a model of TensoRF's authors lives: their rays, in their coordinates, from this project's cameras.

Field coordinates are the authors': the capture's own for a box, and for NDC the normalised device coordinates of their
LLFF loader, whose x and y are divided by the picture's half width and height, and run left (see `mirrored`) and up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorf.precision import full_precision
from tensorf.space import Rays, Space

# Shift of all samples along their rays, as a share of the longest one. The authors' first sample lies on the box's
# face, where rounding decides whether it counts: a speckle. Here it always does.
_INWARDS = 2e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class OfficialSpace(Space):
    """kind: "ndc" or "box". box: the authors' aabb.

    reference: (3, 4) pose of the authors' frame in the world: for NDC the mean camera, axes x right, y down, z forward.
    unit: world units in one of the authors'. near, far: of a box between which distances a ray may enter it, of NDC
    the near plane and the farthest depth; world units. stretch: (2,) NDC: what x / z and y / z are multiplied with.
    interval: of t, between samples. least_weight: see `Space`.
    """

    unit: float
    stretch: Tensor
    interval: float
    least_weight: float

    def to(self, device) -> OfficialSpace:
        return replace(super().to(device), stretch=self.stretch.to(device))

    def _begin(self, first: Tensor) -> Tensor:
        """Where rays begin whose first sample is at `first`: half an interval before, as `render.march` has it."""
        return first + _INWARDS * self.t_span - self.interval / 2

    @full_precision
    def cast(self, origins: Tensor, directions: Tensor, checked: bool = False) -> Rays:
        """As `Space.cast`. viewdirs are unit vectors in the authors' coordinates, of NDC too."""
        if self.kind == "ndc":
            rays = self._ndc_rays(origins, directions, checked)
            stretch = torch.cat([self.stretch, self.stretch.new_ones(1)]).to(origins)
            start, along = rays.origins * stretch, rays.directions * stretch
            viewdirs = torch.nn.functional.normalize(along, dim=1)
            return Rays(start, along, viewdirs, self._begin(rays.t_near), rays.t_far)
        frame = self.reference.to(origins)
        start, along = (origins - frame[:, 3]) @ frame[:, :3] / self.unit, directions @ frame[:, :3]
        along = along / along.norm(dim=1, keepdim=True)
        safe = torch.where(along == 0, torch.full_like(along, 1e-6), along)
        low, high = self.box.to(origins)
        a, b = (low - start) / safe, (high - start) / safe
        enter, leave = torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)
        t_near = self._begin(enter.clamp(self.near / self.unit, self.far / self.unit))
        # What lies outside the box is left out by the march: rounding at the end must not take a sample away.
        return Rays(start, along, along, t_near, torch.maximum(leave + self.interval, t_near))

    def pace(self, rays: Rays) -> Tensor | None:
        """As `Space.pace`: the authors measure opacity along NDC's rays."""
        return rays.directions.norm(dim=1) if self.kind == "ndc" else None

    def world(self, x: Tensor) -> Tensor:
        """As `Space.world`."""
        low, high = self.box[0], self.box[1]
        points = low + (x + 1) / 2 * (high - low)
        if self.kind == "ndc":
            z = 2 / (1 - points[..., 2:]).clamp(min=1e-3)
            points = torch.cat([points[..., :2] / self.stretch * z, z], -1)
        return self.unit * points @ self.reference[:, :3].T + self.reference[:, 3]

    def distance(self, t: Tensor, rays: Rays, ray: Tensor) -> Tensor:
        """As `Space.distance`."""
        return t * self.unit if self.kind == "box" else t

    def parameter(self, points: Tensor, rays: Rays) -> Tensor:
        """As `Space.parameter`."""
        if self.kind == "ndc":
            return super().parameter(points, rays)
        frame = self.reference.to(points)
        return ((points - frame[:, 3]) @ frame[:, :3] / self.unit - rays.origins).norm(dim=1)
