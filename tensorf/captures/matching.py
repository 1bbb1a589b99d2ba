"""Features matched between photos: do they fit the poses, and where are the scene's points?

Used before a capture is trained (`capture.py`, `llff.py`). SIFT features of small copies of a few photos are matched
between views that stand close to each other. A match fits two poses if each of its points lies on the other's epipolar
line (Hartley and Zisserman, "Multiple View Geometry", section 9.6). Matches that fit are triangulated.

Poses are OpenCV camera-to-world, (3, 4), in the capture's own coordinates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from tensorf.captures.images import image_size
from tensorf.captures.pictures import read_mask, stored_size
from tensorf.captures.views import Lens, View

LONGEST = 640  # pixels of the small copies' longer side; residuals are counted in them
FEATURES = 1000  # a photo, the strongest
ANCHORS = 24  # views, evenly spread, that are matched with close ones
_RATIO = 0.8  # of the distances to the best and the second match (Lowe 2004, section 7.1)
_FEWEST = 12  # matches of a pair, below which the two views do not show the same
_FITS = 2.0  # pixels; what is triangulated
_ENOUGH, _WRONG = 100, 3.0  # matches and pixels; of a capture as a whole
_TELLING, _STANDS_OUT = 40, 5.0  # matches of one photo, and times the residual of all, that say its pose is wrong
_ALIKE = 0.65  # share of them that fits one other pose; of random matches up to 0.58 do
_PARALLAX = np.radians(0.7)  # between the two rays of a triangulated point
# OpenCV stops after five steps otherwise, which leaves pictures of wide lenses pixels off.
_CONVERGED = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of two views `i` and `j`: first, second (n, 2) pinhole coordinates (x / z, y / z) in each camera."""

    i: int
    j: int
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True)
class PairFit:
    """Matches of two views `i` and `j`: how many, and their median distance, in pixels, as in `Fit`.

    alike: how many of them fit one relative pose, whatever the views' own poses are.
    """

    i: int
    j: int
    matches: int
    residual: float
    alike: int


@dataclass(frozen=True)
class Misfit:
    """A view whose photo does not fit its pose. residual: the smallest median of its pairs, in pixels, as in `Fit`."""

    view: int
    matches: int
    residual: float


@dataclass(frozen=True, eq=False)
class Fit:
    """How well matches fit the poses.

    residual: median Sampson distance of all matches, in pixels of a photo whose longer side has LONGEST. matches: how
    many there are. pairs: of views that have matches. points: (n, 3) triangulated, in the poses' coordinates; seen_by:
    (n, 2) the two views that show each.
    """

    residual: float
    matches: int
    pairs: list[PairFit]
    points: np.ndarray
    seen_by: np.ndarray

    @property
    def unlikely(self) -> bool:
        """Whether the photos cannot be the poses': enough matches, and most of them off by pixels."""
        return self.matches >= _ENOUGH and self.residual > _WRONG

    @property
    def likely(self) -> bool:
        """Whether they are: enough matches, and most of them where the poses put them."""
        return self.matches >= _ENOUGH and self.residual < _FITS

    @property
    def misfits(self) -> list[Misfit]:
        """Views that fit none of at least two others that they were matched with, one of which fits elsewhere.

        Their matches have to fit another pose. Else it is the matches that are wrong: of tiles that all look alike some
        are matched at random. Where all are matched with their neighbour, this cannot tell.
        """
        if self.matches < _ENOUGH or self.unlikely:
            return []
        wrong = max(_WRONG, _STANDS_OUT * self.residual)
        fitting = {k for pair in self.pairs for k in (pair.i, pair.j) if pair.residual <= wrong}
        found = []
        for view in sorted({k for pair in self.pairs for k in (pair.i, pair.j)} - fitting):
            mine = [pair for pair in self.pairs if view in (pair.i, pair.j)]
            matches, alike = sum(pair.matches for pair in mine), sum(pair.alike for pair in mine)
            if len(mine) < 2 or matches < _TELLING or alike < _ALIKE * matches:
                continue
            if any(fitting & {pair.i, pair.j} for pair in mine):
                found.append(Misfit(view, matches, min(pair.residual for pair in mine)))
        return found


