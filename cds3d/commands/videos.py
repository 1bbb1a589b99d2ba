"""Cameras and frames of a field's videos."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.scenes import naming_options
from tensorf.cameras import Camera, size_for_width
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.path_files import read_camera_path
from tensorf.paths import PATHS, camera_path
from tensorf.renderable import Renderable

log = logging.getLogger("cds3d")


def path_cameras(capture: Capture, frames: int, width: int) -> list[Camera]:
    """Cameras of a run's videos: a spiral in front of forward-facing captures, else an orbit; sizes are even."""
    return [even_sized(resized_to(c, width)) for c in cameras_along(capture, path_kind(capture, "auto"), frames)]


def path_kind(capture: Capture, kind: str) -> str:
    """What "auto" stands for."""
    return ("spiral" if capture.forward_facing else "orbit") if kind == "auto" else kind


def cameras_along(capture: Capture, kind: str, frames: int) -> list[Camera]:
    """Cameras of the capture's size along a path: one of `paths.PATHS`, or a JSON file of cameras in the capture's own
    coordinates, whose sizes and lenses are its own.
    """
    if kind.endswith(".json"):
        placed = capture.world_from_capture, capture.cameras[0], capture.root, capture.turns
        return read_camera_path(Path(kind), *placed)
    if kind == "spiral" and not capture.forward_facing and _look_all_around(capture):
        log.warning("path=spiral is for cameras that face one way, and these look all around: path=orbit follows them")
    focus = scene_depth(capture) if kind == "orbit" else _focus(capture)
    return camera_path(kind, capture.cameras, frames, focus=focus)


def check_path(kind: str, *others: str) -> None:
    """UserError for what `cameras_along` does not know, nor is one of `others`: before a capture is loaded."""
    if kind.endswith(".json"):
        if not Path(kind).is_file():
            raise UserError(f"path={kind}: there is no such file")
    elif kind not in (*others, *PATHS):
        raise UserError(f"path={kind} is unknown; use one of {', '.join((*others, *PATHS))}, or a JSON file of cameras")


def even_sized(camera: Camera) -> Camera:
    """The same view with an even width and height, as videos need."""
    return camera.resized(camera.width + camera.width % 2, camera.height + camera.height % 2)


def resized_to(camera: Camera, width: int) -> Camera:
    """`camera` at this width, aspect kept and never larger than it is."""
    if not isinstance(width, int) or width < 16:
        raise UserError(f"width={width} has to be a whole number of at least 16 pixels")
    return camera.resized(*size_for_width(camera.width, camera.height, min(width, camera.width)))


def _focus(capture: Capture) -> float:
    """Depth between the nearest and the farthest: LLFF's choice, the mean in disparity weighted to the near end."""
    return 1 / (0.25 / (capture.near * 0.9) + 0.75 / (capture.far * 5)) if capture.forward_facing else 1.0


def scene_depth(capture: Capture) -> float:
    """World units from the cameras at which the scene lies: the median of what photos show, if they were matched."""
    if capture.sightings is None:
        return 2 / (1 / capture.near + 1 / capture.far) if capture.forward_facing else 1.0
    views, points = capture.sightings
    poses = torch.stack([camera.pose for camera in capture.cameras])[views]
    return float(((points - poses[:, :, 3]) * poses[:, :, 2]).sum(1).median())


def _look_all_around(capture: Capture) -> bool:
    """Whether cameras look more than a right angle off their mean axis."""
    axes = torch.stack([camera.forward for camera in capture.cameras])
    return bool((axes @ axes.mean(0)).min() < 0)


def frames_of(field: Renderable, cameras: list[Camera], label: str) -> Iterator[Tensor]:
    """Colour frames (H, W, 3), rendered as they are asked for, with a progress bar."""
    with naming_options("scene", "space"):
        for camera in tqdm(cameras, desc=label, unit="frame"):
            yield field.render(camera)["color"].cpu()
