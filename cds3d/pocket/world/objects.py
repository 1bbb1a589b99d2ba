"""Household objects of the procedural world: mugs, teapots, balls and chairs, of plastic, wood or metal."""

from __future__ import annotations

import numpy as np

from cds3d.pocket.world.modelling import UP, box, cylinder, ellipsoid, limb, rotation
from cds3d.pocket.world.raycast import F32, Solid

_DARK = np.array([0.10, 0.08, 0.07], F32)
_WOOD = np.array([0.62, 0.40, 0.20], F32)
_METAL = np.array([0.66, 0.68, 0.72], F32)


def build(species: str, material: str, color, base: np.ndarray, size: float, draw) -> tuple[list[Solid], np.ndarray]:
    """Solids of one object that stands at `base` (3,), and the point that a camera should look at."""
    tone = F32(draw("object tone", 0.9, 1.08))
    look = dict(offset=draw("object grain"))
    if material == "wooden":
        paint, look = _WOOD * tone, dict(look, pattern="wood", grain=0.05, gloss=0.04)
    elif material == "metal":
        paint, look = _METAL * tone, dict(look, grain=0.03, gloss=0.75)
    else:
        paint, look = np.array(color, F32) * tone, dict(look, grain=0.04, gloss=0.12)
    yaw = draw("object yaw", -0.6, 0.6)
    make = {"mug": _mug, "teapot": _teapot, "ball": _ball, "chair": _chair}[species]
    solids, height = make(base, rotation(1, yaw), size, paint, look, draw, plain=material == "plastic")
    return solids, base * F32(0.8) + UP * (0.5 * height)


def _mug(base, turn, size, paint, look, draw, plain):
    height, radius = 0.52 * size * draw("object height", 0.9, 1.1), 0.24 * size * draw("object width", 0.9, 1.1)
    center = base + UP * (height / 2)
    solids = [
        cylinder(center, (radius, height / 2, radius), paint, turn, part="body", **look),
        cylinder(base + UP * height, (radius * 0.86, 0.004, radius * 0.86), _DARK * 2.2, turn, part="inside"),
    ]
    # The handle: a half ring of limbs to one side; yaw is small enough that it stays in sight.
    side = turn @ np.array([1, 0, 0], F32)
    angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 8)
    points = [
        center + side * (radius * 0.92 + 0.58 * radius * np.cos(a)) + UP * (0.33 * height * np.sin(a)) for a in angles
    ]
    solids += [limb(a, b, 0.045 * size, paint, part="handle", **look) for a, b in zip(points, points[1:])]
    return solids, height


def _teapot(base, turn, size, paint, look, draw, plain):
    height, radius = 0.42 * size * draw("object height", 0.9, 1.1), 0.31 * size * draw("object width", 0.9, 1.1)
    center = base + UP * (height / 2)
    side = turn @ np.array([1, 0, 0], F32)
    spout = [
        center + side * radius * 0.85 - UP * 0.05 * height,
        center + side * radius * 1.35 + UP * 0.22 * height,
        center + side * radius * 1.75 + UP * 0.52 * height,
    ]
    angles = np.linspace(0.4 * np.pi, -0.4 * np.pi, 8)
    grip = [
        center - side * radius * (0.9 + 0.6 * np.cos(a)) + UP * (0.42 * height * np.sin(a) + 0.06 * height)
        for a in angles
    ]
    top = base + UP * height
    solids = [
        ellipsoid(center, (radius, height / 2, radius), paint, turn, part="body", **look),
        cylinder(base + UP * 0.012, (radius * 0.55, 0.012, radius * 0.55), paint * 0.9, turn, part="body", **look),
        ellipsoid(top - UP * 0.02, (radius * 0.5, 0.08 * height, radius * 0.5), paint * 0.86, part="lid", **look),
        ellipsoid(top + UP * 0.08 * height, 0.055 * size, paint * 0.86, part="lid", **look),
        limb(spout[0], spout[1], 0.075 * size, paint, part="spout", **look),
        limb(spout[1], spout[2], 0.052 * size, paint, part="spout", **look),
    ]
    solids += [limb(a, b, 0.042 * size, paint, part="handle", **look) for a, b in zip(grip, grip[1:])]
    return solids, height * 1.15


def _ball(base, turn, size, paint, look, draw, plain):
    radius = 0.36 * size * draw("object width", 0.85, 1.1)
    if plain:  # a beach ball: every other sector is white
        look = dict(look, pattern="sectors", color2=np.array([0.95, 0.95, 0.93], F32))
    axes = turn @ rotation(2, draw("ball roll", -0.9, 0.9)) @ rotation(0, draw("ball tip", -0.6, 0.6))
    return [ellipsoid(base + UP * radius, radius, paint, axes, part="body", **look)], 2 * radius


def _chair(base, turn, size, paint, look, draw, plain):
    seat, half = 0.42 * size * draw("object height", 0.92, 1.08), 0.22 * size * draw("object width", 0.92, 1.08)
    back, thick = 0.45 * size, 0.026 * size
    side, front = turn @ np.array([1, 0, 0], F32), turn @ np.array([0, 0, 1], F32)
    solids = [box(base + UP * seat, (half, thick, half), paint, turn, part="seat", **look)]
    for x in (-1, 1):
        for z in (-1, 1):
            foot = base + side * (0.87 * half * x) + front * (0.87 * half * z)
            # The hind legs go on above the seat and carry the back.
            top = seat if z > 0 else seat + back
            radii = (thick * 1.15, top / 2, thick * 1.15)
            part = "leg" if z > 0 else "back"
            solids.append(box(foot + UP * (top / 2), radii, paint * 0.92, turn, part=part, **look))
    for k in range(3):
        middle = base - front * (0.87 * half) + UP * (seat + back * (0.32 + 0.29 * k))
        radii = (0.87 * half, 0.085 * back, thick * 0.6)
        solids.append(box(middle, radii, paint * 1.04, turn, part="back", **look))
    return solids, seat + back
