"""Captures described by JSON -> Listing: Blender's synthetic scenes, instant-ngp and nerfstudio.

Camera axes in these files are OpenGL's (x right, y up, z back). Either one `transforms.json`, or
`transforms_train.json` with `_test` and `_val` beside it, which then give the split.
"""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from tensorf.captures.images import (
    choose_image_folder,
    common_size,
    find_by_stem,
    find_file,
    image_folders,
    image_size,
)
from tensorf.captures.masks import FOLDER
from tensorf.captures.views import Lens, Listing, View, checked_lens, checked_pose, natural_key, report_missing
from tensorf.errors import UserError
from tensorf.untrusted import load_json, require_inside

log = logging.getLogger("tensorf")

_FAR_CORNER = 0.8  # of width and height: no principal point is there
_MODELS = {  # camera_model -> fisheye
    "PINHOLE": False,
    "SIMPLE_PINHOLE": False,
    "SIMPLE_RADIAL": False,
    "RADIAL": False,
    "OPENCV": False,
    "OPENCV_FISHEYE": True,
}


def is_transforms(root: Path) -> bool:
    return any((root / name).is_file() for name in ("transforms_train.json", "transforms.json"))


def read_transforms(root: Path, width: int | None = None, outside: bool = False) -> Listing:
    """Lists the views of `root` whose photos exist, sorted naturally by path (train before test where named).

    Where nerfstudio's folders `images_2`, `images_4`, ... have all of them too, photos come from the one that suits
    `width` (pixels) best. Photos that do not exist are left out with one warning. outside: photos may lie outside of
    `root`. Raises UserError for malformed JSON, missing keys, unusable poses or intrinsics, camera models that cannot
    be undone, and fewer than 3 photos.
    """
    if (root / "transforms_train.json").is_file():
        source = root / "transforms_train.json"
        views, missing = _read_split(root, source, outside)
    else:
        source = root / "transforms.json"
        views, missing = _read_file(root, source, None, outside)
    report_missing(source, missing, len(views) + len(missing))
    views = _once(views, source)
    if all(view.mask is None for view in views) and (root / FOLDER).is_dir():
        log.warning("%s is not used: no frame of %s names its mask (mask_path)", root / FOLDER, source.name)
    return Listing(source, _from_smaller_copies(views, root, width))


def _read_split(root: Path, train: Path, outside: bool) -> tuple[list[View], list[str]]:
    """As `_read_file`, of the file `train` and the held-out one beside it: the validation's, if no test photo exists.

    Test photos are left out of many downloads. They count as missing where none is held out in their place.
    """
    others = [path for name in ("test", "val") if (path := root / f"transforms_{name}.json").is_file()]
    views, missing = _read_file(root, train, False if others else None, outside)
    lost = []
    for other in others:
        found, absent = _read_file(root, other, True, outside)
        if found:
            if lost:
                log.warning(
                    "%s: none of its %d photos exists: those of %s are held out", others[0], len(lost), other.name
                )
            return views + found, missing + absent
        lost = lost or absent
    return views, missing + lost


def _from_smaller_copies(views: list[View], root: Path, width: int | None) -> list[View]:
    """`views` with their photos from the folder among `images`, `images_2`, ... that suits `width` best."""
    if not all(view.path.is_relative_to(root / "images") for view in views):
        return views
    names = [view.path.relative_to(root / "images").as_posix() for view in views]
    photos = {folder: [find_file(folder, name) for name in names] for folder in image_folders(root)}
    complete = {folder: paths for folder, paths in photos.items() if all(paths)}
    folder = choose_image_folder(complete, width, views[0].lens.size)
    return [replace(view, path=path) for view, path in zip(views, complete[folder], strict=True)]


def opencv_from_opengl(pose: np.ndarray) -> np.ndarray:
    """(..., 3, 4) from camera axes (right, up, back) to (right, down, forward); the world stays."""
    return pose * np.array([1.0, -1.0, -1.0, 1.0])


