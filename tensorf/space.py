"""Where a field lives: the map from a camera's pixels to rays in the field's own coordinates.

Three kinds of space, one interface:

- "ndc", for forward-facing captures. With (x, y, z) a point in the frame of the reference camera (z its depth), the
  field's coordinates are (x / z, y / z, 1 - 2 near / z): rays stay straight, and depth is linear in disparity, so that
  everything from the near plane to infinity fits in a box (NeRF, Mildenhall et al. 2020, appendix C).
- "box", for objects cut out of their background: world coordinates inside a bounding box; nothing is modelled outside.
- "unbounded", for all other captures: an inner box for what the cameras look at, and everything around it contracted
  (`contraction.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.contraction import SPAN, RayWarp, contract, expand
from tensorf.errors import UserError
from tensorf.precision import full_precision, rotated

NEAR_MARGIN = 0.75  # of the nearest depth, as the LLFF code: bounds from sparse points cut into near surfaces

_LEAST_FORWARD = 0.05  # cosine to the reference axis below which a ray cannot be treated in NDC


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays in the field's coordinates: points are `origins + t * directions` for t_near <= t <= t_far.

    origins, directions, viewdirs: (rays, 3); t_near, t_far: (rays,). Steps of equal t are what opacity is measured
    in. `viewdirs` are unit vectors in the world (box, unbounded) or the reference camera's frame (ndc). In unbounded
    space positions are `origins + s * directions`, and t leads to s by `contraction.RayWarp`.
    """

    origins: Tensor
    directions: Tensor
    viewdirs: Tensor
    t_near: Tensor
    t_far: Tensor

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index) -> Rays:
        return Rays(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device) -> Rays:
        return Rays(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @staticmethod
    def concatenate(parts: list[Rays]) -> Rays:
        return Rays(*(torch.cat([getattr(p, name) for p in parts]) for name in Rays.__dataclass_fields__))


SPACES = ("ndc", "box", "unbounded")


@dataclass(frozen=True, eq=False)
class Space:
    """kind: "ndc", "box" or "unbounded". box: (2, 3) low and high corner in field coordinates, of unbounded space its
    inner box in the world's. near, far: depths, world units.

    reference: (3, 4) pose of NDC's reference camera (camera to world); unused by others. background: the grey level
    behind everything, 0 (black) to 1 (white).
    """

    kind: str
    box: Tensor
    near: float
    far: float
    reference: Tensor
    background: float = 0.0

    # Samples of less weight stay black, as TensoRF's authors have it. None: samples of little weight share colours.
    least_weight = None

    @property
    def density_scale(self) -> float:
        """Factor on (density x step): keeps useful densities near 1 to 10 whatever the unit of t."""
        return 100.0 if self.kind == "ndc" else 25.0

    @property
    def t_span(self) -> float:
        """The longest stretch of t that a ray can have."""
        if self.kind == "unbounded":
            return SPAN
        return float((self.box[1] - self.box[0]).norm()) if self.kind == "box" else 1.0

    @property
    def extent(self) -> Tensor:
        """(3,) of the box that grids fill: field coordinates, or, if unbounded, a cube's."""
        return self.box[1] - self.box[0] if self.kind != "unbounded" else torch.ones_like(self.box[0])

    @property
    def shrinks(self) -> bool:
        """Whether training crops the box to what is in it. NDC's holds all rays, an inner box is no border."""
        return self.kind == "box"

    @property
    def damped_near(self) -> float:
        """World units from a camera within which training damps gradients of density (`render_rays`); 0: none."""
        if self.kind == "box":
            return float(self.extent.max()) / 3  # cameras stand inside or close by
        return 1.0 if self.kind == "unbounded" else 0.0  # nothing lies before NDC's near plane

    def with_box(self, box: Tensor) -> Space:
        return replace(self, box=box)

    def to(self, device) -> Space:
        return replace(self, box=self.box.to(device), reference=self.reference.to(device))

    def normalise(self, points: Tensor) -> Tensor:
        """Field coordinates (..., 3) -> [-1, 1] inside the box; in unbounded space world coordinates, anywhere."""
        low, high = self.box[0], self.box[1]
        inside = (points - low) * (2 / (high - low)) - 1
        return contract(inside) / 2 if self.kind == "unbounded" else inside

    def world(self, x: Tensor) -> Tensor:
        """Positions (..., 3) in [-1, 1], as samples have them, -> world coordinates."""
        low, high = self.box[0], self.box[1]
        if self.kind == "unbounded":
            x = expand(2 * x)
        points = low + (x + 1) / 2 * (high - low)
        if self.kind != "ndc":
            return points
        z = 2 * self.near / (1 - points[..., 2:]).clamp(min=1e-3)
        return torch.cat([points[..., :2] * z, z], -1) @ self.reference[:, :3].T + self.reference[:, 3]

    def rays(self, camera: Camera) -> Rays:
        """All rays of a camera, row by row. UserError if NDC cannot hold them."""
        return self.cast(*camera.pixel_rays())

    @full_precision
    def cast(self, origins: Tensor, directions: Tensor, checked: bool = False) -> Rays:
        """World-space rays (n, 3), directions of unit depth, in the field's coordinates. UserError as `rays`.

        checked: the caller knows that NDC can hold them; a GPU would be waited for to find out.
        """
        if self.kind == "ndc":
            return self._ndc_rays(origins, directions, checked)
        if self.kind == "box":
            return self._box_rays(origins, directions)
        return self._unbounded_rays(origins, directions)

    def _ndc_rays(self, origins: Tensor, directions: Tensor, checked: bool) -> Rays:
        rotation, center = self.reference[:, :3].to(origins), self.reference[:, 3].to(origins)
        o, d = rotated(rotation.T, origins - center), rotated(rotation.T, directions)
        viewdirs = torch.nn.functional.normalize(d, dim=1)
        if not checked and (viewdirs[:, 2] < _LEAST_FORWARD).any():
            raise UserError(
                "the camera looks sideways or back from a forward-facing field: train it with space=unbounded"
            )
        on_near = o + ((self.near - o[:, 2:]) / d[:, 2:]) * d  # the ray's point on the near plane
        start = torch.cat([on_near[:, :2] / self.near, -torch.ones_like(o[:, :1])], 1)
        end = torch.cat([d[:, :2] / d[:, 2:], torch.ones_like(o[:, :1])], 1)  # its limit at infinity
        zeros = torch.zeros_like(o[:, 0])
        return Rays(start, end - start, viewdirs, zeros, zeros + 1)

    def _box_rays(self, origins: Tensor, directions: Tensor) -> Rays:
        lengths = directions.norm(dim=1)
        unit = directions / lengths[:, None]
        low, high = self.box.to(origins)
        safe = torch.where(unit.abs() < 1e-9, torch.full_like(unit, 1e-9), unit)
        a, b = (low - origins) / safe, (high - origins) / safe
        enter, leave = torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)
        t_near = torch.maximum(enter, self.near * lengths)  # depth -> distance along this ray
        t_far = torch.minimum(leave, self.far * lengths)
        return Rays(origins, unit, unit, t_near, torch.maximum(t_far, t_near))

    def _unbounded_rays(self, origins: Tensor, directions: Tensor) -> Rays:
        lengths = directions.norm(dim=1)
        unit = directions / lengths[:, None]
        center, half = self.box.mean(0).to(origins), (self.box[1] - self.box[0]).to(origins) / 2
        o, d = (origins - center) / half, unit / half
        scale = self._unit(unit)
        d = d * scale[:, None]
        warp = RayWarp.of(o, d)
        t_near = warp.parameter(self.near * lengths / scale)
        return Rays(o, d, unit, t_near, warp.parameter(self.far * lengths / scale))

    def _unit(self, viewdirs: Tensor) -> Tensor:
        """(rays,) world units in one of s, the unbounded rays' distance."""
        half = (self.box[1] - self.box[0]).to(viewdirs) / 2
        return 1 / (viewdirs / half).abs().amax(1)

    def lines(self, rays: Rays) -> tuple[Tensor, Tensor, RayWarp | None]:
        """Rays as `occupied_samples` takes them: origins and directions (rays, 3), and the warp of unbounded space."""
        if self.kind == "unbounded":
            return rays.origins, rays.directions, RayWarp.of(rays.origins, rays.directions)
        origins = self.normalise(rays.origins)
        return origins, self.normalise(rays.origins + rays.directions) - origins, None

    def distance(self, t: Tensor, rays: Rays, ray: Tensor) -> Tensor:
        """t (n,) on the rays with index `ray` (n,) -> distances along them, world units; in NDC, which has none, t."""
        if self.kind != "unbounded":
            return t
        warp, scale = RayWarp.of(rays.origins, rays.directions), self._unit(rays.viewdirs)
        return warp[ray].distance(t) * scale[ray]

    def pace(self, rays: Rays) -> Tensor | None:
        """(rays,) optical length of one unit of t; None if it is 1, or if `RayWarp` gives it."""
        return None

    def parameter(self, points: Tensor, rays: Rays) -> Tensor:
        """Where t (rays,) reaches world points (rays, 3), one on each ray."""
        if self.kind == "ndc":
            depth = (points - self.reference[:, 3].to(points)) @ self.reference[:, 2].to(points)
            return 1 - self.near / depth.clamp(min=self.near)
        if self.kind == "box":
            return (points - rays.origins).norm(dim=1)
        center, half = self.box.mean(0).to(points), (self.box[1] - self.box[0]).to(points) / 2
        s = ((points - center) / half - rays.origins).norm(dim=1) / rays.directions.norm(dim=1)
        return RayWarp.of(rays.origins, rays.directions).parameter(s)

    def depth(self, t: Tensor, rays: Rays) -> Tensor:
        """Ray parameter (rays,) -> depth along the reference axis (ndc) or distance along the ray."""
        if self.kind == "ndc":
            return self.near / (1 - t).clamp(min=1e-3)
        return self.distance(t, rays, torch.arange(len(rays), device=t.device))

    def points(self, camera: Camera, depth: Tensor) -> Tensor:
        """World points (H, W, 3) that a camera sees at these depths (H, W), counted as `depth` does."""
        origins, directions = (a.to(depth) for a in camera.pixel_rays())
        flat = depth.reshape(-1, 1)
        if self.kind == "ndc":
            axis, center = self.reference[:, 2].to(depth), self.reference[:, 3].to(depth)
            ahead, per_step = (((v * axis).sum(1, keepdim=True)) for v in (origins - center, directions))
            steps = (flat - ahead) / per_step
        else:
            steps = flat / directions.norm(dim=1, keepdim=True)
        return (origins + steps * directions).view(*depth.shape, 3)

    def depth_of(self, camera: Camera, points: Tensor) -> Tensor:
        """The depth (...) at which a camera sees world points (..., 3), counted as `depth` does."""
        if self.kind == "ndc":
            return ((points - self.reference[:, 3].to(points)) * self.reference[:, 2].to(points)).sum(-1)
        return (points - camera.position.to(points)).norm(dim=-1)


