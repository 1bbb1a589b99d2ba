"""The bytes and text of COLMAP model files -> plain arrays (format: colmap.github.io/format.html)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensorf.errors import UserError, reason
from tensorf.untrusted import read_bytes

_MOST_BYTES = 5 * 2**29  # of a file; 10,000 photos with 10,000 observations of 24 bytes each, and some more
_UNDECODABLE = "surrogateescape"  # photo names that are no UTF-8 become what Python makes of such file names

# model id -> (name, number of parameters), of COLMAP 4.2
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}


@dataclass(frozen=True)
class ModelCamera:
    """model: COLMAP's name. parameters: in the model's order. width, height: pixels."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Registered:
    """An image with a pose. quaternion (4,) w x y z and translation (3,): world to camera. point_ids: (seen,) int64."""

    name: str
    camera_id: int
    quaternion: np.ndarray
    translation: np.ndarray
    point_ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """point_ids (points,) ascending int64 and points (points, 3) float64 belong together."""

    cameras_file: Path
    images_file: Path
    cameras: dict[int, ModelCamera]
    images: list[Registered]
    point_ids: np.ndarray
    points: np.ndarray


def load_model(folder: Path) -> Model:
    """Reads the model in `folder`; points may be absent. Raises UserError for missing or damaged files."""
    cameras_file, images_file = _find(folder, "cameras"), _find(folder, "images")
    cameras = _parse(cameras_file, _cameras_bin, _cameras_txt)
    images = _parse(images_file, _images_bin, _images_txt)
    ids, points = np.empty(0, dtype=np.int64), np.empty((0, 3))
    if any((folder / f"points3D{suffix}").is_file() for suffix in (".bin", ".txt")):
        ids, points = _parse(_find(folder, "points3D"), _points_bin, _points_txt)
        order = np.argsort(ids)
        ids, points = ids[order], points[order]
    return Model(cameras_file, images_file, cameras, images, ids, points)


def count_images(folder: Path) -> int:
    """How many images the model in `folder` registers; 0 where it has no images file."""
    if not any((folder / f"images{suffix}").is_file() for suffix in (".bin", ".txt")):
        return 0
    return len(_parse(_find(folder, "images"), _images_bin, _images_txt))


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.bin", folder / f"{stem}.txt"):
        if path.is_file():
            return path
    raise UserError(f"{folder} lacks {stem}.bin or {stem}.txt; export the whole COLMAP model")


def _parse(path, parse_bin, parse_txt):
    try:
        if path.suffix == ".bin":
            return parse_bin(_Bytes(read_bytes(path, _MOST_BYTES)))
        return parse_txt(read_bytes(path, _MOST_BYTES).decode("utf-8-sig", _UNDECODABLE).splitlines())
    except (struct.error, ValueError, IndexError, OverflowError, OSError) as error:
        raise UserError(
            f"{path} is damaged, cut off or too large ({reason(error)}); export the COLMAP model again"
        ) from error


class _Bytes:
    """A cursor over little-endian bytes. Reads past the end raise struct.error, ValueError or OverflowError."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def unpack(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        value, self.at = self.data[self.at : end].decode("utf-8", _UNDECODABLE), end + 1
        return value

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        return values


def _cameras_bin(file: _Bytes) -> dict[int, ModelCamera]:
    cameras = {}
    for _ in range(file.unpack("Q")[0]):
        camera_id, model_id, width, height = file.unpack("iiQQ")
        name, count = _MODELS.get(model_id, (f"number {model_id}", None))
        if count is None:  # of unknown length: what follows cannot be found, and the images may not need it
            cameras[camera_id] = ModelCamera(name, width, height, ())
            break
        cameras[camera_id] = ModelCamera(name, width, height, file.unpack(f"{count}d"))
    return cameras


def _cameras_txt(lines: list[str]) -> dict[int, ModelCamera]:
    cameras = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            camera_id, model, width, height, *parameters = line.split()
            cameras[int(camera_id)] = ModelCamera(model, int(width), int(height), tuple(map(float, parameters)))
    return cameras


_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point_id", "<i8")])


def _images_bin(file: _Bytes) -> list[Registered]:
    images = []
    for _ in range(file.unpack("Q")[0]):
        _, *pose, camera_id = file.unpack("i7di")
        name = file.text()
        point_ids = file.array(_OBSERVATION, file.unpack("Q")[0])["point_id"]
        images.append(_registered(name, camera_id, pose, point_ids))
    return images


def _images_txt(lines: list[str]) -> list[Registered]:
    """Two lines an image; the second, of observations, may be empty."""
    images = []
    lines = iter(lines)
    for line in lines:
        if line.strip() and not line.startswith("#"):
            _, *pose, camera_id, name = line.split(maxsplit=9)
            point_ids = np.array(next(lines, "").split()[2::3], dtype=np.int64)
            images.append(_registered(name.strip(), int(camera_id), [float(x) for x in pose], point_ids))
    return images


def _registered(name: str, camera_id: int, pose: list[float], point_ids: np.ndarray) -> Registered:
    return Registered(name, camera_id, np.array(pose[:4]), np.array(pose[4:]), point_ids[point_ids >= 0])


def _points_bin(file: _Bytes) -> tuple[np.ndarray, np.ndarray]:
    ids, points = [], []
    for _ in range(file.unpack("Q")[0]):
        point_id, x, y, z, *_, track_length = file.unpack("Q3d3BdQ")
        file.at += 8 * track_length  # pairs of int32: image, observation
        ids.append(point_id)
        points.append((x, y, z))
    return np.array(ids, dtype=np.int64), np.array(points).reshape(-1, 3)


def _points_txt(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split(maxsplit=4)[:4] for line in lines if line.strip() and not line.startswith("#")]
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    return ids, np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 3)
