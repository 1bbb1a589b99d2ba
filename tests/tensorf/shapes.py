"""A small capture, ray-cast here: a ball, a block, a floor and a wall with patterns, in LLFF layout."""

import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np

_BALL, _RADIUS = np.array([-0.12, 0.45, 0.0]), 0.34
_BLOCK = np.array([[0.22, 0.0, -0.45], [0.62, 0.55, -0.1]])
_FLOOR, _WALL = 0.0, -1.3  # heights y and depths z
_LIGHT = np.array([0.4, 0.8, 0.45]) / np.linalg.norm([0.4, 0.8, 0.45])
_SHARP = 2  # rays for each pixel, along either axis


def write_shapes(folder: Path, *, views: int, width: int, height: int) -> None:
    """`images/*.png` and `poses_bounds.npy`: views from a disc in front of the shapes, all towards them."""
    (folder / "images").mkdir(parents=True)
    rows, focal = [], 1.2 * width
    for i in range(views):
        radius, angle = math.sqrt((i + 0.5) / views), i * math.pi * (3 - math.sqrt(5))
        yaw, pitch = 0.3 * radius * math.cos(angle), 0.2 + 0.14 * radius * math.sin(angle)
        target = np.array([0.0, 0.45, 0.0])
        away = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
        eye = target + (1.9 + 0.1 * math.sin(1.7 * i)) * away
        right = np.cross(-away, [0, 1, 0])
        right /= np.linalg.norm(right)
        down = np.cross(-away, right)
        image, depth = _photo(eye, np.stack([right, down, -away], 1), focal, width, height)
        iio.imwrite(folder / "images" / f"view{i:03d}.png", image)
        matrix = np.stack([down, right, away, eye, [height, width, focal]], 1)  # LLFF's axes: down, right, back
        rows.append(np.concatenate([matrix.ravel(), [0.95 * depth.min(), depth.max()]]))
    np.save(folder / "poses_bounds.npy", np.stack(rows))


def _photo(eye, rotation, focal, width, height):
    """(image (height, width, 3) uint8, depth along the optical axis of each ray)."""
    x, y = (np.arange(n * _SHARP) / _SHARP + 0.5 / _SHARP for n in (width, height))
    x, y = np.meshgrid((x - width / 2) / focal, (y - height / 2) / focal)
    direction = np.stack([x, y, np.ones_like(x)], -1) @ rotation.T  # of unit depth
    depth, color = np.full(x.shape, np.inf), np.zeros((*x.shape, 3))
    for hit in (_wall, _floor, _block, _ball):
        t, normal = hit(eye, direction)
        nearer = (t > 1e-6) & (t < depth)
        point = eye + np.where(nearer, t, 0.0)[..., None] * direction
        shaded = _pattern(hit, point) * (0.6 + 0.4 * np.clip(normal @ _LIGHT, 0, 1))[..., None]
        depth, color = np.where(nearer, t, depth), np.where(nearer[..., None], shaded, color)
    color = color.reshape(height, _SHARP, width, _SHARP, 3).mean((1, 3))
    return (255 * color.clip(0, 1)).round().astype(np.uint8), depth


def _pattern(hit, point):
    """(..., 3) colours in [0, 1] of points on the surface that `hit` is of."""
    x, y, z = np.moveaxis(point, -1, 0)
    share, dark, light = {
        _wall: (0.5 + 0.5 * np.sin(5 * x) * np.sin(4 * y), (0.7, 0.8, 0.95), (1.0, 1.0, 1.0)),
        _floor: ((np.floor(4 * x) + np.floor(4 * z)) % 2, (0.05, 0.08, 0.03), (0.3, 0.35, 0.15)),
        _block: (0.5 + 0.5 * np.sin(20 * y), (0.1, 0.35, 0.3), (0.3, 0.8, 0.7)),
        _ball: (0.5 + 0.5 * np.sin(14 * x + 9 * y), (0.7, 0.2, 0.1), (1.0, 0.8, 0.2)),
    }[hit]
    return np.array(dark) + share[..., None] * (np.array(light) - np.array(dark))


def _plane(eye, direction, axis, value):
    moves = np.where(np.abs(direction[..., axis]) > 1e-9, direction[..., axis], 1e-9)
    normal = np.zeros(direction.shape)
    normal[..., axis] = 1
    return (value - eye[axis]) / moves, normal


def _floor(eye, direction):
    return _plane(eye, direction, 1, _FLOOR)


def _wall(eye, direction):
    return _plane(eye, direction, 2, _WALL)


def _ball(eye, direction):
    a, b = (direction**2).sum(-1), direction @ (eye - _BALL)
    inside = b**2 - a * ((eye - _BALL) @ (eye - _BALL) - _RADIUS**2)
    t = np.where(inside > 0, (-b - np.sqrt(np.clip(inside, 0, None))) / a, np.inf)
    return t, (eye + np.where(np.isfinite(t), t, 0.0)[..., None] * direction - _BALL) / _RADIUS


def _block(eye, direction):
    moves = np.where(np.abs(direction) > 1e-9, direction, 1e-9)
    ends = np.sort((_BLOCK[:, None, None] - eye) / moves, axis=0)
    axis, enters, leaves = ends[0].argmax(-1), ends[0].max(-1), ends[1].min(-1)
    normal = -np.sign(np.take_along_axis(direction, axis[..., None], -1)) * np.eye(3)[axis]
    return np.where(enters < leaves, enters, np.inf), normal
