"""Photos without poses -> upright JPEG copies of one size, for `estimate.py` to work on.

The copies' pixels are what poses get estimated for, so here, unlike in `images.py`, EXIF orientation is applied.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from tensorf.captures.images import IMAGE_SUFFIXES
from tensorf.captures.pictures import open_picture
from tensorf.captures.views import natural_key
from tensorf.errors import UserError

log = logging.getLogger("tensorf")

LONGEST_SIDE = 1600  # pixels of a copy: more than training uses
JPEG_QUALITY = 95
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_UNREADABLE = (OSError, ValueError, SyntaxError)


def find_photos(folder: Path) -> list[Path]:
    """The photos in `folder`'s subfolder `images`, else those in `folder` itself, in natural order of their names."""
    for place in (folder / "images", folder):
        photos = [p for p in place.iterdir() if _is_photo(p)] if place.is_dir() else []
        if photos:
            return sorted(photos, key=lambda p: natural_key(p.name))
    return []


def copy_photos(photos: list[Path], folder: Path, show_progress: bool = False) -> list[str]:
    """Writes upright RGB copies, at most 1600 pixels a side, into `folder`; returns their names in the given order.

    One camera is estimated for all, so that copies need one size: the most common one is kept, and photos of other
    sizes are counted and left out. Transparency becomes white.
    Raises UserError that names the unreadable photos, or the first that has too many pixels.
    """
    unreadable, sizes = [], {}
    for photo in photos:
        try:
            sizes[photo] = _upright_size(photo)
        except _UNREADABLE:
            unreadable.append(photo)
    _refuse(unreadable)
    common = Counter(sizes.values()).most_common(1)[0][0]
    kept = [photo for photo in photos if sizes[photo] == common]
    names = _names(kept)
    for photo, name in zip(tqdm(kept, desc="photos", unit="photo", disable=not show_progress), names):
        try:
            copy = _upright(photo, common)
        except _UNREADABLE:  # a file that is cut off has a good header
            unreadable.append(photo)
            continue
        copy.save(folder / name, quality=JPEG_QUALITY)
    _refuse(unreadable)
    if len(kept) < len(photos):
        odd = next(photo for photo in photos if sizes[photo] != common)
        log.warning(
            "%d of %d photos are left out: they are not %dx%d as the others are (the first is %s)",
            len(photos) - len(kept), len(photos), *common, odd,
        )  # fmt: skip
    return names


def _is_photo(path: Path) -> bool:
    # "._name" is what macOS leaves beside a photo on foreign disks
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the photo's copy, from the header alone."""
    with open_picture(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112) in _SIDEWAYS:
            width, height = height, width
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _upright(path: Path, size: tuple[int, int]) -> Image.Image:
    with open_picture(path) as file:
        file.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # lets JPEG decode at a half or a quarter, still large enough
        picture = ImageOps.exif_transpose(file)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    return picture if picture.size == size else picture.resize(size, Image.LANCZOS)


def _names(photos: list[Path]) -> list[str]:
    """A name for each copy: the photo's, as .jpg, with _ for all but letters, digits, . and -.

    COLMAP's lists of pairs are split at spaces, and in them # begins a comment.
    """
    names = []
    for photo in photos:
        name = re.sub(r"[^\w.-]", "_", photo.stem) + ".jpg"
        while name in names:  # a.png beside a.jpg
            name = "_" + name
        names.append(name)
    return names


def _refuse(unreadable: list[Path]) -> None:
    if unreadable:
        named = ", ".join(str(p) for p in unreadable[:5]) + (" and others" if len(unreadable) > 5 else "")
        count = "1 photo" if len(unreadable) == 1 else f"{len(unreadable)} photos"
        raise UserError(f"{count} cannot be read: {named}; replace or remove what is named")
