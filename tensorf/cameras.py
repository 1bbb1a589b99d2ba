"""Pinhole cameras and their rays: the first step of every render.

Axes are OpenCV's throughout: x right, y down, z forward. Pixel (column u, row v) has its centre at
(u + 0.5, v + 0.5); `cx`, `cy` are measured from the image's top left corner, in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tensorf.precision import full_precision, rotated

_TOLERANCE = 1e-2  # of R^T R to the identity: rotations that were rounded to two decimals pass


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera without distortion. Cameras are equal if they are one and the same object.

    pose: (3, 4) float32 (others are converted), camera to world, `[R | t]`, R a rotation (right-handed,
    determinant +1). fx, fy, cx, cy: pixels. width, height: pixels.

    Raises ValueError for poses of another shape, for those on the CPU whose R is no rotation: scaled, sheared,
    mirrored or not finite, for fx and fy that are no finite numbers above 0, cx and cy that are not finite, and a width
    or height that is no whole number of at least 1. `Capture.camera_at` takes poses of a capture's own coordinates to
    its world.
    """

    pose: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self):
        pose = self.pose if isinstance(self.pose, Tensor) else torch.as_tensor(self.pose, device="cpu")
        pose = pose.to(torch.float32)
        if pose.shape != (3, 4):
            raise ValueError(f"pose of shape {tuple(pose.shape)} has to be (3, 4): [R | t], camera to world")
        object.__setattr__(self, "pose", pose)
        for name in ("fx", "fy", "cx", "cy"):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or name in ("cx", "cy"))):
                what = "a finite number" if name in ("cx", "cy") else "a finite number above 0"
                raise ValueError(f"the camera's {name}={value} has to be {what}, in pixels")
        for name in ("width", "height"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"the camera's {name}={value!r} has to be a whole number of at least 1, in pixels")
        if pose.device.type == "cpu":  # a GPU would be waited for
            _check_rotation(pose[:, :3].detach().numpy())

    @property
    def position(self) -> Tensor:
        """(3,) the optical centre, world units."""
        return self.pose[:, 3]

    @property
    def forward(self) -> Tensor:
        """(3,) unit vector along the optical axis."""
        return self.pose[:, 2]

    def resized(self, width: int, height: int) -> Camera:
        """The same camera at another image size: intrinsics scale with the image, axis by axis."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )

    def turned(self, quarters: int) -> Camera:
        """The camera of the image turned by so many times 90 degrees clockwise: what was its left edge is its top."""
        camera = self
        for _ in range(quarters % 4):
            right, down, forward, position = camera.pose.T
            camera = Camera(
                torch.stack([-down, right, forward, position], 1),
                camera.fy, camera.fx, camera.height - camera.cy, camera.cx, camera.height, camera.width,
            )  # fmt: skip
        return camera

    def with_pose(self, pose: Tensor) -> Camera:
        """The same intrinsics elsewhere; pose (3, 4)."""
        return replace(self, pose=pose)

    @full_precision
    def pixel_rays(self) -> tuple[Tensor, Tensor]:
        """World-space rays through all pixel centres, row by row.

        Returns `rays_o`, `rays_d`, both (height * width, 3). Directions are not normalised: they have
        unit length along the optical axis, so that a ray parameter is a depth (z), not a distance.
        """
        device = self.pose.device
        v, u = torch.meshgrid(
            torch.arange(self.height, dtype=torch.float32, device=device) + 0.5,
            torch.arange(self.width, dtype=torch.float32, device=device) + 0.5,
            indexing="ij",
        )
        local = torch.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy, torch.ones_like(u)], -1)
        rays_d = rotated(self.pose[:, :3], local.reshape(-1, 3))
        return self.position.expand_as(rays_d).contiguous(), rays_d

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points (..., 3) -> pixels (..., 2), column and row, and depths (...) along the optical axis.

        Pixels of points that are not in front of the camera (depth <= 0) mean nothing.
        """
        pose = self.pose.to(points)
        local = (points - pose[:, 3]) @ pose[:, :3]
        depth = local[..., 2]
        ahead = depth.clamp(min=1e-9)
        u, v = local[..., 0] / ahead * self.fx + self.cx, local[..., 1] / ahead * self.fy + self.cy
        return torch.stack([u, v], -1), depth

    def shows(self, points: Tensor) -> Tensor:
        """(n,) bool: which world points (n, 3) lie in front of the camera and in its picture, whatever hides them."""
        pixels, depth = self.project(points)
        u, v = pixels.T
        return (depth > 0) & (u > 0) & (u < self.width) & (v > 0) & (v < self.height)


def _check_rotation(rotation: np.ndarray) -> None:
    """ValueError unless the (3, 3) matrix is a rotation."""
    off = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if not (off <= _TOLERANCE and np.linalg.det(rotation) > 0):  # so written, NaN is refused
        what = "it is a mirror image" if off <= _TOLERANCE else f"R^T R is {off:.2g} off the identity"
        raise ValueError(
            f"the pose's R is no rotation ({what}): Capture.camera_at takes poses of the capture's own coordinates to "
            "its world"
        )


def size_for_width(width: int, height: int, target_width: int) -> tuple[int, int]:
    """(width, height) in pixels at `target_width` with the aspect kept; the height is rounded."""
    return target_width, max(1, round(height * target_width / width))
