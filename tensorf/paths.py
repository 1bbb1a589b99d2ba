"""Camera paths for videos: spiral, orbit, and interpolation through a capture's own cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.errors import UserError

PATHS = ("spiral", "orbit", "interpolate")
_GAP = math.radians(75)  # the widest gap between an orbit's cameras that a full turn may cross
_NEARBY = 0.5  # radians
_LEVEL, _TURNED = 0.25, 0.004  # shares: how far right axes may leave a plane, how far they have to span it


def camera_path(kind: str, cameras: Sequence[Camera], frames: int, *, focus: float = 4.0) -> list[Camera]:
    """`frames` cameras with the intrinsics of the camera whose focal length is the median.

    cameras: of the capture, in the order that they were taken. focus: depth that a spiral keeps looking at.
    """
    if kind not in PATHS:
        raise UserError(f"path={kind} is unknown; use one of {', '.join(PATHS)}")
    if frames < 1:
        raise UserError(f"frames={frames}: at least 1 is needed")
    poses = torch.stack([c.pose for c in cameras])
    if kind == "spiral":
        path = _spiral(poses, frames, focus)
    elif kind == "orbit":
        path = _orbit(poses, frames)
    else:
        path = _interpolated(poses, frames)
    usual = sorted(cameras, key=lambda camera: camera.fx)[len(cameras) // 2]
    return [usual.with_pose(pose) for pose in path]


def look_at(eye: Tensor, target: Tensor, down: Tensor) -> Tensor:
    """(3, 4) pose at `eye` (3,) looking at `target` (3,), the image's down axis as near to `down` as can be."""
    forward = F.normalize(target - eye, dim=0)
    right = F.normalize(torch.linalg.cross(down, forward), dim=0)
    return torch.stack([right, torch.linalg.cross(forward, right), forward, eye], 1)


def mean_pose(poses: Tensor) -> Tensor:
    """(n, 3, 4) -> (3, 4): mean position, mean optical axis and mean down.

    Where the axes cancel out (cameras all around), the first camera's rotation.
    """
    eye, forward, down = poses[:, :, 3].mean(0), poses[:, :, 2].mean(0), poses[:, :, 1].mean(0)
    if forward.norm() < 1e-3 or torch.linalg.cross(down, forward).norm() < 1e-3 * forward.norm():
        return torch.cat([poses[0, :, :3], eye[:, None]], 1)
    return look_at(eye, eye + forward, down)


def upward(poses: Tensor) -> Tensor:
    """(3,) the unit vector that points up in the world, from cameras (n, 3, 4).

    Photos are held level, so their right axes lie in the horizontal plane: up is the direction most nearly
    perpendicular to all of them. The mean of the cameras' own up axes would tilt where they look down from one side. It
    is taken where the right axes span no plane: photos on their side, or cameras that all face the same way.
    """
    mean, right = F.normalize(-poses[:, :, 1].mean(0), dim=0), poses[:, :, 0]
    values, vectors = torch.linalg.eigh((right[:, :, None] * right[:, None]).mean(0).double())
    normal = vectors[:, 0].to(mean)
    if values[0] > _LEVEL * values[1] or values[1] < _TURNED:
        return mean
    return normal if normal @ mean >= 0 else -normal


def _spiral(poses: Tensor, frames: int, focus: float) -> list[Tensor]:
    """Two turns around the mean camera, all looking at one point (LLFF, Mildenhall et al. 2019)."""
    center = mean_pose(poses)
    local = (poses[:, :, 3] - center[:, 3]) @ center[:, :3]
    # Well inside the capture: at its rim, views reach past what any photo shows.
    radii = 0.6 * local.abs().quantile(0.8, dim=0)
    target = center[:, 3] + focus * center[:, 2]
    path = []
    for i in range(frames):
        angle = 4 * math.pi * i / frames
        offset = torch.tensor([math.cos(angle), -math.sin(angle), -math.sin(angle / 2)], dtype=torch.float32) * radii
        path.append(look_at(center[:, 3] + center[:, :3] @ offset, target, center[:, 1]))
    return path


