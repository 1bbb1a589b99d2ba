"""LLFF captures: `poses_bounds.npy` beside a folder of photos -> Listing.

Each of the (n, 17) numbers' rows is a 3x5 matrix [R | t | (height, width, focal)], row by row, then the nearest and
farthest depth. Columns of R are the camera's (down, right, back) axes. Rows follow the photos' names in order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tensorf.captures.images import IMAGE_SUFFIXES, choose_image_folder
from tensorf.captures.views import MINIMUM_VIEWS, Lens, Listing, View, checked_lens, checked_pose, natural_key
from tensorf.errors import UserError

FILE_NAME = "poses_bounds.npy"


def read_llff(root: Path, width: int | None) -> Listing:
    """Lists the views of an LLFF folder, taking the photos from the folder that suits `width` (pixels) best.

    The format has no principal point: it is the image's centre. Raises UserError for an unreadable or malformed
    file, for as many photos as rows not being there, and for unusable poses, intrinsics or depths.
    """
    source = root / FILE_NAME
    rows = _load_rows(source)
    matrices, depths = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    folder = choose_image_folder(root, width, _calibrated_size(matrices))
    photos = sorted((p for p in folder.iterdir() if _is_photo(p)), key=lambda p: natural_key(p.name))
    if len(photos) != len(rows):
        raise UserError(
            f"{source} has {len(rows)} rows but {folder} holds {len(photos)} photos; "
            "remove photos without a pose, or put the missing ones back"
        )
    if len(rows) < MINIMUM_VIEWS:
        raise UserError(f"{source} has {len(rows)} views; at least {MINIMUM_VIEWS} are needed")
    views = []
    for i, (photo, matrix) in enumerate(zip(photos, matrices, strict=True)):
        pose = checked_pose(opencv_from_llff(matrix[:, :4]), source, f"row {i}")
        height, full_width, focal = (float(x) for x in matrix[:, 4])
        lens = Lens(focal, focal, full_width / 2, height / 2, full_width, height)
        views.append(View(photo.name, photo, pose, checked_lens(lens, source, f"row {i}")))
    return Listing(source, views, _checked_depths(depths, source))


def opencv_from_llff(pose: np.ndarray) -> np.ndarray:
    """(..., 3, 4) from columns (down, right, back, t) to (right, down, forward, t)."""
    down, right, back, position = np.moveaxis(pose, -1, 0)
    return np.stack([right, down, -back, position], axis=-1)


def _calibrated_size(matrices: np.ndarray) -> tuple[float, float] | None:
    """(width, height) that the first of `matrices` (n, 3, 5) is for."""
    return (float(matrices[0, 1, 4]), float(matrices[0, 0, 4])) if len(matrices) else None


def _load_rows(source: Path) -> np.ndarray:
    """(n, 17) float64."""
    try:
        rows = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{source} is not a plain NumPy array of numbers; write it again (LLFF's imgs2poses)"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind not in "fiu":
        found = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else "an archive"
        raise UserError(f"{source} must hold numbers of shape (views, 17), not {found}; write it again (imgs2poses)")
    return rows.astype(np.float64)


def _checked_depths(depths: np.ndarray, source: Path) -> tuple[float, float]:
    """(near, far) over all rows of `depths` (n, 2)."""
    bad = ~(np.isfinite(depths).all(1) & (depths[:, 0] > 0) & (depths[:, 0] < depths[:, 1]))
    if bad.any():
        row = int(bad.argmax())
        near, far = depths[row]
        raise UserError(
            f"{source}: row {row} has depth bounds {near:g} to {far:g}; they must satisfy 0 < near < far, "
            "so remove the view or estimate the bounds again"
        )
    return float(depths[:, 0].min()), float(depths[:, 1].max())


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
