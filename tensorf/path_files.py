"""Camera paths from files: a `transforms.json`, or the camera path that nerfstudio's viewer saves.

Poses are in the capture's own coordinates. nerfstudio normalises its world: where a `dataparser_transforms.json`, which
nerfstudio writes next to its checkpoints, lies next to the path, it is undone; otherwise there is a warning. What
it writes there also holds the `applied_transform` of the capture's transforms.json, which its poses have already.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch

from tensorf.cameras import Camera
from tensorf.captures.geometry import transformed
from tensorf.captures.transforms import opencv_from_opengl, read_json
from tensorf.captures.views import checked_pose
from tensorf.errors import UserError
from tensorf.untrusted import MOST_PIXELS

log = logging.getLogger("tensorf")

_MOST_FPS = 240
_BEFORE_IT_WAS_WRITTEN = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])  # by nerfstudio


def read_camera_path(
    file: Path, world_from_capture: torch.Tensor, like: Camera, root: Path | None = None, turns: int = 0
) -> list[Camera]:
    """Cameras in the normalised world.

    world_from_capture: (4, 4), `Capture`'s. like: a view of it, whose lens and size are taken where the file tells
    none. root: the capture's folder. turns: `Capture.turns`; a path of poses that are those of photos as stored, such
    as the capture's own transforms.json, is turned upright as the photos were. UserError for a file that is missing,
    damaged, or no camera path.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    table = read_json(file)
    composed = "camera_path" in table  # in nerfstudio's viewer: cameras are as they were seen there
    if not composed and "frames" not in table:
        raise UserError(f"{file} is no camera path: it has neither frames nor camera_path")
    poses, cameras = _nerfstudio(file, table, like, root) if composed else _transforms(file, table, like)
    if not cameras:
        raise UserError(f"{file} has no cameras")
    checked = [checked_pose(opencv_from_opengl(p[:3]), file, f"camera {i}") for i, p in enumerate(poses)]
    world = torch.from_numpy(transformed(np.stack(checked), world_from_capture.numpy())).float()
    if not composed and turns and _lie_like_stored_photos(world, like, turns):
        _, cameras = _transforms(file, table, like.turned(-turns))
        return [camera.with_pose(pose).turned(turns) for camera, pose in zip(cameras, world, strict=True)]
    return [camera.with_pose(pose) for camera, pose in zip(cameras, world, strict=True)]


def _lie_like_stored_photos(poses: torch.Tensor, like: Camera, turns: int) -> bool:
    """Whether poses (n, 3, 4) of the world are upright, as the view `like` is, only once they are turned."""
    upright = [like.with_pose(pose).turned(turns).pose for pose in poses]
    return bool((torch.stack(upright)[:, :, 1] @ like.pose[:, 1]).mean() > (poses[:, :, 1] @ like.pose[:, 1]).mean())


def frames_per_second(file: Path) -> float | None:
    """What a camera path's file tells, as nerfstudio's do; None if it tells nothing of use."""
    fps = read_json(file).get("fps")
    return float(fps) if type(fps) in (int, float) and 0 < fps <= _MOST_FPS else None


def _transforms(file: Path, table: dict, like: Camera) -> tuple[list[np.ndarray], list[Camera]]:
    poses, cameras = [], []
    for i, frame in enumerate(_list(file, table, "frames")):
        keys = {**table, **frame}
        poses.append(_matrix(file, frame.get("transform_matrix"), i))
        if not {"w", "h"} <= keys.keys():  # these count pixels of a size that the file does not tell
            keys = {k: v for k, v in keys.items() if k not in ("fl_x", "fl_y", "cx", "cy")}
        if "fl_x" in keys or "camera_angle_x" in keys:
            width, height = (_number(file, keys, k, getattr(like, n), i) for k, n in (("w", "width"), ("h", "height")))
            default = None
            if "camera_angle_x" in keys:
                default = width / 2 / math.tan(_number(file, keys, "camera_angle_x", None, i) / 2)
            fx = _number(file, keys, "fl_x", default, i)
            fy = _number(file, keys, "fl_y", fx, i)
            cx, cy = (_number(file, keys, k, size / 2, i) for k, size in (("cx", width), ("cy", height)))
            cameras.append(_camera(file, i, fx, fy, cx, cy, width, height))
        else:
            cameras.append(like)
    return poses, cameras