def fit(views: Sequence[View]) -> Fit:
    """Matches a few pairs of close views and holds the matches against the views' poses and lenses."""
    residuals, points, seen_by, pairs = [np.empty(0)], [np.empty((0, 3))], [np.empty((0, 2), dtype=int)], []
    chosen = _pairs(np.stack([view.pose for view in views]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV releases the interpreter's lock
        list(pool.map(_features_of, [views[k] for k in {k for pair in chosen for k in pair}]))
    for i, j in chosen:
        matches = _match(i, j, views)
        if matches is None:
            continue
        distance = sampson_distance(matches, views[i].pose, views[j].pose)
        lens = views[i].lens
        focal = lens.fx * LONGEST / max(lens.width, lens.height)
        pixels = distance * focal
        residuals.append(pixels)
        middle = float(np.median(pixels))
        alike = len(pixels) if middle <= _WRONG else _alike(matches, _FITS / focal)
        pairs.append(PairFit(i, j, len(pixels), middle, alike))
        found = triangulate(matches, views[i].pose, views[j].pose)
        sure = (pixels < _FITS) & np.isfinite(found).all(1)
        points.append(found[sure])
        seen_by.append(np.tile((i, j), (sure.sum(), 1)))
    residuals = np.concatenate(residuals)
    median = float(np.median(residuals)) if len(residuals) else float("nan")
    return Fit(median, len(residuals), pairs, np.concatenate(points), np.concatenate(seen_by))


def _pairs(poses: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of views that should show the same: each anchor with the closest view and one a little farther away.

    The closest one always overlaps, the farther one has the parallax that triangulation needs. Closeness is the
    distance of the centres, in units of the cameras' spread, plus twice the angle between the optical axes, in radians.
    """
    centres, axes = poses[:, :, 3], poses[:, :, 2]
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).mean()
    pairs = set()
    count = len(poses)
    for i in np.unique(np.linspace(0, count - 1, min(ANCHORS, count)).round().astype(int)):
        apart = np.linalg.norm(centres - centres[i], axis=1) / max(spread, 1e-12)
        turned = np.arccos((axes @ axes[i]).clip(-1, 1))
        order = np.argsort(apart + 2 * turned)
        order = order[order != i]
        for j in {int(order[0]), int(order[min(3, len(order) - 1)])}:
            pairs.add((min(int(i), j), max(int(i), j)))
    return sorted(pairs)


def _match(i: int, j: int, views: Sequence[View]) -> Matches | None:
    """Mutual nearest neighbours that pass the ratio test; None where there are few."""
    (place_i, words_i), (place_j, words_j) = (_features_of(views[k]) for k in (i, j))
    if min(len(place_i), len(place_j)) < _FEWEST:
        return None
    similarity = words_i @ words_j.T  # of unit vectors: their distance is sqrt(2 - 2 similarity)
    best = similarity.argmax(1)
    back = similarity.argmax(0)
    rows = np.arange(len(best))
    top = similarity[rows, best]
    similarity[rows, best] = -1
    second = similarity.max(1)
    mutual = back[best] == rows
    keep = mutual & (2 - 2 * top < _RATIO**2 * (2 - 2 * second))
    if keep.sum() < _FEWEST:
        return None
    first, second = _undistorted(place_i[keep], views[i].lens), _undistorted(place_j[best[keep]], views[j].lens)
    found = np.isfinite(first).all(1) & np.isfinite(second).all(1)
    return Matches(i, j, first[found], second[found]) if found.sum() >= _FEWEST else None


def _alike(matches: Matches, tolerance: float) -> int:
    """How many matches lie within `tolerance`, in focal lengths, of the epipolar lines of one relative pose."""
    options = dict(method=cv2.RANSAC, prob=0.999, threshold=tolerance)
    _, mask = cv2.findEssentialMat(matches.first, matches.second, np.eye(3), **options)
    return 0 if mask is None else int(np.count_nonzero(mask))


def _features_of(view: View) -> tuple[np.ndarray, np.ndarray]:
    return _features(*(_state(file, view.lens) for file in (view.path, view.mask) if file))


@dataclass(frozen=True)
class _File:
    """A picture as it is now. upright: whether to turn it as its EXIF orientation says.

    size, changed: in bytes and in nanoseconds. Another picture of that name has others, and other features.
    """

    path: Path
    upright: bool
    size: int
    changed: int


def _state(path: Path, lens: Lens) -> _File:
    status = path.stat()
    return _File(path, image_size(path, lens.size) != stored_size(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _features(photo: _File, mask: _File | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(places (n, 2) as shares of the photo's width and height, RootSIFT descriptors (n, 128) of unit length).

    Features lie where the mask is white. RootSIFT: Arandjelovic and Zisserman, CVPR 2012.
    """
    path = photo.path
    nothing = np.empty((0, 2)), np.empty((0, 128), dtype=np.float32)
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_2 if max(stored_size(path)) >= 2 * LONGEST else cv2.IMREAD_GRAYSCALE
    flags = flags if photo.upright else flags | cv2.IMREAD_IGNORE_ORIENTATION
    encoded = np.fromfile(path, np.uint8)  # OpenCV itself cannot open names that are not UTF-8
    picture = cv2.imdecode(encoded, flags) if len(encoded) else None
    if picture is None:
        return nothing
    scale = LONGEST / max(picture.shape)
    if scale < 1:
        height, width = (max(1, round(n * scale)) for n in picture.shape)
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    height, width = picture.shape
    counts = None if mask is None else _counts(mask, (width, height))
    keypoints, words = cv2.SIFT_create(nfeatures=FEATURES).detectAndCompute(picture, counts)
    if words is None:
        return nothing
    # OpenCV puts the first pixel's centre at 0.
    places = (np.array([k.pt for k in keypoints]) + 0.5) / (width, height)
    return places, np.sqrt(words / words.sum(1, keepdims=True).clip(1e-9)).astype(np.float32)


def _counts(mask: _File, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8 of the (width, height) `size`: 255 where the mask is white."""
    pixels = read_mask(mask.path, upright=mask.upright)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) // 128 * 255


def _undistorted(places: np.ndarray, lens: Lens) -> np.ndarray:
    """Shares of the photo's width and height (n, 2) -> pinhole coordinates (x / z, y / z), (n, 2).

    NaN where there are none: beyond the place where a lens's distortion turns back.
    """
    pixels = places * (lens.width, lens.height)
    matrix = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    if not lens.distorted:
        return (pixels - matrix[:2, 2]) / (lens.fx, lens.fy)
    distortion = np.array(lens.distortion)
    if lens.fisheye:
        found = cv2.fisheye.undistortPoints(pixels[:, None], matrix, distortion)[:, 0]
        again = cv2.fisheye.distortPoints(found[:, None], matrix, distortion)[:, 0]
    else:
        found = cv2.undistortPoints(pixels[:, None], matrix, distortion, criteria=_CONVERGED)[:, 0]
        rays = np.concatenate([found, np.ones((len(found), 1))], 1)
        again = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), matrix, distortion)[0][:, 0]
    off = np.linalg.norm(again - pixels, axis=1) * LONGEST / max(lens.width, lens.height)
    return np.where((off < 1)[:, None], found, np.nan)  # NaN of OpenCV's own is not below 1


def sampson_distance(matches: Matches, pose_i: np.ndarray, pose_j: np.ndarray) -> np.ndarray:
    """(n,) first-order distance of each match from the epipolar geometry of two poses (3, 4), in focal lengths.

    Hartley and Zisserman, equation 11.9, with the essential matrix in place of the fundamental one.
    """
    rotation = pose_j[:, :3].T @ pose_i[:, :3]
    x, y, z = pose_j[:, :3].T @ (pose_i[:, 3] - pose_j[:, 3])
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    a, b = (np.concatenate([p, np.ones((len(p), 1))], 1) for p in (matches.first, matches.second))
    line_b, line_a = a @ essential.T, b @ essential
    size = np.sqrt((line_a[:, :2] ** 2).sum(1) + (line_b[:, :2] ** 2).sum(1))
    return np.abs((b * line_b).sum(1)) / size.clip(1e-12)


def triangulate(matches: Matches, pose_i: np.ndarray, pose_j: np.ndarray) -> np.ndarray:
    """(n, 3) the points halfway between the two rays where they are closest.

    NaN where a point lies behind a camera or its rays are so nearly parallel that its depth is a guess.
    """
    rays = []
    for places, pose in ((matches.first, pose_i), (matches.second, pose_j)):
        local = np.concatenate([places, np.ones((len(places), 1))], 1)
        rays.append((local / np.linalg.norm(local, axis=1, keepdims=True)) @ pose[:, :3].T)
    a, b = rays
    between = pose_j[:, 3] - pose_i[:, 3]
    cosine = (a * b).sum(1)
    sine = np.maximum(1 - cosine**2, 1e-12)
    along_a = (a @ between - cosine * (b @ between)) / sine
    along_b = (cosine * (a @ between) - b @ between) / sine
    points = (pose_i[:, 3] + along_a[:, None] * a + pose_j[:, 3] + along_b[:, None] * b) / 2
    sure = (along_a > 0) & (along_b > 0) & (sine > np.sin(_PARALLAX) ** 2)
    return np.where(sure[:, None], points, np.nan)
