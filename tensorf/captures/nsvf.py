"""Captures as NSVF has them, Tanks and Temples among them -> Listing.

`intrinsics.txt`, a pose file (4x4, OpenCV axes) for each photo in `pose/`, and the photos in `rgb/`, of the same names.
The intrinsics are for the size in the last line of `intrinsics.txt`, and for the photos' own where there is none.
Names begin with 0_ (to train on), 1_ (validation) or 2_ (test).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tensorf.captures.images import common_size, find_by_stem, image_size
from tensorf.captures.views import Lens, Listing, View, checked_lens, checked_pose, natural_key, report_missing
from tensorf.errors import UserError, reason
from tensorf.untrusted import read_bytes

FILE_NAME = "intrinsics.txt"
_MOST_BYTES = 2**20


def is_nsvf(root: Path) -> bool:
    return (root / FILE_NAME).is_file() and (root / "pose").is_dir()


def read_nsvf(root: Path) -> Listing:
    """Lists the views of `root` whose photos exist; those of the validation count only where there are no tests.

    Raises UserError for malformed files, unusable poses or intrinsics, and fewer than 3 photos.
    """
    source = root / FILE_NAME
    focals, center, size = _intrinsics(source)
    poses = [p for p in (root / "pose").glob("*.txt") if p.name[0] not in ".@"]  # as `images.is_photo`
    names = sorted((p.stem for p in poses), key=natural_key)
    tests = "2_" if any(name.startswith("2_") for name in names) else "1_"
    used = [name for name in names if not name.startswith(("1_", "2_")) or name.startswith(tests)]
    paths = {name: find_by_stem(root / "rgb", name) for name in used}
    missing = [name for name in used if paths[name] is None]
    found = {name: path for name, path in paths.items() if path is not None}
    report_missing(source, missing, len(used))
    size = size or common_size(map(image_size, found.values()))
    views = []
    for name, path in found.items():
        file = root / "pose" / f"{name}.txt"
        pose = checked_pose(_numbers(file, 4, 4)[:3], file, name)
        lens = checked_lens(Lens(*focals, *center, *size), source, name)
        views.append(View(path.name, path, pose, lens, name.startswith(tests)))
    return Listing(source, views)


def _intrinsics(source: Path) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float] | None]:
    """(focal lengths, principal point, (width, height) or None), pixels.

    They are of a matrix, or of NSVF's first line (focal length, point) and last one (height, width).
    """
    text = _text(source)
    first, *more = (line.split() for line in text.strip().split("\n"))
    try:
        matrix = np.loadtxt(io.StringIO(text))
        if matrix.ndim == 2 and min(matrix.shape) >= 3:
            return (float(matrix[0, 0]), float(matrix[1, 1])), (float(matrix[0, 2]), float(matrix[1, 2])), None
    except ValueError:
        pass  # lines of different lengths
    try:
        focal, *center = (float(word) for word in first[:3])
        size = None
        if more and len(more[-1]) == 2:
            height, width = map(float, more[-1])
            size = width, height
        return (focal, focal), (center[0], center[1]), size
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{source} has to hold a matrix, or a focal length and a principal point, and at its end height and width"
        ) from error


def _text(file: Path) -> str:
    try:
        return read_bytes(file, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({reason(error)}): it has to be a text of a few numbers") from error


def _numbers(file: Path, rows: int, columns: int) -> np.ndarray:
    try:
        return np.loadtxt(io.StringIO(_text(file))).reshape(rows, columns)
    except ValueError as error:
        raise UserError(f"{file} has to hold a {rows}x{columns} matrix of numbers") from error
