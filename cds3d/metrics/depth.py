"""Depth error of a field against the procedural world's true depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.space import Space


def true_depth(capture: Capture, space: Space, camera: Camera, depth: np.ndarray) -> Tensor:
    """Depth (H, W) along the optical axis in the capture's own units, as `Space.depth` counts it in the field's world.

    camera: of the field's world, with the size of `depth`. Where depth is infinite, so is the result.
    """
    scale = torch.linalg.det(capture.world_from_capture[:3, :3]).abs() ** (1 / 3)
    along_axis = torch.from_numpy(depth).float() * scale
    origins, directions = camera.pixel_rays()  # directions have unit depth along the optical axis
    finite = torch.isfinite(along_axis)
    steps = torch.where(finite, along_axis, torch.ones_like(along_axis)).view(-1, 1)
    points = (origins + steps * directions).view(*depth.shape, 3)
    return torch.where(finite, space.depth_of(camera, points), torch.inf)


def depth_error(depth: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean of |depth - truth| / truth over mask (H, W) bool, infinite truths left out; no pixel gives nan."""
    mask = mask & torch.isfinite(truth)
    return ((depth - truth).abs() / truth)[mask].mean().item() if mask.any() else float("nan")
