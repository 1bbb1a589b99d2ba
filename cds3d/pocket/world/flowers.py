"""Flowers of the procedural world: stem, leaves and one of four heads around the same stem and direction."""

from __future__ import annotations

import numpy as np

from cds3d.pocket.world.modelling import ellipsoid, frame_along, limb, rotation
from cds3d.pocket.world.raycast import F32, Solid


def build(species: str, color, base: np.ndarray, size: float, draw) -> tuple[list[Solid], np.ndarray]:
    """Solids of one flower that stands at `base` (3,), and the point that a camera should look at."""
    height = draw("stem height", 0.75, 1.0) * size
    bend = np.array([draw("bend x", -0.18, 0.18), 0, draw("bend z", -0.1, 0.1)], F32)
    top = base + np.array([0, height, 0], F32) + bend
    solids = _stem(base, top, bend, height, size, draw)
    petal = np.array(color, F32) * draw("petal tone", 0.9, 1.08)
    yaw, tilt = draw("head yaw", -0.8, 0.8), draw("head tilt", 0.1, 0.75)
    normal = rotation(1, yaw) @ rotation(0, -tilt) @ np.array([0, 0, 1], F32)
    side = rotation(1, yaw) @ np.array([1, 0, 0], F32)
    axes = np.stack([side, np.cross(normal, side), normal], 1)
    radius, phase = draw("head radius", 0.32, 0.44) * size, draw("petal phase") * 2 * np.pi
    if species == "daisy":
        solids += _rays(top, axes, radius, phase, petal, count=11, center=0.24, wide=0.17, heart=(0.93, 0.70, 0.08))
    elif species == "sunflower":
        solids += _rays(top, axes, radius, phase, petal, count=16, center=0.45, wide=0.13, heart=(0.25, 0.14, 0.06))
    elif species == "tulip":
        solids += _cup(top, normal, bend, radius, phase, petal)
    else:
        solids += _rose(top, axes, radius, phase, petal)
    return solids, base * F32(0.8) + np.array([0, height * 0.84, 0], F32)


def _stem(base, top, bend, height, size, draw) -> list[Solid]:
    green = np.array([0.16, 0.42, 0.12], F32) * draw("stem tone", 0.8, 1.25)
    middle = base + np.array([0, height * 0.5, 0], F32) + bend * F32(0.3)
    solids = [limb(base, middle, 0.028, green, part="stem"), limb(middle, top, 0.026, green, part="stem")]
    for k in range(2):
        angle = draw(f"leaf {k}") * 2 * np.pi + k * 2.6
        direction = np.array([np.cos(angle), 0.75, np.sin(angle)], F32)
        center = base + np.array([0, height * (0.2 + 0.2 * k), 0], F32) + bend * F32(0.2) + direction * F32(0.17 * size)
        radii = (0.075 * size, 0.21 * size, 0.015)
        solids.append(ellipsoid(center, radii, green * 1.1, frame_along(direction), grain=0.2, part="leaf"))
    return solids


def _rays(top, axes, radius, phase, color, *, count, center, wide, heart) -> list[Solid]:
    """Flat petals around a disc: daisies and sunflowers. `center`, `wide`: disc and petal width, in head radii."""
    normal, disc = axes[:, 2], radius * center
    solids = []
    for i in range(count):
        angle = phase + 2 * np.pi * i / count
        outward = axes @ np.array([np.cos(angle), np.sin(angle), 0.12 + 0.10 * (i % 2)], F32)
        outward /= np.linalg.norm(outward)
        half = (radius - disc * 0.6) * 0.5 * (1 + 0.08 * np.sin(5 * angle + phase))
        solids.append(
            ellipsoid(
                top + outward * (disc * 0.6 + half),
                (radius * wide, half, 0.02 * radius / 0.37 + 0.012),
                color * (1 - 0.08 * (i % 3)),
                frame_along(outward, np.cross(outward, normal)),
                grain=0.12,
                offset=0.1 * i,
                part="petal",
            )
        )
    radii = (disc, disc, disc * 0.45)
    solids.append(ellipsoid(top + normal * 0.02, radii, heart, axes, grain=0.3, part="heart"))
    return solids


def _cup(top, normal, bend, radius, phase, color) -> list[Solid]:
    """Six upright petals that close to a cup: tulips."""
    up = 0.75 * np.array([bend[0] * 2, 1, 0], F32) + 0.35 * normal
    up /= np.linalg.norm(up)
    axes = frame_along(up)
    center = top + up * radius * 0.55
    solids = []
    for i in range(6):
        angle = phase + i * 2 * np.pi / 6
        outward = axes @ np.array([np.cos(angle), 0, np.sin(angle)], F32)
        direction = up + outward * (0.16 if i % 2 else 0.05)
        radii = (radius * 0.30, radius * 0.68, radius * 0.14)
        petal_axes = frame_along(direction, np.cross(direction, outward))
        tone = color * (1 - 0.12 * (i % 2))
        place = center + outward * radius * 0.27
        solids.append(ellipsoid(place, radii, tone, petal_axes, grain=0.12, offset=0.17 * i, part="petal"))
    return solids


def _rose(top, axes, radius, phase, color) -> list[Solid]:
    """Three rings of round petals, the inner ones steeper, around a bud."""
    normal = axes[:, 2]
    solids = [ellipsoid(top, radius * 0.55, color * 0.8, grain=0.15, part="petal")]
    for ring, (count, spread, lean) in enumerate([(6, 0.62, 0.45), (5, 0.42, 0.75), (4, 0.24, 1.05)]):
        for i in range(count):
            angle = phase + 2 * np.pi * (i + 0.5 * ring) / count
            outward = axes @ np.array([np.cos(angle), np.sin(angle), 0], F32)
            direction = outward * np.cos(lean) + normal * np.sin(lean)
            center = top + outward * radius * spread + normal * radius * (0.1 + 0.2 * ring)
            tone = color * (0.85 + 0.12 * ((i + ring) % 2) - 0.08 * ring)
            radii = (radius * 0.36, radius * 0.40, radius * 0.09)
            petal_axes = frame_along(direction, np.cross(direction, outward))
            solids.append(ellipsoid(center, radii, tone, petal_axes, grain=0.12, offset=0.13 * i, part="petal"))
    solids.append(ellipsoid(top + normal * radius * 0.5, radius * 0.18, color * 0.7, part="petal"))
    return solids
