"""Captures of a few tiny photos, written by hand in each of the formats."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tensorf.captures import load_capture
from tensorf.errors import UserError


def project(camera, point):
    """The (u, v) pixel of a world point."""
    x, y, z = camera.pose[:, :3].T.double() @ (torch.as_tensor(point, dtype=torch.float64) - camera.position)
    return (camera.fx * x / z + camera.cx).item(), (camera.fy * y / z + camera.cy).item()


def moved(capture, point):
    """A point of the capture's own coordinates in the world."""
    similarity = capture.world_from_capture
    return similarity[:3, :3] @ torch.tensor(point, dtype=torch.float64) + similarity[:3, 3]


def write_image(path, size=(12, 8), colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path)


def aimed(position, target=(0, 0, 0), up=(0, 0, 1)):
    """(3, 4) OpenCV pose at `position` that looks at `target`."""
    forward = np.subtract(target, position) / np.linalg.norm(np.subtract(target, position))
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    return np.stack([right, np.cross(forward, right), forward, position], axis=1)


def ring(count=4, radius=4.0):
    """Poses on a circle, looking at its centre from a little above."""
    angles = 2 * np.pi * np.arange(count) / count
    return [aimed((radius * np.cos(a), radius * np.sin(a), 1.0)) for a in angles]


def row_of_cameras(count=4):
    """Poses side by side along x, all looking along +z."""
    return [np.concatenate([np.eye(3), [[0.2 * i], [0.0], [0.0]]], axis=1) for i in range(count)]


def write_llff(root, poses, hwf=(8, 12, 10), depths=(2.0, 20.0), images="images", size=(12, 8)):
    rows = []
    for i, pose in enumerate(poses):
        right, down, forward, position = np.asarray(pose).T
        matrix = np.stack([down, right, -forward, position, np.array(hwf, dtype=float)], axis=1)
        rows.append([*matrix.ravel(), *depths])
        write_image(root / images / f"image{i + 1}.png", size, (i, 0, 0))
    np.save(root / "poses_bounds.npy", np.array(rows))


def frame(name, pose, **more):
    matrix = np.eye(4)
    matrix[:3] = np.asarray(pose) * [1, -1, -1, 1]  # OpenGL axes
    return {"file_path": name, "transform_matrix": matrix.tolist(), **more}


def write_transforms(root, poses, name="transforms.json", folder="images", colour=(9, 9, 9), size=(12, 8), **keys):
    frames = [frame(f"{folder}/{i}.png", pose) for i, pose in enumerate(poses)]
    for entry in frames:
        write_image(root / entry["file_path"], size, colour)
    (root / name).write_text(json.dumps({**(keys or {"fl_x": 10.0, "w": 12.0, "h": 8.0}), "frames": frames}))
    return frames


def edit_json(path, change):
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


# COLMAP's camera-from-world: the identity, and a quarter turn about x (w, x, y, z), by which a world point (x, y, z)
# is seen at (x, -z, y): the camera looks along the world's +y, its down is the world's -z.
QUARTER = (np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)
POINTS = {i + 1: (0.1 * (i % 5) - 0.2, 4.0 + 0.1 * i, 0.1 * (i % 3) - 0.1) for i in range(20)}


def write_colmap(folder, suffix, count=3, model=("OPENCV", 4), parameters=(10, 11, 6, 4, 0, 0, 0, 0)):
    folder.mkdir(parents=True)
    images = [(f"view{i + 1}.png", QUARTER, (-0.5 * i, 0.0, 0.0)) for i in range(count)]
    if suffix == ".txt":
        (folder / "cameras.txt").write_text(f"# cameras\n7 {model[0]} 12 8 {' '.join(map(str, parameters))}\n")
        seen = " ".join(f"1.5 2.5 {point}" for point in [*POINTS, -1])
        lines = [f"{i} {' '.join(map(str, q + t))} 7 {name}\n{seen}\n" for i, (name, q, t) in enumerate(images)]
        (folder / "images.txt").write_text("# images\n" + "".join(lines))
        points = [f"{i} {x} {y} {z} 1 2 3 0.5 1 1\n" for i, (x, y, z) in POINTS.items()]
        (folder / "points3D.txt").write_text("# points\n" + "".join(points))
        return
    cameras = struct.pack("<QiiQQ", 1, 7, model[1], 12, 8) + struct.pack(f"<{len(parameters)}d", *parameters)
    (folder / "cameras.bin").write_bytes(cameras)
    data = struct.pack("<Q", count)
    for i, (name, q, t) in enumerate(images):
        data += struct.pack("<i7di", i, *q, *t, 7) + name.encode() + b"\0" + struct.pack("<Q", len(POINTS) + 1)
        data += b"".join(struct.pack("<2dq", 1.5, 2.5, point) for point in [*POINTS, -1])
    (folder / "images.bin").write_bytes(data)
    points = b"".join(struct.pack("<Q3d3BdQ2i", i, *xyz, 1, 2, 3, 0.5, 1, 1, 1) for i, xyz in POINTS.items())
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", len(POINTS)) + points)


def expect_error(root, *words, **options):
    with pytest.raises(UserError) as caught:
        load_capture(root, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
