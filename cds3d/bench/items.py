"""One image to edit, one that failed, and reading pictures: what the parts of the image benchmark share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tensorf.captures.pictures import read_picture


@dataclass(frozen=True)
class Item:
    """One image to edit. kind: the row of the table that it counts in. mask: see cds3d/bench/pie_bench.py."""

    name: str
    path: Path
    src: str
    tgt: str
    kind: str = "all"
    mask: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Failure:
    """An image that a method could not edit, or that could not be judged, and why in one line."""

    method: str
    name: str
    reason: str


def picture(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """(H, W, 3) in [0, 1], upright, transparency on white; resized to `size` (H, W) if it has another."""
    image = Image.fromarray(read_picture(path, white=True, upright=True))
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).float() / 255