def _orbit(poses: Tensor, frames: int) -> list[Tensor]:
    """Around the point that the cameras look at, at the distance and height of the cameras nearby, and looking where
    these look.

    One full turn, if cameras stand all around. If they leave a wide gap, the path swings to and fro on the other side:
    nothing was photographed from the gap.
    """
    center, up = nearest_point(poses), upward(poses)
    offsets = poses[:, :, 3] - center
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    radii = flat.norm(dim=1)
    first = F.normalize(flat[0], dim=0)
    second = torch.linalg.cross(up, first)
    angles = torch.atan2(flat @ second, flat @ first)
    begin, width = _covered_arc(angles)
    axes = poses[:, :, 2]
    # Of each axis the point nearest the center, as far as that lies ahead: some cameras look outwards.
    ahead = -(offsets * axes).sum(1, keepdim=True)
    aims = poses[:, :, 3] + ahead.clamp(min=0.5 * offsets.norm(dim=1).mean()) * axes
    path = []
    for i in range(frames):
        if width is None:
            angle = begin + 2 * math.pi * i / frames
        else:
            angle = begin + width * (1 - math.cos(2 * math.pi * i / frames)) / 2
        near = torch.exp((torch.cos(angles - angle) - 1) / _NEARBY**2)  # of cameras, by their angle
        near = near / near.sum().clamp(min=1e-20)
        height, radius = (near * heights).sum(), (near * radii).sum()
        eye = center + height * up + radius * (math.cos(angle) * first + math.sin(angle) * second)
        path.append(look_at(eye, (near[:, None] * aims).sum(0), -up))
    return path


def _covered_arc(angles: Tensor) -> tuple[float, float | None]:
    """(begin, width) in radians of the arc outside the widest gap between `angles` (n,); no width if none is wide."""
    ordered = angles.sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    if gaps[widest] < _GAP:
        return float(angles[0]), None
    return float(ordered[(widest + 1) % len(ordered)]), float(2 * math.pi - gaps[widest])


def nearest_point(poses: Tensor) -> Tensor:
    """(3,) the point closest to all optical axes, in least squares."""
    axes = F.normalize(poses[:, :, 2], dim=1)
    across = torch.eye(3, dtype=torch.float32) - axes[:, :, None] * axes[:, None]
    return torch.linalg.lstsq(across.sum(0), (across @ poses[:, :, 3:]).sum(0)).solution[:, 0]


def keyframed(poses: Tensor, frames: int) -> list[Tensor]:
    """`frames` poses (3, 4) from the first of `poses` (n, 3, 4) to the last, n of at least 2, through all of them.

    Positions lie on a Catmull-Rom curve, and rotations turn evenly in between.
    """
    n = len(poses)
    path = []
    for i in range(frames):
        position = i / max(1, frames - 1) * (n - 1)
        k = min(int(position), n - 2)
        s = position - k
        a, b, c, d = (poses[min(max(j, 0), n - 1), :, 3] for j in (k - 1, k, k + 1, k + 2))
        curve = b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a)))
        rotation = _turned(poses[k, :, :3], poses[min(k + 1, n - 1), :, :3], s)
        path.append(torch.cat([rotation, curve[:, None]], 1))
    return path


def _interpolated(poses: Tensor, frames: int) -> list[Tensor]:
    """Through all cameras in their order: positions on straight lines, and rotations turn evenly in between.

    From the last it goes to the first, if these are about as near as neighbours are; else back the same way, since a
    straight line might lead through what was photographed.
    """
    n = len(poses)
    steps = (poses.roll(-1, 0) - poses)[:, :, 3].norm(dim=1)
    closed = bool(steps[-1] <= 2 * steps[:-1].max()) if n > 1 else True
    path = []
    for i in range(frames):
        share = i / frames
        position = share * n if closed else (1 - abs(1 - 2 * share)) * (n - 1)
        k, s = int(position), position - int(position)
        here, there = poses[k % n], poses[(k + 1) % n]
        position = here[:, 3].lerp(there[:, 3], s)
        path.append(torch.cat([_turned(here[:, :3], there[:, :3], s), position[:, None]], 1))
    return path


def _turned(start: Tensor, end: Tensor, share: float) -> Tensor:
    """(3, 3) the rotation that lies `share` of the shortest way from `start` to `end`, both (3, 3)."""
    turn = (start.T @ end).double()
    axis = torch.linalg.svd(turn - torch.eye(3, dtype=torch.float64))[2][2]  # which the turn leaves alone
    x, y, z = axis
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sine = (cross * turn).sum() / 2
    angle = torch.atan2(sine, (turn.trace() - 1) / 2)
    return start @ torch.matrix_exp(share * angle * cross).to(start)