def space_of(capture) -> Space:
    """The space for a `captures.Capture`, of the kind that it names."""
    background = 1.0 if capture.background == "white" else 0.0
    if capture.space == "unbounded":
        # Something is seen along every ray. Grey behind it all tells what is dark from what is transparent, and fills
        # what little a ray misses better than black. In NDC it was tried: dark fog gathered around what is near.
        background = sum(capture.images[i].float().mean().item() for i in capture.train) / len(capture.train) / 255
    if capture.space != "ndc":
        return Space(capture.space, capture.box.clone(), capture.near, capture.far, capture.reference, background)
    near = NEAR_MARGIN * capture.near
    space = Space("ndc", torch.zeros(2, 3, dtype=torch.float32), near, capture.far, capture.reference, background)
    return space.with_box(_ndc_box(space, capture.cameras))


def _ndc_box(space: Space, cameras: list[Camera]) -> Tensor:
    """The smallest box that holds every camera's rays, with a margin of 2% for views in between."""
    ends = []
    for camera in cameras:
        rays = space.rays(camera.resized(8, 8))  # few, through the centres of large pixels
        ends += [rays.origins, rays.origins + rays.directions]
    points = torch.cat(ends)
    low, high = points.amin(0), points.amax(0)
    margin = 0.09 * (high - low)  # the half pixel at each border is a sixteenth of the width; and 2%
    low, high = low - margin, high + margin
    low[2], high[2] = -1.0, 1.0
    return torch.stack([low, high])