def _read_file(root: Path, source: Path, role: bool | None, outside: bool) -> tuple[list[View], list[str]]:
    """The views of one file whose photos exist, and the names of those that do not."""
    table = read_json(source)
    frames = _require(table, "frames", source, list)
    shared = {key: value for key, value in table.items() if key != "frames"}
    named = _named_split(shared, root, source) if role is None else None
    paths = []
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise UserError(f"{source}: frame {i} is not an object with file_path and transform_matrix")
        paths.append(_normal(_require(frame, "file_path", source, str, f"frame {i}"), root))
    if named and paths and not named.keys() & set(paths):
        raise UserError(
            f"{source}: train_filenames and test_filenames name no frame ({next(iter(named))}, where a file_path is "
            f"{paths[0]}): write names alike, or take the lists out"
        )
    found, missing, left_out = [], [], 0
    for name, frame in sorted(zip(paths, frames, strict=True), key=lambda pair: natural_key(pair[0])):
        held_out = role if named is None else named.get(name)
        if named is not None and held_out is None:
            left_out += 1
            continue
        path = _find_photo(root, name)
        if path is None:
            missing.append(name)
            continue
        found.append((name, frame, path, held_out))
    if left_out:
        log.info("%s: %d of %d frames are in none of its lists, and not used", source, left_out, len(frames))
    if not outside:
        require_inside((path for _, _, path, _ in found), root)  # before they are opened for their sizes
    masks = _masks(root, [frame for _, frame, _, _ in found], source)
    unsized = {path: image_size(path) for _, frame, path, _ in found if not {"w", "h"} <= {*shared, *frame}}
    of_most = common_size(unsized.values()) if unsized else None
    views = []
    for (name, frame, path, held_out), mask in zip(found, masks, strict=True):
        pose = _pose(frame, source, name)
        # A focal length of the whole file is for the size that most photos have, an angle of view for every size.
        size = of_most if "fl_x" in shared and "fl_x" not in frame else unsized.get(path)
        lens = checked_lens(_lens({**shared, **frame}, size, path, source), source, name)
        views.append(View(Path(name).with_name(path.name).as_posix(), path, pose, lens, held_out, mask))
    return views, missing


def _once(views: list[View], source: Path) -> list[View]:
    """Those whose photo no view before has: else it could be held out and trained on at once."""
    first: dict[str, View] = {}
    for view in views:
        first.setdefault(os.path.normpath(view.path), view)
    if len(first) < len(views):
        log.warning(
            "%s: %d frames name a photo that an earlier frame names, and are left out", source, len(views) - len(first)
        )
    return list(first.values())


def _masks(root: Path, frames: list[dict], source: Path) -> list[Path | None]:
    """The file of each frame's mask; None, and one warning for all, where it has none or the file is missing."""
    asked = [frame.get("mask_path") for frame in frames]
    if wrong := [name for name in asked if name is not None and not isinstance(name, str)]:
        raise UserError(f"{source}: mask_path has to be a file's name, not {wrong[0]!r}; export the file again")
    names = [None if name is None else _normal(name, root) for name in asked]
    masks = [None if name is None else find_file(root, name) for name in names]
    missing = [root / name for name, mask in zip(names, masks, strict=True) if name is not None and mask is None]
    if missing:
        log.warning(
            "%s: %d of %d masks are missing, the first is %s: their photos are trained on as a whole",
            source, len(missing), len(names) - names.count(None), missing[0],
        )  # fmt: skip
    return masks


def _named_split(shared: dict, root: Path, source: Path) -> dict[str, bool] | None:
    """Photo name -> held out?, from nerfstudio's lists; None where the file does not name both sides."""
    lists = {}
    for key in ("train_filenames", "test_filenames", "val_filenames"):
        lists[key] = _require(shared, key, source, list) if key in shared else []
    held_out = lists["test_filenames"] or lists["val_filenames"]
    if not lists["train_filenames"] or not held_out:
        return None
    # Some are in both, as nerfstudio's `eval-mode all` has them: those are trained on.
    roles = {_normal(str(name), root): True for name in held_out}
    return roles | {_normal(str(name), root): False for name in lists["train_filenames"]}


def _pose(frame: dict, source: Path, name: str) -> np.ndarray:
    """(3, 4) OpenCV camera-to-world."""
    value = _require(frame, "transform_matrix", source, list, name)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{source}: transform_matrix of {name} is not a 4x4 matrix of numbers; export the file again")
    return checked_pose(opencv_from_opengl(matrix[:3]), source, name)


