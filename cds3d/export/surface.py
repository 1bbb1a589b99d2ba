"""Points on the surfaces that views of a field show."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.captures.writing import Points, capture_points
from tensorf.errors import UserError
from tensorf.renderable import Renderable

_OPAQUE = 0.5  # opacity from which a pixel shows a surface


def surface_points(
    field: Renderable,
    capture: Capture,
    cameras: list[Camera],
    views: list[dict[str, Tensor]],
    count: int,
) -> tuple[Points, np.ndarray]:
    """(about `count` points drawn evenly from all opaque pixels, half the width (n,) of each one's pixel out there).

    views: what `Renderable.render` gives for each camera. UserError where nothing is opaque.
    """
    generator = torch.Generator().manual_seed(0)
    masks = [(view["opacity"] > _OPAQUE) & torch.isfinite(view["depth"]) for view in views]
    opaque = sum(int(mask.sum()) for mask in masks)
    if opaque == 0:
        raise UserError("the field shows no surface: there are no points to export")
    parts = []
    for i, (camera, view, mask) in enumerate(zip(cameras, views, masks, strict=True)):
        chosen = mask & (torch.rand(mask.shape, generator=generator) < count / opaque)
        rows, columns = chosen.nonzero(as_tuple=True)
        world = field.space.points(camera, view["depth"].cpu())[rows, columns]
        size = (world - camera.position).norm(dim=1) / camera.fx / 2
        pixels = torch.stack([columns, rows], 1).double() + 0.5
        color = (view["color"][rows, columns].clamp(0, 1) * 255 + 0.5).byte()
        parts.append((world, color, torch.full((len(rows),), i), pixels, size))
    world, color, view, pixels, size = (torch.cat(column) for column in zip(*parts, strict=True))
    scale = float(capture.world_from_capture[:3, 0].norm())
    points = Points(capture_points(world, capture), color.numpy(), view.numpy(), pixels.numpy())
    return points, size.double().numpy() / scale
