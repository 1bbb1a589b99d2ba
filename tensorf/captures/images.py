"""Photos -> pinhole images of one size: composited, undistorted and resized, one photo at a time.

Poses and intrinsics are mostly estimated on the pixels as stored, as COLMAP and LLFF do, so EXIF orientation is left
alone where these pixels have the aspect of the intrinsics. Where only the turned photo has it (intrinsics for
3000x4000, a photo stored as 4000x3000 that EXIF turns by 90 degrees), the turned photo is meant and taken. Where both
have it, as with square photos and half turns, the photo is taken as stored; where neither has it, that is an error.
If EXIF says of most photos that are taken as stored that they lie on their side, all are turned upright once they are
loaded, with their cameras (`quarter_turns`).

Photos may differ in size, each having intrinsics of its own: all are brought to the size that most have. Of a photo
with another aspect the middle is taken. Portraits among landscapes, and landscapes among portraits, are left out.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import size_for_width
from tensorf.captures.pictures import hidden_share, hides_all, orientation, read_mask, read_picture, stored_size
from tensorf.captures.undistortion import folds, shown, undistort, warn_of_lost_pixels
from tensorf.captures.views import MINIMUM_VIEWS, Lens, Listing, View
from tensorf.errors import UserError
from tensorf.progress import progress

log = logging.getLogger("tensorf")

_Item = TypeVar("_Item")
_RIM_SHARE, _PURE, _FLAT_SHARE = 0.03, 5, 0.95  # of the shorter side; of 255 levels; of the rim's pixels
_CUT_OUT = 0.05  # of a photo's pixels
_LARGE = 2_000_000  # pixels of a photo; smaller ones are decoded at once
_QUARTERS = {6: 1, 3: 2, 8: 3}  # EXIF orientation -> clockwise quarter turns that make a picture upright
_FEW = 20  # photos, which are loaded within a second or two
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff")


def is_photo(path: Path) -> bool:
    """Whether it is a picture's file by its name.

    "._name" is what macOS leaves beside a photo on foreign disks; names with @ are a Synology's own.
    """
    return path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] not in ".@" and path.is_file()


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name in `folder`; None where there is none.

    Unicode has two forms of letters such as "ü": one sign, or a "u" and a sign for its dots. On a Mac they are the same
    file. Elsewhere photos may come with one form, from an archive of a Mac, and a pose file with the other.
    """
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((path for form in dict.fromkeys(forms) if (path := folder / form).is_file()), None)


def find_by_stem(folder: Path, stem: str) -> Path | None:
    """The photo in `folder` of this name without the suffix, which may be in capitals; None where there is none."""
    suffixes = [case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper())]
    return next((path for suffix in suffixes if (path := find_file(folder, f"{stem}{suffix}"))), None)


def image_folders(root: Path) -> list[Path]:
    """The folders `images`, `images_2`, `images_4`, `images_1008x756`, ... of `root`."""
    return sorted(p for p in root.iterdir() if re.fullmatch(r"images(_\d+(x\d+)?)?", p.name) and p.is_dir())


def choose_image_folder(
    photos: dict[Path, list[Path]], width: int | None, calibrated: tuple[float, float] | None
) -> Path:
    """The folder with the narrowest photos of at least `width` pixels.

    Without `width`, or where none is wide enough: the one with the widest. photos: of each folder, one or more.
    calibrated: as in `image_size`.
    """
    widths = {
        folder: np.median([image_size(path, calibrated)[0] for path in a_few(paths)])
        for folder, paths in photos.items()
    }
    enough = [folder for folder in widths if width is not None and widths[folder] >= width]
    return min(enough, key=widths.__getitem__) if enough else max(widths, key=widths.__getitem__)


def a_few(items: Sequence[_Item]) -> list[_Item]:
    """At most five, evenly spread."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, 5).round().astype(int))]


def image_size(path: Path, calibrated: tuple[float, float] | None = None) -> tuple[int, int]:
    """(width, height) that a photo is taken at, from the file's header alone. Raises UserError where it is no image.

    calibrated: (width, height) of its intrinsics, which decide whether it is turned; without them it is not.
    """
    width, height = stored_size(path)
    return (height, width) if _is_turned(path, calibrated) else (width, height)


def _is_turned(path: Path, calibrated: tuple[float, float] | None) -> bool:
    """True where the photo has the intrinsics' aspect only once it is turned as its EXIF orientation says."""
    width, height = stored_size(path)
    if calibrated is None or same_aspect((width, height), calibrated):
        return False
    return same_aspect((height, width), calibrated) and orientation(path) >= 5  # 5 to 8 swap the sides


