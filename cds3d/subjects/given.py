"""Regions of an edit that the user gives: a box, a ball around a click, or masks carved into space.

Each is (z, y, x) bool in the cells of a field's occupancy: the cells whose middles lie in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.local import cell_centers
from tensorf.occupancy import cell_index
from tensorf.renderable import FastView, LocallyEditable, Renderable

_SEEN = 0.5  # opacity from which a pixel shows a surface
_IN_VIEW = 0.3  # share of a region's cells that a camera has to have in its picture: less of it is a fragment
_LEAST = 0.1  # of a picture's width or height that a crop shows: less of it are a few blurred pixels
_RIM = 0.02  # share of the cells, at either side, that a crop need not hold: a few stray ones would make it wide


def in_box(field: LocallyEditable, low: Tensor, high: Tensor) -> Tensor:
    """Cells inside the box between two corners (3,) in world coordinates."""
    centers = _centers(field)
    inside = (centers >= low.to(centers)) & (centers <= high.to(centers))
    return inside.all(1).view(field.occupancy.shape)


def in_ball(field: LocallyEditable, middle: Tensor, radius: float) -> Tensor:
    """Cells inside a ball. middle: (3,) in world coordinates; radius in world units."""
    centers = _centers(field)
    return ((centers - middle.to(centers)).norm(dim=1) <= radius).view(field.occupancy.shape)


@torch.no_grad()
def point_at(field: Renderable, camera: Camera, u: float, v: float) -> Tensor | None:
    """(3,) the world point that a camera sees at pixel (column u, row v); None where it sees no surface."""
    column, row = min(int(u), camera.width - 1), min(int(v), camera.height - 1)
    pixel = replace(camera, cx=camera.cx - column, cy=camera.cy - row, width=1, height=1)
    rendered = field.render(pixel)
    if not float(rendered["opacity"][0, 0]) > _SEEN:
        return None
    return field.space.points(pixel, rendered["depth"].cpu())[0, 0]


@torch.no_grad()
def seen_share(field: Renderable, view: FastView, region: Tensor) -> Tensor:
    """(H, W) in [0, 1]: of what each pixel of a view of the field shows, the share that lies in the region."""
    x, weight, ray = view.surfaces(field)
    inside = region.reshape(-1)[cell_index(region.shape, x)]
    share = torch.zeros_like(view.full[..., 0])
    return share.flatten().index_add(0, ray, weight * inside).clamp(0, 1).view_as(share)


def zoomed(cameras: Sequence[Camera], field: LocallyEditable, region: Tensor, zoom: float) -> list[Camera]:
    """Cameras that see the region large, as a prior's pictures show their subjects; those that see none are left out.

    Each is a crop of the given camera at the same number of pixels: `zoom` times as large as what it sees of the
    region's occupied cells, but no larger than the whole picture.
    """
    points = _centers(field)[(region & field.occupancy).flatten()].cpu()
    crops = [_crop(camera, points, zoom) for camera in cameras]
    return [crop for crop in crops if crop is not None]


def sees(camera: Camera, field: LocallyEditable, region: Tensor) -> bool:
    """Whether a camera has enough of the region's occupied cells in its picture."""
    return _in_picture(camera, _centers(field)[(region & field.occupancy).flatten()].cpu()) is not None


def _in_picture(camera: Camera, points: Tensor) -> Tensor | None:
    """(2, n) columns and rows of the points (m, 3) that are in the picture; None where that are too few of them."""
    pixels, depth = camera.project(points)
    u, v = pixels[depth > 0].T
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    enough = inside.any() and inside.sum() >= _IN_VIEW * len(points)
    return torch.stack([u[inside], v[inside]]) if enough else None


def _crop(camera: Camera, points: Tensor, zoom: float) -> Camera | None:
    found = _in_picture(camera, points)
    if found is None:
        return None
    spans = found.quantile(torch.tensor([_RIM, 1 - _RIM]), dim=1).T
    size = torch.tensor([camera.width, camera.height])
    share = max(_LEAST, float(((spans[:, 1] - spans[:, 0]) / size).max()) * zoom)  # of the picture's width and height
    if share >= 1:
        return camera
    corner = (spans.mean(1) - share * size / 2).clamp(min=0).minimum((1 - share) * size)
    shifted = replace(camera, cx=camera.cx - float(corner[0]), cy=camera.cy - float(corner[1]))
    scale = {name: getattr(shifted, name) / share for name in ("fx", "fy", "cx", "cy")}
    return replace(shifted, **scale)


def _centers(field: LocallyEditable) -> Tensor:
    """(cells, 3) in world coordinates."""
    return field.space.world(cell_centers(field.occupancy.shape, field.device))
