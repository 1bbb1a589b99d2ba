"""What poses can be estimated from, photos alone or a video, and where the estimated capture is kept.

    source = find_source(Path("some/photos"), frames=60)           # None: the folder has poses of its own
    folder, finished = folder_of(source, Path("outputs/captures"))
    if not finished:
        estimate_capture(source, folder)                           # estimate.py
    capture = load_capture(folder)

A finished folder holds `source.json`, which says what it was made from. Fields are trained in an estimate's own
coordinates, and another estimate has others: an estimate is therefore never replaced. Where the photos changed, or
other photos have the same name, the next free name is taken.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tensorf.captures import llff
from tensorf.captures.colmap import find_models
from tensorf.captures.frames import VIDEO_SUFFIXES
from tensorf.captures.photos import find_photos
from tensorf.captures.transforms import is_transforms
from tensorf.captures.views import MINIMUM_VIEWS
from tensorf.errors import UserError

RECORD = "source.json"


@dataclass(frozen=True)
class Source:
    """path: absolute, a folder or a video. photos: the folder's, in natural order; none for a video.

    frames: how many to take of a video; None for photos.
    """

    path: Path
    photos: tuple[Path, ...]
    frames: int | None

    @property
    def is_video(self) -> bool:
        return self.frames is not None

    @property
    def name(self) -> str:
        return self.path.stem if self.is_video else self.path.name

    def record(self) -> dict:
        """What tells this source from others, and from itself after a change, as JSON can hold it."""
        files = {}
        for path in (self.path,) if self.is_video else self.photos:
            status = path.stat()
            files[path.name] = [status.st_size, status.st_mtime_ns]
        return {"source": str(self.path), "frames": self.frames, "files": files}


def find_source(path: Path, frames: int) -> Source | None:
    """The video, or the folder's photos; None where the folder holds poses, and is an ordinary capture.

    frames: how many to take of a video. Raises UserError where there are neither poses nor photos, or too few photos.
    """
    path = Path(os.path.abspath(path))  # not resolved: a link's own name is the one that the user knows
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise UserError(f"{path} is neither a folder nor a video ({', '.join(VIDEO_SUFFIXES)})")
        if frames < MINIMUM_VIEWS:
            raise UserError(f"frames={frames} must be at least {MINIMUM_VIEWS}")
        return Source(path, (), frames)
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a folder or a video")
    if has_poses(path):
        return None
    photos = find_photos(path)
    if not photos:
        raise UserError(
            f"{path} is no capture: found neither poses_bounds.npy, transforms.json, transforms_train.json nor "
            "cameras.bin or cameras.txt in sparse/0, sparse or colmap/sparse/0, nor photos (JPEG, PNG, WebP or TIFF) "
            "in it or in its images folder to estimate poses from"
        )
    if len(photos) < MINIMUM_VIEWS:
        raise UserError(
            f"{path} holds {len(photos)} photos and no poses: to estimate poses at least {MINIMUM_VIEWS} are needed, "
            "better 30, which overlap"
        )
    return Source(path, tuple(photos), None)


def has_poses(folder: Path) -> bool:
    """True where the folder holds a pose file of a format that is read, be it a good one or not."""
    return (folder / llff.FILE_NAME).is_file() or is_transforms(folder) or bool(find_models(folder))


def folder_of(source: Source, parent: Path) -> tuple[Path, bool]:
    """(folder, finished): where in `parent` the estimate of `source` is, or where it belongs.

    That is `parent/<name>`, or `parent/<name>-2` and so on where another source, an earlier state of this one or
    anything else has that name.
    """
    record = source.record()
    number = 1
    while True:
        folder = parent / (source.name if number == 1 else f"{source.name}-{number}")
        if not folder.exists():
            return folder, False
        if _recorded(folder) == record:
            return folder, True
        number += 1


def write_record(source: Source, folder: Path, **figures) -> None:
    """source.json: the record, and figures of the estimate."""
    (folder / RECORD).write_text(json.dumps({**source.record(), **figures}, indent=1) + "\n")


def _recorded(folder: Path) -> dict | None:
    """The record in `folder`, without figures; None where there is none that can be read."""
    try:
        found = json.loads((folder / RECORD).read_text())
        return {key: found[key] for key in ("source", "frames", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
