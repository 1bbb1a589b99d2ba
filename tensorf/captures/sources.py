"""What poses can be estimated from, photos alone or a video, and where the estimated capture is kept.

    source = find_source(Path("some/photos"), frames=60)           # None: the folder has poses of its own
    folder, finished = folder_of(source, Path("outputs/captures"))
    if not finished:
        estimate_capture(source, folder)                           # estimate.py
    capture = load_capture(folder)

A finished folder holds `source.json`, which says what it was made from. An estimate is never replaced, because fields
are trained in its coordinates and another estimate has others. Where the photos changed, or other photos have the same
name, the next free name is taken.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tensorf.captures.colmap import find_models
from tensorf.captures.frames import VIDEO_SUFFIXES
from tensorf.captures.llff import is_llff
from tensorf.captures.masks import masks_of
from tensorf.captures.nsvf import is_nsvf
from tensorf.captures.photos import find_photos, is_unread, photos_among, what_reads
from tensorf.captures.transforms import is_transforms
from tensorf.captures.views import MINIMUM_VIEWS
from tensorf.errors import UserError
from tensorf.untrusted import load_json, require_inside

log = logging.getLogger("tensorf")

RECORD = "source.json"
_MOST_FOLDERS = 200  # a level, that are looked into for a hint
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")


def name_of(folder: Path) -> str:
    """The name of the capture in this folder. If the folder is called "images" or "input", that of the folder above.

    So `rose/images` is "rose": many folders are called "images", and their runs would get mixed up. The folder of an
    estimate keeps its own name.
    """
    folder = folder.absolute()
    above = folder.parent.name
    plain = re.fullmatch(r"images(_\d+)?|input", folder.name, re.IGNORECASE) and not (folder / RECORD).is_file()
    return above if plain and above else folder.name


@dataclass(frozen=True)
class Source:
    """path: absolute, a folder or a video. photos: the folder's, in natural order; none for a video.

    frames: how many to take of a video; None for photos. masks: of the photos that have one (`masks.py`).
    """

    path: Path
    photos: tuple[Path, ...]
    frames: int | None
    masks: dict[Path, Path] = field(default_factory=dict)

    @property
    def is_video(self) -> bool:
        return self.frames is not None

    @property
    def name(self) -> str:
        return self.path.stem if self.is_video else name_of(self.path)

    def record(self) -> dict:
        """Names, sizes in bytes and modification times of photos and masks, and `frames`; can be written as JSON.

        Equal records mean the same source. Folders are left out, because files may be moved.
        """
        photos = (self.path,) if self.is_video else self.photos
        return {"frames": self.frames, "files": _states(photos), "masks": _states(self.masks.values())}


def _states(files: Iterable[Path]) -> dict[str, list[int]]:
    statuses = {path.name: path.stat() for path in files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


def find_source(path: Path, frames: int, outside: bool = False) -> Source | None:
    """The video, or the folder's photos; None where the folder holds poses, and is an ordinary capture.

    frames: how many to take of a video. outside: photos may be links that lead out of the folder. Raises UserError
    where there are neither poses nor photos, or too few photos.
    """
    path = Path(os.path.abspath(path))  # not resolved: a link's own name is the one that the user knows
    if path.is_file():
        if path.name.lower().endswith(_ARCHIVES):
            raise UserError(f"{path} is an archive: unpack it, and give the folder that is in it")
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise UserError(
                f"{path} is neither a folder nor a video; give a folder, or one of {', '.join(VIDEO_SUFFIXES)}"
            )
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
            f"{path} is no capture: found neither poses_bounds.npy, transforms.json, transforms_train.json, "
            "intrinsics.txt nor cameras.bin or cameras.txt in it or in its sparse/0, sparse or colmap/sparse/0, nor "
            f"photos to estimate poses from, in it or in its images folder; {_what_else(path)}"
        )
    found = zip(photos, masks_of(path, [p.name for p in photos], tell=False))
    masks = {photo: mask for photo, mask in found if mask is not None}
    if not outside:
        require_inside([*photos, *masks.values()], path)
    if len(photos) < MINIMUM_VIEWS:
        raise UserError(
            f"{path} holds no poses and {len(photos)} photos: to estimate poses at least {MINIMUM_VIEWS} are needed, "
            "better 30 that overlap"
        )
    return Source(path, tuple(photos), None, masks)


def _what_else(path: Path) -> str:
    """What is in a folder without poses and photos, and what to do with it."""
    folders = _folders_below(path)
    files = [p for folder in [path, *folders] for p in _inside(folder) if p.is_file()]
    videos = [p for p in files if p.parent == path and p.suffix.lower() in VIDEO_SUFFIXES and p.name[0] != "."]
    if videos:
        return f"it holds a video: give {videos[0]}"
    for folder in folders:
        if has_poses(folder) or len(photos_among(_inside(folder))) >= MINIMUM_VIEWS:
            what = "poses" if has_poses(folder) else "photos"
            return f"there are {what} in a folder below: give {folder}"
    unread = [p for p in files if is_unread(p)]
    if unread:
        return f"it holds {len(unread)} {unread[0].suffix} files, which are not read: {what_reads(unread[0])}"
    return "convert photos of other kinds to JPEG"


def _folders_below(path: Path) -> list[Path]:
    """The folders in `path` and in those, nearest first; a few hundred at most, and no hidden ones."""
    level, found = [path], []
    for _ in range(2):
        inside = (p for folder in level for p in _inside(folder))
        level = [p for p in inside if p.is_dir() and not p.is_symlink() and p.name[0] != "."][:_MOST_FOLDERS]
        found += level
    return found


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing of one that may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def tell(source: Source) -> None:
    """What to know before poses are estimated: which photos have masks, and poses nearby that are not used."""
    if source.is_video:
        return
    masks_of(source.path, [photo.name for photo in source.photos])
    near = [source.path.parent] if source.path.name.startswith("images") else []
    known = next((folder for folder in [*near, *_folders_below(source.path)] if has_poses(folder)), None)
    if known is not None:
        log.warning(
            "%s: there are poses in %s, which are not used: to use them, interrupt this and give that folder",
            source.path, known,
        )  # fmt: skip


def has_poses(folder: Path) -> bool:
    """True where the folder holds a pose file of a format that is read, be it a good one or not."""
    return is_llff(folder) or is_transforms(folder) or is_nsvf(folder) or bool(find_models(folder))


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


def other_estimate(source: Source, parent: Path) -> tuple[Path, int] | None:
    """(folder, frames) of an estimate in `parent` of the same video with another number of frames, if there is one."""
    record, number = source.record(), 1
    while source.is_video and (folder := parent / (source.name if number == 1 else f"{source.name}-{number}")).exists():
        found = _recorded(folder)
        if found is not None and found["files"] == record["files"] and found["frames"] != record["frames"]:
            return folder, found["frames"]
        number += 1
    return None


def write_record(source: Source, folder: Path, **figures) -> None:
    """source.json: the record, and for the reader where the files were, and figures of the estimate."""
    told = {"source": str(source.path), **figures, **source.record()}
    (folder / RECORD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _recorded(folder: Path) -> dict | None:
    """The record in `folder`; None where there is none that can be read."""
    try:
        found = load_json(folder / RECORD)
        # Estimates of older versions say nothing of masks: there were none.
        return {"frames": found["frames"], "files": found["files"], "masks": found.get("masks", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
