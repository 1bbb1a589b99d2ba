"""Camera paths for videos: spiral, orbit, and interpolation through a capture's own cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.captures.geometry import astray, focus_point
from tensorf.errors import UserError

PATHS = ("spiral", "orbit", "interpolate")
_GAP = math.radians(75)  # the widest gap between an orbit's cameras that a full turn may cross
_NEARBY = 0.5  # radians
_LEVEL, _TURNED = 0.25, 0.004  # shares: how far right axes may leave a plane, how far they have to span it
_SAME = 1e-6  # of a path's length: cameras that are nearer to each other are one


def camera_path(kind: str, cameras: Sequence[Camera], frames: int, *, focus: float = 4.0) -> list[Camera]:
    """`frames` cameras with the intrinsics of the camera whose focal length is the median.

    cameras: of the capture, in the order that they were taken; those that stand astray are left out. focus: depth that
    a spiral keeps looking at, and an orbit of cameras that all face the same way.
    """
    if kind not in PATHS:
        raise UserError(f"path={kind} is unknown; use one of {', '.join(PATHS)}")
    if frames < 1:
        raise UserError(f"frames={frames}: at least 1 is needed")
    poses = not_astray(torch.stack([c.pose for c in cameras]), focus)
    if kind == "spiral":
        path = _spiral(poses, frames, focus)
    elif kind == "orbit":
        path = _orbit(poses, frames, focus)
    else:
        path = _interpolated(poses, frames)
    usual = sorted(cameras, key=lambda camera: camera.fx)[len(cameras) // 2]
    return [usual.with_pose(pose) for pose in path]


def not_astray(poses: Tensor, depth: float) -> Tensor:
    """The poses (n, 3, 4) without those whose positions must be wrong (`geometry.astray`). depth: of the scene."""
    return poses[torch.from_numpy(~astray(poses[:, :, 3].double().numpy(), depth))]


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


def _orbit(poses: Tensor, frames: int, focus: float) -> list[Tensor]:
    """Around the point that the cameras look at, at the distance and height of the cameras nearby, and looking where
    these look.

    One full turn, if cameras stand all around. If they leave a wide gap, the path swings to and fro on the other side:
    nothing was photographed from the gap.
    """
    center, up = nearest_point(poses, focus), upward(poses)
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


def nearest_point(poses: Tensor, depth: float) -> Tensor:
    """(3,) the point closest to all optical axes of cameras (n, 3, 4), in least squares.

    Nearly parallel axes have none: then the point at `depth` ahead of the mean camera (`geometry.focus_point`).
    """
    exact = poses.double().numpy()
    axes = exact[:, :, 2] / np.linalg.norm(exact[:, :, 2], axis=1, keepdims=True)
    return torch.from_numpy(focus_point(exact, axes, (depth, depth))).float()


def keyframed(poses: Tensor, frames: int) -> list[Tensor]:
    """`frames` poses (3, 4) from the first of `poses` (n, 3, 4) to the last, n of at least 2, through all of them.

    It takes as long from each to the next.
    """
    times = torch.arange(len(poses), dtype=torch.float64)
    return [_between(poses, times, i / max(1, frames - 1) * (len(poses) - 1)) for i in range(frames)]


def _interpolated(poses: Tensor, frames: int) -> list[Tensor]:
    """Through all cameras in their order, at an even pace: time is what is travelled and turned on the way.

    From the last it goes to the first, if these are about as near as neighbours are; else back the same way, since a
    straight line might lead through what was photographed.
    """
    steps = (poses.roll(-1, 0) - poses)[:, :, 3].norm(dim=1)
    closed = len(poses) > 1 and bool(steps[-1] <= 2 * steps[:-1].max())
    poses, times = _paced(torch.cat([poses, poses[:1]]) if closed else poses)
    if len(poses) == 1:
        return [poses[0]] * frames
    whole = float(times[-1])
    if closed:  # a camera more at each end, for the curve to go on as smoothly
        poses = torch.cat([poses[-2:-1], poses, poses[1:2]])
        times = torch.cat([times[-2:-1] - whole, times, times[1:2] + whole])
    shares = [i / frames if closed else 1 - abs(1 - 2 * i / frames) for i in range(frames)]
    return [_between(poses, times, share * whole) for share in shares]


def _paced(poses: Tensor) -> tuple[Tensor, Tensor]:
    """(the poses without those that repeat the one before, the times (n,) at which a path at an even pace is there).

    What counts is the distance, in units of the cameras' mean distance from their middle, and the turn in radians.
    """
    positions, rotations = poses[:, :, 3].double(), poses[:, :, :3].double()
    spread = (positions - positions.mean(0)).norm(dim=1).mean().clamp(min=1e-12)
    sines = (rotations[1:] - rotations[:-1]).norm(dim=(1, 2)) / math.sqrt(8)  # of half the turns; 0 for the same
    hops = (positions[1:] - positions[:-1]).norm(dim=1) / spread + 2 * torch.asin(sines.clamp(max=1))
    new = torch.cat([torch.ones(1, dtype=torch.bool), hops > _SAME * hops.sum()])
    return poses[new], torch.cat([torch.zeros(1, dtype=torch.float64), hops[new[1:]].cumsum(0)])


def _between(poses: Tensor, times: Tensor, moment: float) -> Tensor:
    """(3, 4) the pose at a moment on the path that is at `poses` (n, 3, 4), n of at least 2, at `times` (n,).

    Positions lie on a cubic Hermite curve: its velocity at a pose is that of the parabola through it and its two
    neighbours, and half of the way's to the only neighbour at the ends. With even times that is Catmull and Rom's.
    Rotations turn evenly in between.
    """
    k = int((times[1:-1] <= moment).sum())
    span = float(times[k + 1] - times[k])
    s = (moment - float(times[k])) / span
    b, c = poses[k, :, 3], poses[k + 1, :, 3]
    out, into = (span * _velocity(poses[:, :, 3], times, j) for j in (k, k + 1))
    place = b + s * (out + s * (3 * (c - b) - 2 * out - into + s * (2 * (b - c) + out + into)))
    return torch.cat([_turned(poses[k, :, :3], poses[k + 1, :, :3], s), place[:, None]], 1)


def _velocity(places: Tensor, times: Tensor, j: int) -> Tensor:
    """(3,) of the curve of `_between` where it is at place j of (n, 3)."""
    ways = [(places[i + 1] - places[i], float(times[i + 1] - times[i])) for i in (j - 1, j) if 0 <= i < len(places) - 1]
    if len(ways) == 1:
        return ways[0][0] / ways[0][1] / 2
    (before, since), (after, until) = ways
    return (before / since * until + after / until * since) / (since + until)


def _turned(start: Tensor, end: Tensor, share: float) -> Tensor:
    """(3, 3) the rotation that lies `share` of the shortest way from `start` to `end`, both (3, 3)."""
    turn = (start.T @ end).double()
    axis = torch.linalg.svd(turn - torch.eye(3, dtype=torch.float64))[2][2]  # which the turn leaves alone
    x, y, z = axis
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sine = (cross * turn).sum() / 2
    angle = torch.atan2(sine, (turn.trace() - 1) / 2)
    return start @ torch.matrix_exp(share * angle * cross).to(start)