def _nerfstudio(file: Path, table: dict, like: Camera, root: Path | None) -> tuple[list[np.ndarray], list[Camera]]:
    height, width = (
        _number(file, table, k, getattr(like, k.split("_")[1]), 0) for k in ("render_height", "render_width")
    )
    undo, scale = _normalisation(file, root)
    poses, cameras = [], []
    if (kind := table.get("camera_type", "perspective")) != "perspective":
        raise UserError(f"{file}: camera_type is {kind}, and only perspective is rendered; choose it in the viewer")
    for i, frame in enumerate(_list(file, table, "camera_path")):
        pose = _matrix(file, frame.get("camera_to_world"), i)
        pose[:3, 3] /= scale
        poses.append(undo @ pose)
        fov = _number(file, frame, "fov", 50.0, i)
        if not 0 < fov < 180:
            raise UserError(f"{file}: fov of camera {i} has to lie between 0 and 180 degrees, not {fov:g}")
        focal = height / 2 / math.tan(math.radians(fov) / 2)
        cameras.append(_camera(file, i, focal, focal, width / 2, height / 2, width, height))
    return poses, cameras


def _normalisation(file: Path, root: Path | None) -> tuple[np.ndarray, float]:
    """((4, 4) that undoes nerfstudio's rotation and shift, its scale)."""
    beside = file.with_name("dataparser_transforms.json")
    if not beside.is_file():
        log.warning(
            "%s is rendered as it is, from wrong places if nerfstudio normalised its world: copy %s of that training "
            "next to it", file, beside.name,
        )  # fmt: skip
        return np.eye(4), 1.0
    table = read_json(beside)
    matrix = _matrix(beside, table.get("transform"), 0)
    applied, applied_scale = _applied(root)
    return applied @ np.linalg.inv(matrix), _number(beside, table, "scale", 1.0, 0) / applied_scale


def _applied(root: Path | None) -> tuple[np.ndarray, float]:
    """((4, 4), scale) that transforms.json of a capture says its poses have; nerfstudio counts them as its own.

    Without such a line, but with COLMAP's model next to it, nerfstudio takes what its older versions applied.
    """
    path = root / "transforms.json" if root is not None else None
    if path is None or not path.is_file():
        return np.eye(4), 1.0
    table = read_json(path)
    assumed = _BEFORE_IT_WAS_WRITTEN if (root / "colmap" / "sparse" / "0").is_dir() else np.eye(4)
    given = table.get("applied_transform")
    scale = _number(path, table, "applied_scale", 1.0, 0)
    if not scale > 0:
        raise UserError(f"{path}: applied_scale={scale:g} has to be above 0")
    return (assumed if given is None else _matrix(path, given, 0)), scale


def _camera(file, i, fx, fy, cx, cy, width, height) -> Camera:
    if not (min(fx, fy) > 0 and all(math.isfinite(x) for x in (fx, fy, cx, cy)) and min(width, height) >= 1):
        raise UserError(f"{file}: camera {i} has no usable lens or size")
    if width * height > MOST_PIXELS:
        raise UserError(f"{file}: camera {i} is {width:g}x{height:g}, and at most {MOST_PIXELS:,} pixels are rendered")
    return Camera(torch.eye(3, 4, dtype=torch.float32), fx, fy, cx, cy, round(width), round(height))


def _matrix(file: Path, value, i: int) -> np.ndarray:
    """(4, 4) from 16 or 12 numbers, nested or flat, row by row."""
    try:
        numbers = np.array(value, dtype=np.float64).reshape(-1, 4)
    except (ValueError, TypeError):
        numbers = np.empty((0, 4))
    if len(numbers) not in (3, 4) or not np.isfinite(numbers).all():
        raise UserError(f"{file}: the pose of camera {i} is not a 4x4 matrix of numbers")
    return np.concatenate([numbers[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _list(file: Path, table: dict, key: str) -> list[dict]:
    if not isinstance(table[key], list) or not all(isinstance(frame, dict) for frame in table[key]):
        raise UserError(f"{file}: {key} has to be a list of cameras")
    return table[key]


def _number(file: Path, keys: dict, key: str, default: float | None, i: int) -> float:
    value = keys.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{file}: {key} of camera {i} has to be a number, not {value!r}")
    return float(value)
