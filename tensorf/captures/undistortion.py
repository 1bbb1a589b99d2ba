"""Photos of a distorting lens -> what a pinhole camera would have seen, and which of its pixels no photo shows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np

from tensorf.captures.views import Lens

log = logging.getLogger("tensorf")

_RIM_WARNING = 0.1  # of an image; phones stay under 5%
_FOLD_WARNING = 0.005  # of an image; less is a corner that nobody misses
_RADII = 4096  # at which a distortion curve is looked at, from the principal point to the farthest corner
_LEAST_SLOPE = 0.1  # of the curve of a lens that turns back; in the middle it is 1
_COARSE = 64  # pixels across, which are enough to tell shares of an image


def undistort(pixels: np.ndarray, lens: Lens) -> np.ndarray:
    """`pixels` (height, width, ...) as a pinhole camera with the same fx, fy, cx, cy would have seen them.

    Where the pinhole sees past the photo's rim, the rim repeats: black wedges would be learnt as geometry. What
    `shown` leaves out is of no use.
    """
    if not lens.distorted:
        return pixels
    columns, rows = _undistortion_map(lens)
    return cv2.remap(pixels, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=1)  # captures mostly have one lens; a map is as large as several photos
def _undistortion_map(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Where each pinhole pixel lies in the photo: columns and rows, (height, width) float32 each."""
    # OpenCV puts the first pixel's centre at 0, captures at 0.5.
    matrix = np.array([[lens.fx, 0, lens.cx - 0.5], [0, lens.fy, lens.cy - 0.5], [0, 0, 1]])
    create = cv2.fisheye.initUndistortRectifyMap if lens.fisheye else cv2.initUndistortRectifyMap
    size = (int(lens.width), int(lens.height))
    columns, rows = create(matrix, np.array(lens.distortion), np.eye(3), matrix, size, cv2.CV_32FC1)
    return columns, rows


def folds(lens: Lens) -> bool:
    """Whether the lens's distortion curve turns back within the undistorted picture: `shown` then tells where."""
    return _turning_radius(lens) < np.inf


@lru_cache(maxsize=1)
def shown(lens: Lens) -> np.ndarray:
    """(height, width) bool: which pixels of the undistorted picture a photo can show.

    A polynomial that bends the picture inwards turns back somewhere: beyond that radius two pinhole pixels lie at one
    place of the photo, and the outer one gets the colour of the inner one.
    """
    x = (np.arange(int(lens.width)) + 0.5 - lens.cx) / lens.fx
    y = (np.arange(int(lens.height)) + 0.5 - lens.cy) / lens.fy
    return np.hypot(x, y[:, None]) <= _turning_radius(lens)


def _turning_radius(lens: Lens) -> float:
    """The distance from the optical axis, at depth 1, shortly before the lens's distortion curve stops rising.

    Where it hardly rises any more, one pixel of the photo becomes many, and a fit is wrong already. inf if it rises as
    far as the picture's farthest corner. The tangential terms are left out: they move the place by little.
    """
    if not lens.distorted:
        return np.inf
    across = max(lens.cx, lens.width - lens.cx) / lens.fx
    radii = np.linspace(0, np.hypot(across, max(lens.cy, lens.height - lens.cy) / lens.fy), _RADII)
    k = np.zeros(8)
    k[: len(lens.distortion)] = lens.distortion
    if lens.fisheye:
        along = np.arctan(radii)
        curve = along * np.polynomial.polynomial.polyval(along**2, [1, *k[:4]])
    else:
        k1, k2, _, _, k3, k4, k5, k6 = k
        above, below = (np.polynomial.polynomial.polyval(radii**2, [1, *c]) for c in ((k1, k2, k3), (k4, k5, k6)))
        along = radii
        curve = radii * above / np.where(below > 0, below, np.nan)  # beyond a pole nothing is meant
    slope = np.diff(curve) / np.diff(along)
    if (slope > 0).all():  # NaN is not
        return np.inf
    return float(radii[(~(slope > _LEAST_SLOPE)).argmax()])


def warn_of_lost_pixels(lenses: Iterable[Lens], of: str) -> None:
    """Warnings, one for all lenses, where undistorting shows what no photo saw.

    of: what the lenses belong to, for the message. Coarse maps are enough to tell.
    """
    rim = fold = 0.0
    for lens in {lens.resized(_COARSE, max(2, round(_COARSE * lens.height / lens.width))) for lens in lenses}:
        columns, rows = _undistortion_map(lens)
        outside = (columns < -1) | (columns > lens.width) | (rows < -1) | (rows > lens.height)
        if folds(lens):
            fold = max(fold, float(np.mean(~shown(lens))))
            outside &= shown(lens)
        rim = max(rim, float(np.mean(outside)))
    if rim > _RIM_WARNING:
        log.warning("undistorting repeats the photos' rim over %.0f%% of the image; crop or recalibrate", 100 * rim)
    if fold > _FOLD_WARNING:
        log.warning(
            "%s: no photo shows %.1f%% of the undistorted image, where the lens's distortion turns back: that does not "
            "count; to use it, estimate the poses with a fisheye model", of, 100 * fold,
        )  # fmt: skip
