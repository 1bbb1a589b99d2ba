"""Animals of the procedural world: cats, dogs, pigs and cows, sitting or standing, in one shared pose a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cds3d.pocket.world.modelling import UP, cone, ellipsoid, frame_along, limb, rotation
from cds3d.pocket.world.raycast import F32, Solid

BLACK = (0.05, 0.04, 0.04)


@dataclass(frozen=True)
class Build:
    """Proportions of one species, in units of the animal's size; `coats`: the colours it comes in."""

    body_length: float
    body_width: float
    leg: float
    coats: tuple[tuple[float, float, float], ...]
    pattern: str = "plain"


BUILDS = {
    "cat": Build(
        0.40,
        0.19,
        0.055,
        ((0.90, 0.55, 0.20), (0.55, 0.55, 0.57), (0.85, 0.72, 0.52), (0.30, 0.28, 0.28)),
        "stripes",
    ),
    "dog": Build(0.42, 0.21, 0.06, ((0.48, 0.28, 0.13), (0.78, 0.56, 0.28), (0.62, 0.42, 0.25), (0.35, 0.22, 0.15))),
    "pig": Build(0.45, 0.27, 0.07, ((0.96, 0.66, 0.66), (0.93, 0.60, 0.62), (0.97, 0.72, 0.70), (0.90, 0.58, 0.56))),
    "cow": Build(0.47, 0.26, 0.07, ((0.94, 0.93, 0.90),) * 4, "patches"),
}


def build(species: str, base: np.ndarray, size: float, draw) -> tuple[list[Solid], np.ndarray]:
    """Solids of one animal that stands at `base` (3,), and the point that a camera should look at."""
    proportions = BUILDS[species]
    coat = np.array(proportions.coats[int(draw("coat") * 4)], F32) * draw("coat tone", 0.92, 1.05)
    fur = dict(pattern=proportions.pattern, offset=draw("coat pattern"))
    if proportions.pattern != "plain":
        fur["color2"] = np.array([0.08, 0.07, 0.07], F32) if species == "cow" else coat * 0.55
    yaw = draw("body yaw", -1.25, 1.25)
    forward = rotation(1, yaw) @ np.array([0, 0, 1], F32)
    body = _sitting if draw("sits") < 0.4 else _standing
    solids, chest, neck, tail = body(proportions, base, forward, size, coat, fur, draw)
    solids.append(limb(chest + (neck - chest) * F32(0.4), neck, 0.12 * size, coat, part="body", **fur))
    head_yaw = yaw * draw("head follows", 0.0, 0.5) + draw("head yaw", -0.35, 0.35)
    axes = (
        rotation(1, head_yaw) @ rotation(0, draw("head pitch", -0.2, 0.3)) @ rotation(2, draw("head roll", -0.25, 0.25))
    )
    head = Head(neck, axes, 0.235 * size, coat, fur)
    solids += {"cat": _cat_head, "dog": _dog_head, "pig": _pig_head, "cow": _cow_head}[species](head)
    side = np.cross(UP, forward)
    solids += _tail(species, tail, forward, side * draw("tail swing", -0.08, 0.08), size, coat)
    return solids, base * F32(0.8) + UP * (0.45 * size) + forward * F32(0.12)


def _standing(build_: Build, base, forward, size, coat, fur, draw):
    """Returns solids, the body's centre, where the head sits and where the tail starts."""
    side, leg = np.cross(UP, forward), 0.40 * size
    width, length = build_.body_width * size, build_.body_length * size
    center = base + UP * leg
    solids = [
        ellipsoid(center, (width * 0.95, width, length), coat, np.stack([side, UP, forward], 1), part="body", **fur)
    ]
    for i, (along, across) in enumerate([(0.28, 0.1), (0.28, -0.1), (-0.28, 0.1), (-0.28, -0.1)]):
        foot = base + forward * (along * size) + side * (across * size)
        swing = forward * draw(f"leg {i}", -0.06, 0.06)
        hip, sole = foot + UP * (leg * 0.8), foot + UP * 0.04 + swing
        solids.append(limb(hip, sole, build_.leg * size, coat * 0.97, part="leg"))
    head = center + forward * (0.42 * size) + UP * (0.27 * size)
    return solids, center, head, center - forward * (length * 0.9) + UP * (0.08 * size)


