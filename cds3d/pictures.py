"""Pictures and videos as files, and depths as pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import imageio.v2
import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from tensorf.files import atomic


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
    with atomic(path) as partial:
        partial.touch()  # ffmpeg would not tell that the disk has no room for one more file
        with imageio.v2.get_writer(partial, format="FFMPEG", mode="I", **options) as file:
            for frame in frames:
                height, width, _ = frame.shape
                file.append_data(np.pad(to_uint8(frame), [(0, height % 2), (0, width % 2), (0, 0)], "edge"))


def side_by_side(*pictures: Tensor) -> Tensor:
    """(H, W, 3) each, from left to right."""
    return torch.cat(pictures, 1)


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
