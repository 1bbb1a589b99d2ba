"""Folders of pictures that a user gives, named as the capture's photos: `--views`, `mask=`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cds3d.commands.scenes import naming_options
from tensorf.captures import Capture
from tensorf.captures.images import IMAGE_SUFFIXES
from tensorf.captures.pictures import read_picture
from tensorf.errors import UserError
from tensorf.untrusted import require_inside

_SAME_ASPECT = 0.02  # relative difference up to which a picture has its photo's shape


def picture_files(folder: Path, option: str, outside: bool) -> dict[str, Path]:
    """Picture files by stem. option: what the user has typed, as in "mask=x". UserError if there are none.

    outside: they may be links that lead out of the folder.
    """
    if not folder.is_dir():
        raise UserError(f"{option}: no such folder")
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    if not files:
        raise UserError(f"{option}: no pictures ({', '.join(IMAGE_SUFFIXES)}) there")
    if not outside:
        with naming_options("scene", "outside"):
            require_inside(files, folder)
    return {p.stem: p for p in files}


def by_photo(files: dict[str, Path], capture: Capture, option: str) -> dict[int, Path]:
    """Picture files by the index of their photo. UserError for one of no photo."""
    stems = {Path(name).stem: i for i, name in enumerate(capture.image_names)}
    if unknown := sorted(files.keys() - stems.keys()):
        raise UserError(
            f"{option}: the capture has no photo {unknown[0]}; pictures are named as the photos, such as "
            f"{Path(capture.image_names[capture.train[0]]).name}"
        )
    return {stems[stem]: file for stem, file in files.items()}


def read_as_photo(file: Path, width: int, height: int, option: str, white: bool) -> Image.Image:
    """The picture, of any size. UserError, which names the file, if it is none, or has not its photo's shape.

    width, height: of the photo. white: transparency is composited on white, else on black.
    """
    picture = Image.fromarray(read_picture(file, white=white, upright=True))
    if abs(picture.width / picture.height * height / width - 1) > _SAME_ASPECT:
        raise UserError(
            f"{option}: {file.name} is {picture.width}x{picture.height}, and its photo has the shape of "
            f"{width}x{height}: a picture has to show what its photo shows, to the edges"
        )
    return picture