def quarter_turns(views: Sequence[View]) -> int:
    """By how many quarter turns, clockwise, most of the photos have to be turned to be upright, by their EXIF data.

    Those that are turned anyway, as their intrinsics are for that, count as upright.
    """
    turns = Counter(
        0 if _is_turned(view.path, view.lens.size) else _QUARTERS.get(orientation(view.path), 0) for view in views
    )
    most, count = turns.most_common(1)[0]
    return most if count > len(views) / 2 else 0


def same_aspect(size: tuple[int, int], other: tuple[float, float]) -> bool:
    """True where the height is what the other size's aspect makes of the width, within 1% and at least a pixel."""
    expected = size[0] * other[1]  # multiplied out, for calibrated sizes that are 0
    return abs(expected - size[1] * other[0]) <= max(0.01 * expected, other[0])


def common_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) that most have, of the orientation that most have; the largest of equally common ones."""
    sizes = list(sizes)
    orientation = Counter(np.sign(width - height) for width, height in sizes).most_common(1)[0][0]
    counts = Counter(size for size in sizes if np.sign(size[0] - size[1]) == orientation)
    return max(counts, key=lambda size: (counts[size], size))


def leave_out_other_orientation(listing: Listing) -> Listing:
    """`listing` without portraits where most photos are landscapes, and the other way round; one warning counts them.

    UserError where too few are left.
    """
    sizes = [image_size(view.path, view.lens.size) for view in listing.views]
    common = common_size(sizes)
    kept, odd = [], []
    for view, size in zip(listing.views, sizes, strict=True):
        across = (size[0] - size[1]) * (common[0] - common[1]) < 0 and not same_aspect(size, common)
        (odd if across else kept).append(view)
    if not odd:
        return listing
    what = "portraits among landscapes" if common[0] > common[1] else "landscapes among portraits"
    if len(kept) < MINIMUM_VIEWS:
        raise UserError(
            f"{listing.source}: {len(odd)} of {len(sizes)} photos are {what} (the first is {odd[0].path}), and at "
            f"least {MINIMUM_VIEWS} of one orientation are needed"
        )
    log.warning(
        "%s: %d of %d photos are %s and left out, the first is %s",
        listing.source, len(odd), len(sizes), what, odd[0].name,
    )  # fmt: skip
    return replace(listing, views=kept)


def load_images(
    views: list[View], width: int | None, white: bool, show_progress: bool = False, turns: int = 0
) -> tuple[Tensor, list[Lens], Tensor | None]:
    """All photos as pinhole images at `width` pixels (None: as they are), with their intrinsics at that size.

    turns: by how many quarter turns all are turned clockwise, once they are loaded; `width` is that of the turned ones.
    Returns images (n, height, width, 3) uint8 RGB, n lenses without distortion, and masks (n, height, width) bool, True
    where a photo counts, or None where no view has a mask and every pixel is one that a photo shows (`shown`).
    Transparency is composited on white or black. Memory holds the resized images and a single photo. show_progress: a
    bar on stderr, where there are many. Raises UserError for unreadable photos and masks, for those whose aspect is not
    that of the intrinsics, and for masks that hide all of their photo.
    """
    sizes = [image_size(view.path, view.lens.size) for view in views]
    native = common_size(sizes)
    order = -1 if turns % 2 else 1  # of width and height
    across, down = native[::order]
    if width is not None and width > across:
        log.info("photos are only %d pixels wide: this is kept (%d was asked)", across, width)
    size = native if width is None or width >= across else size_for_width(across, down, width)[::order]
    images = np.empty((len(views), size[1], size[0], 3), dtype=np.uint8)
    folding = {lens for lens in {view.lens for view in views} if folds(lens)}
    whole = not folding and all(view.mask is None for view in views)
    masks = None if whole else np.ones(images.shape[:3], dtype=bool)
    warn_of_lost_pixels((view.lens for view in views if view.lens.distorted), str(views[0].path.parent))
    lenses = []
    bar = progress(show_progress and len(views) > _FEW, views, desc="photos", unit="photo")
    for i, view in enumerate(bar):
        images[i], lens = _pinhole_image(view, sizes[i], native, size, white)
        lenses.append(lens)
        if view.mask is not None or view.lens in folding:
            masks[i] = _pinhole_mask(view, sizes[i], native, size)
    for _ in range(turns):
        lenses = [lens.turned() for lens in lenses]
    images, masks = (
        None if pixels is None else torch.from_numpy(pixels).rot90(-turns, (1, 2)).contiguous()
        for pixels in (images, masks)
    )
    return images, lenses, masks


def _pinhole_image(
    view: View, stored: tuple[int, int], native: tuple[int, int], size: tuple[int, int], white: bool
) -> tuple[np.ndarray, Lens]:
    """A view's photo as a pinhole image of the (width, height) `size`, with its lens.

    stored: the photo's size. native: the size of most photos, whose aspect is taken.
    """
    lens = _lens_at(view.path, stored, view.lens)
    reduction = 1
    if stored[0] * stored[1] >= _LARGE and not lens.distorted:  # which is undone in full detail
        reduction = min(stored[0] // (2 * size[0]), stored[1] // (2 * size[1]))  # twice is left, to be averaged
    upright = _is_turned(view.path, view.lens.size)
    pixels = read_picture(view.path, white=white, upright=upright, reduction=reduction)
    return _as_pinhole(pixels, lens, stored, native, size)


def _pinhole_mask(view: View, stored: tuple[int, int], native: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool of the (width, height) `size`: what the view's photo shows, where its mask is white.

    The mask lies over the photo, in another size maybe. stored: the photo's size.
    """
    if view.mask is None:
        lens = _lens_at(view.path, stored, view.lens)
        pixels = np.full(stored[::-1], 255, np.uint8)
    else:
        stored = image_size(view.mask, view.lens.size)
        lens = _lens_at(view.mask, stored, view.lens)
        pixels = read_mask(view.mask, upright=_is_turned(view.mask, view.lens.size))
    counts = _as_pinhole(pixels, lens, stored, native, size, hide=True)[0] > 127
    if not counts.any():
        raise UserError(_nothing_left(view))
    return counts


