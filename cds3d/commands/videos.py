"""Frames, pictures and videos of fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio.v2
import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.scenes import naming_options
from tensorf.cameras import Camera, size_for_width
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.files import atomic
from tensorf.path_files import read_camera_path
from tensorf.paths import camera_path
from tensorf.renderable import Renderable


def to_uint8(image: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> uint8, rounded."""
    return (image.detach().cpu().clamp(0, 1) * 255 + 0.5).byte().numpy()


def write_image(path: Path, image: Tensor) -> None:
    with atomic(path) as partial:
        iio.imwrite(partial, to_uint8(image))


def write_video(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    """H.264 in mp4, atomically; odd sizes, which the format has not, get a repeated last row or column.

    Frames are encoded one by one: those of a generator are never in memory together.
    """
    options = {"fps": fps, "codec": "libx264", "macro_block_size": 1, "output_params": ["-crf", "17"]}
    with atomic(path) as partial, imageio.v2.get_writer(partial, format="FFMPEG", mode="I", **options) as file:
        for frame in frames:
            height, width, _ = frame.shape
            file.append_data(np.pad(to_uint8(frame), [(0, height % 2), (0, width % 2), (0, 0)], "edge"))


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
        return read_camera_path(Path(kind), capture.world_from_capture, capture.cameras[0], capture.root)
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


def colored_depth(depth: Tensor, low: float, high: float) -> Tensor:
    """(H, W) depth -> (H, W, 3) grey levels in [0, 1], near white, linear in disparity between the two depths."""
    inverse = 1 / depth.clamp(min=1e-6)
    near, far = 1 / max(low, 1e-6), 1 / max(high, 1e-6)
    grey = ((inverse - far) / max(near - far, 1e-9)).clamp(0, 1)
    return grey[..., None].expand(*grey.shape, 3)


def seen_depth(rendered: dict[str, Tensor]) -> Tensor:
    """(H, W) depth of what `Renderable.render` gives, on the CPU; infinite where nothing opaque is seen."""
    return rendered["depth"].masked_fill(rendered["opacity"] < 0.5, torch.inf).cpu()


def depth_range(depths: list[Tensor]) -> tuple[float, float]:
    """(low, high) between which nearly all finite pixels of these depth maps lie: what `colored_depth` is to show."""
    every = torch.cat([d.flatten() for d in depths])
    every = every[every.isfinite()]
    if len(every) == 0:
        return 1.0, 2.0
    every = every[:: max(1, len(every) // 1_000_000)]  # quantile() takes no more than 16 million
    low, high = every.quantile(torch.tensor([0.01, 0.99])).tolist()
    return low, max(high, low * 1.001)


def side_by_side(*pictures: Tensor) -> Tensor:
    """(H, W, 3) each, from left to right."""
    return torch.cat(pictures, 1)
