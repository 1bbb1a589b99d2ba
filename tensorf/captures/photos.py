"""Photos without poses -> upright JPEG copies of one size, for `estimate.py` to work on.

The copies' pixels are what poses get estimated for, so here, unlike in `images.py`, EXIF orientation is applied.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image

from tensorf.captures.heic import HEIC_SUFFIXES, INSTALL, heic_is_read
from tensorf.captures.images import common_size, is_photo, same_aspect
from tensorf.captures.masks import FOLDER
from tensorf.captures.pictures import (
    UnreadablePicture,
    focal_length,
    hides_all,
    orientation,
    read_mask,
    read_picture,
    stored_size,
)
from tensorf.captures.views import natural_key
from tensorf.errors import UserError
from tensorf.progress import progress

log = logging.getLogger("tensorf")

LONGEST_SIDE = 1600  # pixels of a copy: more than training uses
JPEG_QUALITY = 95
_close = partial(math.isclose, rel_tol=0.02)  # focal lengths that are taken as equal
# Of phones and cameras: pictures that are not read.
_UNREAD_SUFFIXES = (
    ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw",
)  # fmt: skip
_SHARE, _SHRINKS = 0.25, 2  # `_size_of_copies`


def find_photos(folder: Path) -> list[Path]:
    """The photos in `folder`'s subfolder `images`, else those in `folder` itself, in natural order of their names.

    HEIC pictures are photos where pillow-heif is installed. One that lies beside another photo of the same name, such
    as a JPEG made from it, is left out.
    """
    for place in (folder / "images", folder):
        files = list(place.iterdir()) if place.is_dir() else []
        if photos := photos_among(files):
            return sorted(photos, key=lambda p: natural_key(p.name))
    return []


def photos_among(files: list[Path]) -> list[Path]:
    """Those that are photos, as `find_photos` says."""
    photos = [p for p in files if is_photo(p)]
    if heic_is_read():
        shots = {photo.stem for photo in photos}
        photos += [p for p in files if _has_suffix(p, HEIC_SUFFIXES) and p.is_file() and p.stem not in shots]
    return photos


def is_unread(path: Path) -> bool:
    """Whether it is, by its name, a picture of a phone or camera of a kind that is not read."""
    return _has_suffix(path, _UNREAD_SUFFIXES) or (_has_suffix(path, HEIC_SUFFIXES) and not heic_is_read())


def what_reads(path: Path) -> str:
    """What to do with pictures that are not read, such as this one."""
    return f"{INSTALL}, or convert them to JPEG" if _has_suffix(path, HEIC_SUFFIXES) else "convert them to JPEG"


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and path.name[0] not in ".@"


def copy_photos(
    photos: list[Path], folder: Path, show_progress: bool = False, masks: dict[Path, Path] | None = None
) -> dict[str, Path]:
    """Writes upright RGB copies, at most 1600 pixels a side, into `folder`; returns each one's name and photo, in the
    given order.

    masks: of some of the photos; copies are `masks/<name of the photo's copy>.png` beside `folder`, white where a photo
    has none.

    Copies need one size, because photos of one lens get one camera (`_size_of_copies`). Photos of the same aspect are
    resized to it; those of another, and those of less than half of it, are counted and left out. Transparency becomes
    white. Photos of kinds that are not read, which lie beside them, are counted in a warning.
    Raises UserError that names the unreadable photos, the first that has too many pixels, or a mask whose sides do not
    have its photo's ratio.
    """
    _tell_unread(photos)
    masks = masks or {}
    unreadable, sizes = {}, {}
    for photo in photos:
        try:
            sizes[photo] = _upright_size(photo)
        except UnreadablePicture as error:
            unreadable[photo] = error
    _refuse(unreadable)
    common = _size_of_copies([_copy_size(size) for size in sizes.values()])
    alike = [photo for photo in photos if same_aspect(sizes[photo], common)]
    kept = [photo for photo in alike if sizes[photo][0] * _SHRINKS >= common[0]]
    names = _names(kept)
    for photo, name in zip(progress(show_progress, kept, desc="photos", unit="photo"), names):
        reduction = min(sizes[photo][0] // common[0], sizes[photo][1] // common[1])
        try:
            pixels = read_picture(photo, white=True, upright=True, reduction=reduction)
        except UnreadablePicture as error:  # a file that is cut off has a good header
            unreadable[photo] = error
            continue
        copy = Image.fromarray(pixels)
        if copy.size != common:
            copy = copy.resize(common, Image.LANCZOS)
        copy.save(folder / name, quality=JPEG_QUALITY, exif=_exif_of(photo))
        if masks:
            _copy_mask(masks.get(photo), sizes[photo], common, folder.parent / FOLDER / f"{name}.png")
    _refuse(unreadable)
    if small := [photo for photo in alike if photo not in kept]:
        log.warning(
            "%d of %d photos are left out, as they are small beside the others, as depth maps and previews are (the "
            "first is %s, %dx%d)", len(small), len(photos), small[0], *sizes[small[0]],
        )  # fmt: skip
    if len(alike) < len(photos):
        odd = next(photo for photo in photos if photo not in alike)
        usual = sizes[kept[0]]
        log.warning(
            "%d of %d photos are left out, as their sides have another ratio than those of the others, such as %dx%d "
            "pixels (the first is %s, %dx%d)",
            len(photos) - len(alike), len(photos), *usual, odd, *sizes[odd],
        )  # fmt: skip
    return dict(zip(names, kept, strict=True))


def by_lens(photos: dict[str, Path]) -> list[list[str]]:
    """The names of photos, grouped by what the photos' EXIF data tell: camera model, focal length, digital zoom.

    Focal lengths within 2% are one: focusing makes such differences. Photos that tell nothing are a group of their own.
    The lens's own focal length counts beside that of a full-frame camera: a phone's macro photos are cut out of those
    of its wide lens to look like those of its main one.
    """
    groups: list[tuple[tuple, list[str]]] = []
    for name, photo in photos.items():
        model, *numbers = focal_length(photo)
        for (of_model, *of_numbers), names in groups:
            if model == of_model and all(map(_close, numbers, of_numbers)):
                names.append(name)
                break
        else:
            groups.append(((model, *numbers), [name]))
    return [names for _, names in groups]


def _exif_of(photo: Path) -> Image.Exif:
    """What a copy's EXIF data say: the focal length, from which COLMAP begins. Copies are upright."""
    model, full_frame, *_ = focal_length(photo)
    exif = Image.Exif()
    if full_frame:
        exif[ExifTags.Base.Model] = model
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: round(full_frame)}
    return exif


