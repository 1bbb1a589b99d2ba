"""Helpers that the builders of flowers, animals and objects share: rotations, frames and limbs."""

from __future__ import annotations

import numpy as np

from cds3d.pocket.world.raycast import F32, Solid

UP = np.array([0, 1, 0], F32)


def rotation(axis: int, angle: float) -> np.ndarray:
    """(3, 3) right-handed rotation about x (0), y (1) or z (2), radians."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3, dtype=F32)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def frame_along(y, x_hint=(0, 0, 1)) -> np.ndarray:
    """(3, 3) columns x, y, z: a right-handed frame whose y axis is along `y`, x as close to `x_hint` as can be."""
    y = np.asarray(y, F32) / np.linalg.norm(y)
    x = np.asarray(x_hint, F32)
    if abs(x @ y) > 0.95 * np.linalg.norm(x):
        x = np.array([1, 0, 0], F32)
    z = np.cross(x, y)
    z /= np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z], 1)


def ellipsoid(center, radii, color, axes=None, **look) -> Solid:
    """`radii`: a number or three; `axes`: (3, 3) columns, default the world's."""
    radii = np.broadcast_to(np.asarray(radii, F32), 3)
    axes = np.eye(3, dtype=F32) if axes is None else np.asarray(axes, F32)
    return Solid("ellipsoid", np.asarray(center, F32), axes, radii, np.asarray(color, F32), **look)


def cone(center, radii, color, axes, **look) -> Solid:
    """`radii`: base radius along x, height along y, base radius along z."""
    shape = np.asarray(radii, F32)
    return Solid("cone", np.asarray(center, F32), np.asarray(axes, F32), shape, np.asarray(color, F32), **look)


def box(center, radii, color, axes, **look) -> Solid:
    """`radii`: half the sides along the axes."""
    shape = np.asarray(radii, F32)
    return Solid("box", np.asarray(center, F32), np.asarray(axes, F32), shape, np.asarray(color, F32), **look)


def cylinder(center, radii, color, axes, **look) -> Solid:
    """A closed cylinder around its y axis; `radii`: along x, half its height, along z."""
    shape = np.asarray(radii, F32)
    return Solid("cylinder", np.asarray(center, F32), np.asarray(axes, F32), shape, np.asarray(color, F32), **look)


def limb(start, end, radius: float, color, **look) -> Solid:
    """An ellipsoid stretched from `start` to `end`, a little beyond both so that neighbours overlap."""
    start, end = np.asarray(start, F32), np.asarray(end, F32)
    half = np.linalg.norm(end - start) / 2 + radius * 0.6
    return ellipsoid((start + end) / 2, (radius, half, radius), color, frame_along(end - start), **look)
