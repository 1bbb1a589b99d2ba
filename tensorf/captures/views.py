"""What a reader hands over: views as the capture's files state them, before any photo is loaded.

Poses are OpenCV camera-to-world (x right, y down, z forward) in the capture's own coordinates; readers convert their
format's axes. Every pose passes `checked_pose`, so that later steps may rely on rotations.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tensorf.errors import UserError

log = logging.getLogger("tensorf")

MINIMUM_VIEWS = 3
_ROTATION_TOLERANCE = 1e-2
_FARTHEST = 1e15  # squares of distances have to fit into float32


@dataclass(frozen=True)
class Lens:
    """Intrinsics in pixels of a `width` x `height` image, pixel centres at (u + 0.5, v + 0.5).

    distortion: OpenCV's (k1, k2, p1, p2, k3), with (k4, k5, k6) after them in its rational model, or (k1, k2, k3, k4)
    of the fisheye model; empty for a pinhole.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: float
    height: float
    distortion: tuple[float, ...] = ()
    fisheye: bool = False

    @property
    def size(self) -> tuple[float, float]:
        return self.width, self.height

    @property
    def distorted(self) -> bool:
        """Whether it is no pinhole. A fisheye is none whatever its coefficients: its angles grow with the radius."""
        return self.fisheye or any(self.distortion)

    def resized(self, width: int, height: int) -> Lens:
        """The same lens at another image size, axis by axis. Distortion has no unit and stays."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> Lens:
        """The lens of a part of the image, whose top left corner lies at (left, top)."""
        return replace(self, cx=self.cx - left, cy=self.cy - top, width=width, height=height)

    def turned(self) -> Lens:
        """The pinhole lens of the image turned by 90 degrees clockwise: what was its left edge is its top."""
        return Lens(self.fy, self.fx, self.height - self.cy, self.cx, self.height, self.width)


def turned_pose(pose: np.ndarray) -> np.ndarray:
    """The (3, 4) pose of a camera whose image is turned by 90 degrees clockwise."""
    right, down, forward, position = pose.T
    return np.stack([-down, right, forward, position], axis=1)


@dataclass(frozen=True, eq=False)
class View:
    """One photo. pose: (3, 4) float64. held_out: None where the capture names no split.

    mask: a picture of the photo's aspect, white where the photo counts; None where all of it does.
    """

    name: str
    path: Path
    pose: np.ndarray
    lens: Lens
    held_out: bool | None = None
    mask: Path | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """All views of a capture; every `path` exists.

    source: the file that the poses came from, for messages. depths: (near, far) of the scene along the optical axes in
    the capture's units, None where the format does not tell. points: (n, 3) of the scene in the capture's coordinates,
    likewise.
    """

    source: Path
    views: list[View]
    depths: tuple[float, float] | None = None
    points: np.ndarray | None = None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which image2 comes before image10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


_FOCAL_LEAST, _FOCAL_MOST = 0.01, 1000.0  # focal lengths as shares of the image's width and height


def checked_pose(matrix: np.ndarray, source: Path, what: str) -> np.ndarray:
    """The (3, 4) pose `matrix` with its rotation made exact; `what` names the pose in `source` ("row 3").

    Raises UserError for NaN, infinity, a position beyond all measure, and for what is no rotation by more than 1e-2
    (scaled, sheared, mirrored).
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise UserError(f"{source}: the pose of {what} holds NaN or infinity; remove the view or estimate it again")
    if np.abs(matrix[:, 3]).max() > _FARTHEST:
        raise UserError(
            f"{source}: the camera of {what} stands {np.abs(matrix[:, 3]).max():.3g} units from the origin; remove the "
            "view or estimate it again"
        )
    u, stretch, vt = np.linalg.svd(matrix[:, :3])
    if np.abs(stretch - 1).max() > _ROTATION_TOLERANCE:
        raise UserError(
            f"{source}: the pose of {what} is not a rotation (it stretches by {stretch.max():.3g} and "
            f"{stretch.min():.3g}); export poses without scale or shear"
        )
    if np.linalg.det(u @ vt) < 0:
        raise UserError(f"{source}: the pose of {what} is a mirror image (determinant -1); check the export's axes")
    return np.concatenate([u @ vt, matrix[:, 3:]], axis=1)


def checked_lens(lens: Lens, source: Path, what: str) -> Lens:
    """`lens` itself. Raises UserError where focal lengths or sizes are not positive, or anything is not finite.

    So it does for focal lengths out of all proportion to the image: of pixels that all look the same way, or none.
    """
    numbers = (lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height, *lens.distortion)
    if not all(map(math.isfinite, numbers)) or min(lens.fx, lens.fy, lens.width, lens.height) <= 0:
        raise UserError(
            f"{source}: the intrinsics of {what} are unusable (focal lengths {lens.fx:g}, {lens.fy:g}, "
            f"image {lens.width:g}x{lens.height:g}); they must be positive and finite"
        )
    shares = (lens.fx / lens.width, lens.fy / lens.height)
    if not all(_FOCAL_LEAST <= share <= _FOCAL_MOST for share in shares):
        raise UserError(
            f"{source}: the focal lengths of {what}, {lens.fx:g} and {lens.fy:g} pixels, cannot be those of an image "
            f"of {lens.width:g}x{lens.height:g}: check their unit, which is pixels"
        )
    return lens


def report_missing(source: Path, missing: list[str], listed: int) -> None:
    """One warning for all photos that `source` lists and the disk lacks; UserError where too few are left."""
    left = listed - len(missing)
    if left < MINIMUM_VIEWS and not missing:
        photos = "1 photo" if listed == 1 else f"{listed or 'no'} photos"
        raise UserError(f"{source} lists {photos}; at least {MINIMUM_VIEWS} are needed, so take more of the scene")
    if left < MINIMUM_VIEWS:
        raise UserError(
            f"{source}: {left} of {listed} listed photos exist ({missing[0]} is the first that is missing); at least "
            f"{MINIMUM_VIEWS} are needed, so check that the photos lie where the file says"
        )
    if missing:
        log.warning(
            "%s: %d of %d photos are missing and left out, the first is %s", source, len(missing), listed, missing[0]
        )
