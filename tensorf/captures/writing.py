"""Captures for other programs: `transforms.json` as nerfstudio reads it, and a COLMAP model in `sparse/0`.

Both are in the capture's own coordinates. Numpy float64 throughout; poses are OpenCV camera-to-world.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tensorf.cameras import Camera
from tensorf.captures.capture import Capture
from tensorf.captures.geometry import transformed
from tensorf.captures.transforms import opencv_from_opengl
from tensorf.files import atomic, write_text

_PINHOLE = 1  # COLMAP's number of the camera model


@dataclass(frozen=True, eq=False)
class Points:
    """positions (n, 3) float64 in the capture's coordinates; colors (n, 3) uint8; view (n,), which view shows each, and
    pixels (n, 2) float64, where: column and row, 0.5 in the middle of the first pixel.
    """

    positions: np.ndarray
    colors: np.ndarray
    view: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


def capture_poses(cameras: list[Camera], capture: Capture) -> np.ndarray:
    """(n, 3, 4) poses of cameras of the normalised world in the capture's own coordinates."""
    poses = transformed(torch.stack([camera.pose for camera in cameras]).double().numpy(), _capture_from_world(capture))
    # Cameras keep float32. COLMAP's files have a rotation's quaternion and the rotated position, so a rotation that is
    # not exactly one would move cameras far from the origin.
    left, _, right = np.linalg.svd(poses[:, :, :3])
    return np.concatenate([left @ right, poses[:, :, 3:]], 2)


def capture_points(points: torch.Tensor, capture: Capture) -> np.ndarray:
    """World points (n, 3) in the capture's own coordinates."""
    similarity = _capture_from_world(capture)
    return points.double().cpu().numpy() @ similarity[:3, :3].T + similarity[:3, 3]


def _capture_from_world(capture: Capture) -> np.ndarray:
    return np.linalg.inv(capture.world_from_capture.numpy())


def write_transforms(
    path: Path,
    names: list[str],
    cameras: list[Camera],
    poses: np.ndarray,
    held_out: Collection[str] = (),
    points_file: str | None = None,
) -> None:
    """A `transforms.json` with the split by name. names: files as they lie beside it; all cameras have one size."""
    first = cameras[0]
    train = [name for name in names if name not in held_out]
    test = [name for name in names if name in held_out]
    frames = [
        {"file_path": name, "transform_matrix": [*row.tolist(), [0.0, 0.0, 0.0, 1.0]], **_lens(camera)}
        for name, camera, row in zip(names, cameras, opencv_from_opengl(poses), strict=True)
    ]
    table = {
        "camera_model": "PINHOLE",
        "w": first.width,
        "h": first.height,
        "orientation_override": "none",  # nerfstudio turns the world upright otherwise
        "ply_file_path": points_file,
        "train_filenames": train,
        "val_filenames": test,
        "test_filenames": test,
        "frames": frames,
    }
    if not test:  # a split that holds nothing out is left to the reader
        table = {k: v for k, v in table.items() if not k.endswith("_filenames")}
    if points_file is None:
        del table["ply_file_path"]
    write_text(path, json.dumps(table, indent=1) + "\n")


def _lens(camera: Camera) -> dict[str, float]:
    return {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}


def write_colmap(folder: Path, names: list[str], cameras: list[Camera], poses: np.ndarray, points: Points) -> None:
    """`cameras.bin`, `images.bin` and `points3D.bin`; each view with a camera of its own, each point seen by its view.

    names: relative to the folder of images.
    """
    of_view = [np.flatnonzero(points.view == i) for i in range(len(names))]
    place = np.zeros(len(points), dtype=np.int64)  # of a point in its view's list of observations
    for rows in of_view:
        place[rows] = np.arange(len(rows))
    with atomic(folder / "cameras.bin") as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for i, camera in enumerate(cameras, 1):
            file.write(struct.pack("<iiQQ", i, _PINHOLE, camera.width, camera.height))
            file.write(struct.pack("<4d", camera.fx, camera.fy, camera.cx, camera.cy))
    with atomic(folder / "images.bin") as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for i, (name, pose, rows) in enumerate(zip(names, poses, of_view, strict=True), 1):
            rotation = pose[:, :3].T
            file.write(struct.pack("<i7di", i, *_quaternion(rotation), *(-rotation @ pose[:, 3]), i))
            file.write(name.encode("utf-8", "surrogateescape") + b"\0" + struct.pack("<Q", len(rows)))
            for row in rows:
                file.write(struct.pack("<2dq", *points.pixels[row], row + 1))
    with atomic(folder / "points3D.bin") as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(points)))
        for row in range(len(points)):
            file.write(struct.pack("<Q3d3BdQ", row + 1, *points.positions[row], *points.colors[row], 0.0, 1))
            file.write(struct.pack("<2i", points.view[row] + 1, place[row]))


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(4,) w x y z, w >= 0, of a rotation (3, 3): the eigenvector of Bar-Itzhack's symmetric matrix (2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [[a - e - i, d + b, g + c, h - f], [d + b, e - a - i, h + f, c - g],
         [g + c, h + f, i - a - e, d - b], [h - f, c - g, d - b, a + e + i]]
    )  # fmt: skip
    x, y, z, w = np.linalg.eigh(matrix / 3)[1][:, -1]
    return np.array([w, x, y, z]) * (1 if w >= 0 else -1)


def write_ply(path: Path, columns: dict[str, np.ndarray]) -> None:
    """A binary PLY of vertices. columns: name -> (n,) float32 or uint8, in the order of the file."""
    kinds = {np.dtype("float32"): "float", np.dtype("uint8"): "uchar"}
    table = np.empty(len(next(iter(columns.values()))), dtype=[(name, c.dtype) for name, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {kinds[column.dtype]} {name}" for name, column in columns.items()] + ["end_header"]
    with atomic(path) as partial:
        partial.write_bytes("\n".join(lines).encode() + b"\n" + table.tobytes())