def _nothing_left(view: View) -> str:
    """What to tell of a photo of which nothing counts."""
    if view.mask is not None:
        return hides_all(view.mask)
    return f"{view.path}: its lens's distortion turns back before the picture begins; calibrate again, or leave it out"


def _as_pinhole(
    pixels: np.ndarray,
    lens: Lens,
    stored: tuple[int, int],
    native: tuple[int, int],
    size: tuple[int, int],
    hide: bool = False,
) -> tuple[np.ndarray, Lens]:
    """What a lens saw, undistorted, cut to the aspect of `native`, and resized to the (width, height) `size`.

    pixels: (height, width) or (height, width, 3). stored: the size of the file, whose `pixels` may be fewer. hide:
    whether pixels that no photo shows become 0.
    """
    pixels = undistort(pixels, lens)
    if hide and folds(lens):
        pixels = np.where(shown(lens), pixels, np.uint8(0))
    lens = lens.resized(pixels.shape[1], pixels.shape[0])
    if not same_aspect(stored, native):
        pixels, lens = _middle(pixels, lens, native)
    if lens.size != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if lens.width > size[0] else cv2.INTER_LINEAR)
        lens = lens.resized(*size)
    return pixels, replace(lens, distortion=(), fisheye=False)


def _middle(pixels: np.ndarray, lens: Lens, aspect: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    """The largest part of an image (height, width, ...) that has the (width, height) `aspect` and the same centre."""
    height, width = pixels.shape[:2]
    scale = min(width / aspect[0], height / aspect[1])
    w, h = round(scale * aspect[0]), round(scale * aspect[1])
    left, top = (width - w) // 2, (height - h) // 2
    return pixels[top : top + h, left : left + w], lens.cropped(left, top, w, h)


def is_cut_out(views: Sequence[View]) -> bool:
    """Whether transparency hides a part of most photos: a few are looked at, as stray pixels of one are no cut-out."""
    shares = [hidden_share(view.path) for view in a_few(views)]
    return sum(share >= _CUT_OUT for share in shares) > len(shares) / 2


def flat_background(images: Tensor) -> str | None:
    """The colour, "white" or "black", that nearly all of the photos' rims purely have; None where there is none.

    images: (n, height, width, 3) uint8. Objects are often cut out of their background without transparency.
    """
    for name, level in (("white", 255), ("black", 0)):
        shares = [_is_level(_rim(image), level).float().mean().item() for image in images]  # one by one, for the memory
        if sum(shares) / len(shares) > _FLAT_SHARE and not _is_level(images[0], level).all():
            return name
    return None


def _rim(image: Tensor) -> Tensor:
    """The pixels (n, 3) along the border of an image (height, width, 3)."""
    rim = max(1, round(_RIM_SHARE * min(image.shape[:2])))
    return torch.cat([strip.reshape(-1, 3) for strip in (image[:rim], image[-rim:], image[:, :rim], image[:, -rim:])])


def _is_level(pixels: Tensor, level: int) -> Tensor:
    """Which pixels (..., 3) are purely black (0) or white (255)."""
    return (pixels.int() - level).abs().amax(-1) <= _PURE


def _lens_at(path: Path, size: tuple[int, int], lens: Lens) -> Lens:
    """The lens at its picture's true size, which may be a resized copy of the one calibrated, never a crop."""
    width, height = size
    if not same_aspect(size, lens.size):
        raise UserError(
            f"{path} is {width}x{height} but its intrinsics are for {lens.width:g}x{lens.height:g}, another aspect; "
            "use the photos that the poses were estimated on, and masks of that aspect (not cropped, not rotated)"
        )
    return lens.resized(width, height)