def _sitting(build_: Build, base, forward, size, coat, fur, draw):
    side, spine = np.cross(UP, forward), forward * F32(0.5) + UP * F32(0.87)
    width, length = build_.body_width * size, build_.body_length * size
    center = base + UP * (0.34 * size) - forward * F32(0.05)
    radii = (width * 0.95, length * 0.85, width * 0.95)
    solids = [ellipsoid(center, radii, coat, frame_along(spine, side), part="body", **fur)]
    for across in (0.1, -0.1):
        shoulder = center + forward * (0.16 * size) + side * (across * size)
        paw = base + forward * (0.3 * size) + side * (across * size) + UP * 0.03
        solids.append(limb(shoulder, paw, build_.leg * size, coat * 0.97, part="leg"))
        haunch = base - forward * (0.02 * size) + side * (1.7 * across * size) + UP * (0.12 * size)
        axes = np.stack([side, UP, forward], 1)
        solids.append(ellipsoid(haunch, (0.09 * size, 0.13 * size, 0.18 * size), coat * 0.95, axes, part="leg"))
    head = center + spine * (0.36 * size) + forward * (0.12 * size) + UP * (0.06 * size)
    return solids, center, head, base - forward * (0.3 * size) + UP * (0.12 * size)


@dataclass(frozen=True)
class Head:
    """Where a head is and how it is turned; x to its left, y up, z out of the face, in units of `size`."""

    center: np.ndarray
    axes: np.ndarray
    size: float
    coat: np.ndarray
    fur: dict

    def at(self, x, y, z) -> np.ndarray:
        return self.center + self.size * (self.axes @ np.array([x, y, z], F32))

    def along(self, x, y, z) -> np.ndarray:
        """A frame whose y axis points to (x, y, z) of the head."""
        return frame_along(self.axes @ np.array([x, y, z], F32), self.axes[:, 0])

    def ball(self, place, radii, color, **look) -> Solid:
        radii = np.asarray(radii, F32) * self.size
        return ellipsoid(self.at(*place), radii, color, self.axes, **{"grain": 0.05, "part": "face", **look})

    def spike(self, place, radii, color, direction, part="ear") -> Solid:
        radii = np.asarray(radii, F32) * self.size
        return cone(self.at(*place), radii, color, self.along(*direction), grain=0.08, part=part)

    def light(self) -> np.ndarray:
        """The paler colour of muzzles."""
        return np.minimum(self.coat * 1.25 + 0.1, 0.97)


def _cat_head(h: Head) -> list[Solid]:
    solids = [h.ball((0, 0, 0), (1.0, 0.9, 0.9), h.coat, part="head", **h.fur)]
    for x in (-1, 1):
        solids += [
            h.spike((0.55 * x, 0.55, -0.05), (0.38, 0.75, 0.25), h.coat * 0.9, (0.25 * x, 1, 0)),
            h.spike((0.55 * x, 0.58, 0.06), (0.24, 0.52, 0.20), (0.92, 0.60, 0.58), (0.25 * x, 1, 0)),
            h.ball((0.18 * x, -0.34, 0.78), (0.24, 0.19, 0.20), h.light()),
            h.ball((0.40 * x, 0.16, 0.74), (0.20, 0.20, 0.20), (0.62, 0.78, 0.25)),
            h.ball((0.41 * x, 0.16, 0.87), (0.07, 0.15, 0.08), BLACK),
        ]
    return solids + [h.ball((0, -0.18, 0.95), (0.10, 0.08, 0.08), (0.90, 0.45, 0.45))]


