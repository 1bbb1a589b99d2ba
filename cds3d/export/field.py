"""A field, rendered and written for other programs. `cds3d export` does this for a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cds3d.export.dataset import write_dataset, write_points
from cds3d.export.splats import write_splats
from cds3d.export.surface import surface_points
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.files import atomic_folder
from tensorf.renderable import Renderable

log = logging.getLogger("cds3d")

FORMATS = ("dataset", "splats", "points")
_COARSE = 0.5  # of a pixel's width: a coarser lattice shows in points


def export_field(field: Renderable, capture: Capture, format: str, output: Path | str, points: int = 50_000) -> Path:
    """Write a field of this capture from all views that are trained or tested on, and return `output`.

    format: "dataset" (output: a folder of pictures, poses and points), "splats" or "points" (output: a .ply file), as
    docs/export.md describes them. points: about how many surface points are written. All is in the capture's own
    coordinates.

    UserError where `output` exists, or the field shows no surface. ValueError for another format.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: use dataset, splats or points")
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists: give another output")
    write_export(field, capture, format, output, *own_views(capture), points)
    return output


def own_views(capture: Capture) -> tuple[list[str], list[Camera]]:
    """Names and cameras of the views that are trained or tested on; names are the photos' unless two are the same."""
    used, names = sorted([*capture.train, *capture.test]), [Path(name).stem for name in capture.image_names]
    if len(set(names)) < len(names):  # two folders of photos with the same names
        names = [f"{i:04d}" for i in range(len(names))]
    return [names[i] for i in used], [capture.cameras[i] for i in used]


@torch.no_grad()
def write_export(
    field: Renderable,
    capture: Capture,
    format: str,
    output: Path,
    names: list[str],
    cameras: list[Camera],
    points: int,
) -> int:
    """Write a field as seen by these cameras, the first of which are `own_views`; returns the number of points.

    format, points: as `export_field`'s. output: is replaced. UserError where the field shows no surface.
    """
    views = [{k: v.cpu() for k, v in field.render(c).items()} for c in tqdm(cameras, desc="views", unit="view")]
    found, half_widths = surface_points(field, capture, cameras, views, points)
    _warn_of_lattice(output / "points.ply" if format == "dataset" else output, found.positions, half_widths)
    if format == "dataset":
        used = sorted([*capture.train, *capture.test])
        held_out = {names[used.index(i)] for i in capture.test}
        with atomic_folder(output) as begun:
            write_dataset(begun, capture, names, cameras, views, held_out, found)
    elif format == "splats":
        write_splats(output, found, half_widths)
    else:
        write_points(output, found)
    return len(found)


def _warn_of_lattice(file: Path, positions: np.ndarray, half_widths: np.ndarray) -> None:
    """PLY files keep float32, which moves points (n, 3) far from the origin. half_widths (n,): of pixels out there."""
    farthest, width = np.abs(positions).max(), 2 * float(np.median(half_widths))
    lattice = float(np.spacing(np.float32(farthest)))
    if lattice > _COARSE * width:
        log.warning(
            "%s: points lie %.3g from the origin, where its float32 coordinates are %.3g apart, %.3g times the width "
            "of a pixel out there: surfaces become steps. transforms.json and sparse/0/points3D.bin of a dataset are "
            "exact; or move the capture's origin to the scene, and train again",
            file, farthest, lattice, lattice / width,
        )  # fmt: skip
