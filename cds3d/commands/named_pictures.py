"""Folders of pictures that a user gives, named as the capture's photos: `--views`, `mask=`."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from PIL import Image

from cds3d.commands.scenes import naming_options
from tensorf.captures import Capture
from tensorf.captures.images import IMAGE_SUFFIXES, is_photo
from tensorf.captures.pictures import read_mask, read_picture
from tensorf.errors import UserError
from tensorf.untrusted import require_inside

_SAME_ASPECT = 0.02  # relative difference up to which a picture has its photo's shape


def picture_files(folder: Path, option: str, outside: bool) -> dict[str, Path]:
    """Picture files by their path in the folder; those of subfolders only if it has none itself.

    option: what the user has typed, as in "mask=x". outside: they may be links that lead out of the folder. UserError
    if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{option}: no such folder")
    here, below = (sorted(filter(is_photo, paths)) for paths in (folder.iterdir(), folder.rglob("*")))
    files = here or below
    if not files:
        raise UserError(f"{option}: no pictures ({', '.join(IMAGE_SUFFIXES)}) there")
    if not outside:
        with naming_options("scene", "outside"):
            require_inside(files, folder)
    return {file.relative_to(folder).as_posix(): file for file in files}


def by_photo(files: dict[str, Path], capture: Capture, option: str) -> dict[int, Path]:
    """Picture files by the index of their photo. UserError for one of no photo, or for two of the same."""
    found: dict[int, Path] = {}
    for name, file in files.items():
        index = photo_index(capture, name)
        if index is None:
            raise UserError(
                f"{option}: the capture has no photo {Path(name).with_suffix('')}; pictures are named as the photos, "
                f"such as {Path(capture.image_names[capture.train[0]]).name}"
            )
        if index in found:
            raise UserError(f"{option}: {found[index].name} and {file.name} are both of {capture.image_names[index]}")
        found[index] = file
    return found


def photo_index(capture: Capture, name: str) -> int | None:
    """The photo of that name: its path in the capture or its file's name, both with or without a suffix of pictures.

    Where several folders of a capture have photos of that name, as train/ and test/ of Blender's, it is the one to
    train on. None if there is no such photo, or if several are to be trained on.
    """
    name, *photos = (unicodedata.normalize("NFC", text) for text in (name, *capture.image_names))  # see `find_file`
    paths = [Path(photo) for photo in photos]
    for names in (
        [p.as_posix() for p in paths],
        [p.with_suffix("").as_posix() for p in paths],
        [p.name for p in paths],
        [p.stem for p in paths],
    ):
        found = [i for i, candidate in enumerate(names) if candidate == name]
        found = [i for i in found if i in capture.train] or found
        if found:
            return found[0] if len(found) == 1 else None
    path = Path(name)
    return photo_index(capture, path.with_suffix("").as_posix()) if path.suffix.lower() in IMAGE_SUFFIXES else None


def read_as_photo(file: Path, width: int, height: int, option: str, white: bool) -> Image.Image:
    """The picture, of any size. UserError, which names the file, if it is none, or has not its photo's shape.

    width, height: of the photo. white: transparency is composited on white, else on black.
    """
    return _of_shape(Image.fromarray(read_picture(file, white=white, upright=True)), file, width, height, option)


def read_as_mask(file: Path, width: int, height: int, option: str) -> Image.Image:
    """A grey picture, white where the mask is (`read_mask`). UserError as `read_as_photo`."""
    return _of_shape(Image.fromarray(read_mask(file, upright=True)), file, width, height, option)


def _of_shape(picture: Image.Image, file: Path, width: int, height: int, option: str) -> Image.Image:
    rounding = 0.5 / width + 0.5 / height  # of a small view's size
    if abs(picture.width / picture.height * height / width - 1) > _SAME_ASPECT + rounding:
        raise UserError(
            f"{option}: {file.name} is {picture.width}x{picture.height}, and its photo has the shape of "
            f"{width}x{height}: a picture has to show what its photo shows, to the edges"
        )
    return picture