def _dog_head(h: Head) -> list[Solid]:
    solids = [h.ball((0, 0, 0), (0.9, 0.95, 0.9), h.coat, part="head", grain=0.12)]
    for x in (-1, 1):
        ear = h.axes @ rotation(2, 0.22 * x)
        radii = np.array([0.16, 0.68, 0.36], F32) * h.size
        solids.append(ellipsoid(h.at(0.95 * x, -0.02, -0.05), radii, h.coat * 0.55, ear, part="ear"))
        solids.append(h.ball((0.36 * x, 0.25, 0.78), (0.13, 0.13, 0.13), BLACK))
    return solids + [
        h.ball((0, -0.28, 0.88), (0.40, 0.32, 0.62), h.light()),
        h.ball((0, -0.10, 1.42), (0.19, 0.15, 0.14), BLACK),
        h.ball((0, -0.58, 1.10), (0.14, 0.20, 0.18), (0.88, 0.35, 0.38)),
    ]


def _pig_head(h: Head) -> list[Solid]:
    solids = [h.ball((0, 0, 0), (1.0, 0.9, 0.9), h.coat, part="head")]
    for x in (-1, 1):
        solids += [
            h.spike((0.55 * x, 0.55, 0.1), (0.34, 0.58, 0.12), h.coat * 0.85, (0.6 * x, 0.7, 0.35)),
            h.ball((0.40 * x, 0.22, 0.80), (0.11, 0.11, 0.11), BLACK),
            h.ball((0.14 * x, -0.18, 1.24), (0.075, 0.11, 0.06), (0.35, 0.14, 0.15)),
        ]
    return solids + [h.ball((0, -0.18, 0.98), (0.38, 0.32, 0.30), h.coat * np.array([0.98, 0.85, 0.87], F32))]


def _cow_head(h: Head) -> list[Solid]:
    solids = [h.ball((0, 0, 0), (0.82, 1.0, 0.85), h.coat, part="head", **h.fur)]
    for x in (-1, 1):
        solids += [
            h.spike((0.42 * x, 0.75, -0.05), (0.17, 0.75, 0.17), (0.88, 0.80, 0.60), (0.65 * x, 0.9, 0), part="horn"),
            ellipsoid(
                h.at(1.0 * x, 0.40, -0.1),
                np.array([0.15, 0.36, 0.20], F32) * h.size,
                (0.12, 0.10, 0.10),
                h.along(x, 0.1, 0),
                part="ear",
            ),
            h.ball((0.42 * x, 0.28, 0.72), (0.13, 0.13, 0.13), BLACK),
            h.ball((0.20 * x, -0.52, 1.02), (0.08, 0.08, 0.06), (0.30, 0.15, 0.15)),
        ]
    return solids + [h.ball((0, -0.58, 0.62), (0.55, 0.40, 0.42), (0.92, 0.68, 0.64))]


def _tail(species, start, forward, swing, size, coat) -> list[Solid]:
    def to(back, up):
        return start + (UP * F32(up) - forward * F32(back) + swing) * F32(size)

    if species == "cat":
        points = [start, to(0.12, 0.02), to(0.19, 0.11), to(0.21, 0.27), to(0.18, 0.50)]
        return [
            limb(a, b, 0.035 * size, coat * (0.85 if i % 2 else 1), part="tail")
            for i, (a, b) in enumerate(zip(points, points[1:]))
        ]
    if species == "dog":
        return [limb(start, to(0.10, 0.24), 0.04 * size, coat, part="tail")]
    if species == "pig":
        points = [start, to(0.07, 0.06), to(0.03, 0.12)]
        return [limb(a, b, 0.03 * size, coat, part="tail") for a, b in zip(points, points[1:])]
    return [
        limb(start, to(0.08, -0.25), 0.025 * size, coat, part="tail"),
        ellipsoid(to(0.09, -0.28), 0.05 * size, BLACK, grain=0.2, part="tail"),
    ]
