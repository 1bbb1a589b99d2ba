"""`cds3d export RUN dataset`: rendered views with their poses, for nerfstudio, gsplat and other trainers.

    images/*.png        the capture's views of the field, and those of a path
    transforms.json     nerfstudio's format, with the capture's split
    sparse/0/*.bin      the same as a COLMAP model
    points.ply          points of the surfaces

All in the capture's own coordinates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from cds3d.pictures import write_image
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.captures.writing import Points, capture_poses, write_colmap, write_ply, write_transforms


def write_dataset(
    folder: Path,
    capture: Capture,
    names: list[str],
    cameras: list[Camera],
    views: list[dict[str, Tensor]],
    held_out: set[str],
    points: Points,
) -> None:
    """names: stems of the pictures, those in `held_out` to test on; views: what `Renderable.render` gives."""
    for name, view in zip(names, views, strict=True):
        write_image(folder / "images" / f"{name}.png", view["color"])
    files = [f"{name}.png" for name in names]
    poses = capture_poses(cameras, capture)
    write_points(folder / "points.ply", points)
    write_colmap(folder / "sparse" / "0", files, cameras, poses, points)
    held = {f"images/{name}.png" for name in held_out}
    write_transforms(folder / "transforms.json", [f"images/{f}" for f in files], cameras, poses, held, "points.ply")


def write_points(path: Path, points: Points) -> None:
    """A PLY of coloured points."""
    xyz = dict(zip("xyz", points.positions.astype(np.float32).T, strict=True))
    rgb = dict(zip(("red", "green", "blue"), points.colors.T, strict=True))
    write_ply(path, xyz | rgb)