def _lens(keys: dict, size: tuple[int, int] | None, path: Path, source: Path) -> Lens:
    """The lens from a frame's `keys` (its own over the file's): focal lengths, or angles of view as Blender's, in
    radians, or as instant-ngp's, in degrees.

    size: the (width, height) that it is for, where the keys name none.
    """

    def number(key: str, default: float | None = None) -> float:
        value = keys.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{source}: {key} must be a number, not {value!r} ({path.name})")
        return float(value)

    if "w" in keys and "h" in keys:
        width, height = number("w"), number("h")
    else:
        width, height = size

    def focal(axis: str, size: float) -> float | None:
        if f"fl_{axis}" in keys:
            return number(f"fl_{axis}")
        angles = ((f"camera_angle_{axis}", math.pi, "pi radians"), (f"{axis}_fov", 180, "180 degrees"))
        for key, half_turn, unit in angles:
            if key in keys:
                angle = number(key)
                if not 0 < angle < half_turn:
                    raise UserError(f"{source}: {key} must lie between 0 and {unit}, not {angle:g} ({path.name})")
                return 0.5 * size / math.tan(0.5 * angle * math.pi / half_turn)
        return None

    fx = focal("x", width)
    if fx is None:
        raise UserError(f"{source}: {path.name} has neither fl_x nor camera_angle_x nor x_fov; add one of them")
    fy = None if "fl_x" in keys and "fl_y" not in keys else focal("y", height)
    fy = fx if fy is None else fy
    model = "OPENCV_FISHEYE" if keys.get("is_fisheye") else keys.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model not in _MODELS:
        raise UserError(f"{source}: camera_model {model} is not read; undistort the photos to PINHOLE first")
    names = ("k1", "k2", "k3", "k4") if _MODELS[model] else ("k1", "k2", "p1", "p2", "k3")
    if not _MODELS[model] and number("k4", 0.0) != 0:
        raise UserError(f"{source}: k4 of camera_model {model} cannot be undone; undistort the photos first")
    distortion = tuple(number(name, 0.0) for name in names)
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    if not {"w", "h"} <= keys.keys() and min(cx / width, cy / height) > _FAR_CORNER:
        raise UserError(
            f"{source}: cx={cx:g} and cy={cy:g} are not near the middle of {path.name}, which is {width}x{height}: "
            f"they seem to be for photos of about {2 * cx:.0f}x{2 * cy:.0f}; add w and h, the size that they are for"
        )
    return Lens(fx, fy, cx, cy, width, height, distortion, _MODELS[model])


def _find_photo(root: Path, name: str) -> Path | None:
    """The photo's path, which may have another suffix, or be in `images_2`, ... where there is no folder `images`.

    Blender leaves the suffix out.
    """
    if not Path(name).name:  # such as "/", which is a place but no file
        return None
    if path := find_file(root, name):
        return path
    if Path(name).parts[0] == "images" and not (root / "images").is_dir():  # only smaller copies were brought along
        places = [folder / Path(*Path(name).parts[1:]) for folder in image_folders(root)]
    else:
        places = [root / name]
    found = (find_by_stem(place.parent, stem) for place in places for stem in (place.name, place.stem))
    return next((file for file in found if file), None)


def _normal(name: str, root: Path) -> str:
    """A photo's name with forward slashes and without a leading "./".

    An absolute name is often that of another machine, or from before the capture was moved: of its ends, the longest
    that is a file in `root` is taken, if there is one.
    """
    path = Path(re.sub("^[A-Za-z]:", "", name.replace("\\", "/")))
    if path.is_absolute():
        ends = (Path(*path.parts[i:]) for i in range(1, len(path.parts)))
        path = next((end for end in ends if find_file(root, end.as_posix())), path)
    return path.as_posix()


def read_json(source: Path) -> dict:
    """A JSON object. UserError, which names the file, for anything else."""
    try:
        table = load_json(source)
    except (ValueError, OSError) as error:
        raise UserError(f"{source} is not valid JSON ({error}); export it again") from error
    if not isinstance(table, dict):
        raise UserError(f"{source} must be a JSON object, not {type(table).__name__}")
    return table


def _require(table: dict, key: str, source: Path, kind: type, where: str = "the file") -> object:
    """table[key], a `kind`. Raises UserError where it is missing or something else."""
    if key not in table:
        raise UserError(f"{source}: {where} lacks the key {key}; export the file again")
    if not isinstance(table[key], kind):
        raise UserError(f"{source}: {key} of {where} must be a {kind.__name__}, not {type(table[key]).__name__}")
    return table[key]