def _copy_mask(mask: Path | None, photo: tuple[int, int], size: tuple[int, int], to: Path) -> None:
    """Writes the mask of an upright `photo` (width, height), upright and of this size, black and white.

    None becomes a white mask: COLMAP leaves out photos without one, once there is a folder of masks.
    """
    copy = Image.new("L", photo, 255) if mask is None else Image.fromarray(read_mask(mask, upright=True))
    if copy.getextrema()[1] <= 127:
        raise UserError(hides_all(mask))
    if not same_aspect(copy.size, photo):
        raise UserError(
            f"{mask} is {copy.width}x{copy.height}, its photo {photo[0]}x{photo[1]} when it is upright: a mask has to "
            "be turned as its photo, and not cropped"
        )
    to.parent.mkdir(exist_ok=True)
    copy.resize(size, Image.BOX).point(lambda level: 255 * (level > 127)).save(to)


def _tell_unread(photos: list[Path]) -> None:
    """One warning for pictures beside `photos` that cannot be read, unless the same shot is there as a photo."""
    shots = {photo.stem for photo in photos}
    beside = (p for folder in {photo.parent for photo in photos} for p in folder.iterdir())
    unread = sorted(p for p in beside if is_unread(p) and p.stem not in shots)
    if unread:
        kinds = ", ".join(sorted({p.suffix.lower() for p in unread}))
        log.warning(
            "%d photos of a kind that is not read (%s) lie beside the others and are left out, the first is %s; "
            "%s", len(unread), kinds, unread[0], what_reads(unread[0]),
        )  # fmt: skip


def _upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the photo turned upright, from the header alone."""
    width, height = stored_size(path)
    return (height, width) if orientation(path) >= 5 else (width, height)  # 5 to 8 swap the sides


def _copy_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the copy of a photo of this size."""
    scale = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _size_of_copies(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The most common (width, height); a larger one of the same aspect if a quarter have it.

    Scanners' apps write depth and confidence maps beside the photos, as many as photos or more.
    """
    common = common_size(sizes)
    enough = (size for size in set(sizes) if sizes.count(size) >= _SHARE * len(sizes) and same_aspect(size, common))
    return max(enough, default=common)


def _names(photos: list[Path]) -> list[str]:
    """A name for each copy: the photo's, as .jpg, with _ for all but letters, digits, . and -.

    COLMAP's lists of pairs are split at spaces, and in them # begins a comment. No two names differ only in their
    capitals, which are one file on most Macs.
    """
    names: dict[str, str] = {}
    for photo in photos:
        name = re.sub(r"[^\w.-]", "_", photo.stem) + ".jpg"
        while name.lower() in names:  # a.png beside a.jpg
            name = "_" + name
        names[name.lower()] = name
    return list(names.values())


def _refuse(unreadable: dict[Path, UnreadablePicture]) -> None:
    if len(unreadable) == 1:
        raise next(iter(unreadable.values()))
    if unreadable:
        named = ", ".join(map(str, list(unreadable)[:5])) + (" and others" if len(unreadable) > 5 else "")
        raise UserError(
            f"{len(unreadable)} photos cannot be read: {named}; replace or remove what is named. Of the first: "
            f"{next(iter(unreadable.values()))}"
        )
