"""Cameras and frames of a field's videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from cds3d.commands.scenes import naming_options
from tensorf.cameras import Camera, size_for_width
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.path_files import read_camera_path
from tensorf.paths import camera_path
from tensorf.renderable import Renderable


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
    return camera_path(kind, capture.cameras, frames, focus=_focus(capture))


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


def frames_of(field: Renderable, cameras: list[Camera], label: str) -> Iterator[Tensor]:
    """Colour frames (H, W, 3), rendered as they are asked for, with a progress bar."""
    with naming_options("scene", "space"):
        for camera in tqdm(cameras, desc=label, unit="frame"):
            yield field.render(camera)["color"].cpu()
