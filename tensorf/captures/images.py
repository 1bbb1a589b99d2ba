"""Photos -> pinhole images of one size: composited, undistorted and resized, one photo at a time.

Poses and intrinsics are mostly estimated on the pixels as stored, as COLMAP and LLFF do, so EXIF orientation is left
alone where these pixels have the aspect of the intrinsics. Where only the turned photo has it (intrinsics for
3000x4000, a photo stored as 4000x3000 that EXIF turns by 90 degrees), the turned photo is meant and taken. Where both
have it, as with square photos and half turns, the photo is taken as stored; where neither has it, that is an error.
"""

from __future__ import annotations

import logging
import re
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import size_for_width
from tensorf.captures.pictures import orientation, read_picture, stored_size
from tensorf.captures.views import Lens, View
from tensorf.errors import UserError

log = logging.getLogger("tensorf")

_RIM_SHARE, _PURE, _FLAT_SHARE = 0.03, 5, 0.95  # of the shorter side; of 255 levels; of the rim's pixels
_RIM_WARNING = 0.1  # of an image; phones stay under 5%
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def choose_image_folder(root: Path, width: int | None, calibrated: tuple[float, float] | None) -> Path:
    """The folder among `images`, `images_2`, `images_4`, ... with the narrowest photos of at least `width` pixels.

    Without `width`, or where none is wide enough: the one with the widest. calibrated: as in `image_size`. Raises
    UserError where none holds photos.
    """
    widths = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and re.fullmatch(r"images(_\d+)?", p.name)):
        first = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES), None)
        if first is not None:
            widths[folder] = image_size(first, calibrated)[0]
    if not widths:
        raise UserError(f"{root} has no photos: looked for a folder images, images_2, images_4 or images_8 in it")
    enough = [folder for folder in widths if width is not None and widths[folder] >= width]
    return min(enough, key=widths.__getitem__) if enough else max(widths, key=widths.__getitem__)


def image_size(path: Path, calibrated: tuple[float, float] | None = None) -> tuple[int, int]:
    """(width, height) that a photo is taken at, from the file's header alone. Raises UserError where it is no image.

    calibrated: (width, height) of its intrinsics, which decide whether it is turned; without them it is not.
    """
    width, height = stored_size(path)
    return (height, width) if _is_turned(path, calibrated) else (width, height)


def _is_turned(path: Path, calibrated: tuple[float, float] | None) -> bool:
    """True where the photo has the intrinsics' aspect only once it is turned as its EXIF orientation says."""
    width, height = stored_size(path)
    if calibrated is None or _same_aspect((width, height), calibrated):
        return False
    return _same_aspect((height, width), calibrated) and orientation(path) >= 5  # 5 to 8 swap the sides


def _same_aspect(size: tuple[int, int], calibrated: tuple[float, float]) -> bool:
    """True where the height is what the calibrated aspect makes of the width, within 1% and at least a pixel."""
    expected = size[0] * calibrated[1]  # multiplied out, for calibrated sizes that are 0
    return abs(expected - size[1] * calibrated[0]) <= max(0.01 * expected, calibrated[0])


def load_images(
    views: list[View], width: int | None, white: bool, show_progress: bool = False
) -> tuple[Tensor, list[Lens]]:
    """All photos as pinhole images at `width` pixels (None: as they are), with their intrinsics at that size.

    Returns images (n, height, width, 3) uint8 RGB and n lenses without distortion. Transparency is composited on
    white or black. Memory holds the resized images and a single photo. Raises UserError for unreadable photos,
    photos of different sizes and photos whose aspect is not that of the intrinsics.
    """
    native = _common_size(views)
    if width is not None and width > native[0]:
        log.info("photos are %d pixels wide: keeping that, %d was asked", native[0], width)
    size = native if width is None or width >= native[0] else size_for_width(*native, width)
    images = np.empty((len(views), size[1], size[0], 3), dtype=np.uint8)
    lenses = []
    for i, view in enumerate(views):
        lens = _lens_at(view, native)
        photo = read_picture(view.path, white=white, upright=_is_turned(view.path, view.lens.size))
        pixels = undistort(photo, lens)
        images[i] = pixels if size == native else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        lens = lens.resized(*size)
        lenses.append(Lens(lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height))
        if show_progress:
            print(f"\rreading photos {i + 1}/{len(views)}", end="", file=sys.stderr, flush=True)
    if show_progress:
        print(file=sys.stderr)
    return torch.from_numpy(images), lenses


def flat_background(images: Tensor) -> str | None:
    """The colour, "white" or "black", that nearly all of the photos' rims purely have; None where there is none.

    images: (n, height, width, 3) uint8. Objects are often cut out of their background without transparency.
    """
    height, width = images.shape[1:3]
    rim = max(1, round(_RIM_SHARE * min(height, width)))
    strips = [images[:, :rim], images[:, -rim:], images[:, :, :rim], images[:, :, -rim:]]
    pixels = torch.cat([strip.reshape(-1, 3) for strip in strips])
    for name, level in (("white", 255), ("black", 0)):
        is_level = lambda p, level=level: (p.int() - level).abs().amax(-1) <= _PURE  # noqa: E731
        if is_level(pixels).float().mean() > _FLAT_SHARE and not is_level(images[0]).all():
            return name
    return None


def undistort(pixels: np.ndarray, lens: Lens) -> np.ndarray:
    """`pixels` (height, width, 3) as a pinhole camera with the same fx, fy, cx, cy would have seen them.

    Where the pinhole sees past the photo's rim, the rim repeats: black wedges would be learnt as geometry.
    """
    if not any(lens.distortion):
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
    outside = np.mean((columns < -1) | (columns > size[0]) | (rows < -1) | (rows > size[1]))
    if outside > _RIM_WARNING:
        log.warning("undistorting repeats the photos' rim over %.0f%% of the image; crop or recalibrate", 100 * outside)
    return columns, rows


def _common_size(views: list[View]) -> tuple[int, int]:
    """The (width, height) that all photos have."""
    first = image_size(views[0].path, views[0].lens.size)
    for view in views[1:]:
        size = image_size(view.path, view.lens.size)
        if size != first:
            raise UserError(
                f"photos differ in size: {views[0].path} is {first[0]}x{first[1]}, {view.path} is "
                f"{size[0]}x{size[1]}; resize or remove the odd ones"
            )
    return first


def _lens_at(view: View, size: tuple[int, int]) -> Lens:
    """The view's lens at its photo's true size, which may be a resized copy of the one calibrated, never a crop."""
    width, height = size
    if not _same_aspect(size, view.lens.size):
        raise UserError(
            f"{view.path} is {width}x{height} but its intrinsics are for {view.lens.width:g}x{view.lens.height:g}, "
            "another aspect; use the photos that the poses were estimated on (not cropped, not rotated)"
        )
    return view.lens.resized(width, height)
