"""View consistency: what two cameras see of the same surface should look the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.metrics.psnr import psnr
from tensorf.cameras import Camera
from tensorf.space import Space

_SOLID = 0.5  # opacity from which on a pixel shows a surface: two views of nothing would agree
_SAME_DEPTH = 0.03  # relative: a point nearer or farther than what the other camera sees is hidden from it


def view_consistency(space: Space, cameras: list[Camera], views: list[dict[str, Tensor]]) -> float:
    """Mean PSNR in dB between each view and the next one warped onto it by depth, where both see the same surface.

    views: what `Renderable.render` gives for `cameras`, one each. One view, or none that overlap, gives nan.
    """
    values = []
    for (camera, view), (other, seen) in zip(zip(cameras, views), zip(cameras[1:], views[1:])):
        points = space.points(camera, view["depth"])
        place, depth = project(space, other, points)
        inside = (place.abs() < 1).all(-1) & (depth > 0)
        there = sampled(seen["depth"][..., None], place)[..., 0]
        solid = (view["opacity"] > _SOLID) & (sampled(seen["opacity"][..., None], place)[..., 0] > _SOLID)
        same = inside & solid & ((there - depth).abs() < _SAME_DEPTH * depth)
        if same.any():
            values.append(psnr(view["color"], sampled(seen["color"], place), same))
    return sum(values) / len(values) if values else float("nan")


def sampled(image: Tensor, place: Tensor) -> Tensor:
    """(H, W, C) at places (h, w, 2) in [-1, 1], bilinear -> (h, w, C)."""
    channels = image.permute(2, 0, 1)[None]
    found = F.grid_sample(channels, place[None], padding_mode="border", align_corners=False)
    return found[0].permute(1, 2, 0)


def project(space: Space, camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (H, W, 3) -> (places on the image (H, W, 2) in [-1, 1], depths (H, W) as `Space.depth` counts them)."""
    pixels, ahead = camera.project(points)
    place = pixels / pixels.new_tensor([camera.width, camera.height]) * 2 - 1
    return torch.where(ahead[..., None] > 0, place, torch.full_like(place, 2.0)), space.depth_of(camera, points)
