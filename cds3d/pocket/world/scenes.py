"""The procedural, captioned world: a seed gives attributes, and attributes give a caption and a 3D scene.

    attributes = Attributes.sample(seed=3)
    scene = build_scene(attributes)                       # render(scene) is its 2D image
    red = build_scene(attributes.edited(color="red"))     # the same scene, edited: the truth that an edit is judged by

Everything that is continuous (pose, light, camera, leaves...) is a function of the seed alone and shared by all
species, colours and materials, so changing one attribute changes nothing else; but the camera of a 2D image looks at
an object's own middle, so that a teapot's is a little lower than a chair's.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from cds3d.pocket.world import animals, flowers, objects
from cds3d.pocket.world.raycast import F32, Ground, Scene, Solid
from tensorf.cameras import Camera

FLOWERS = ("daisy", "tulip", "sunflower", "rose")
ANIMALS = ("cat", "dog", "pig", "cow")
OBJECTS = ("mug", "teapot", "ball", "chair")
SPECIES = {"flower": FLOWERS, "animal": ANIMALS, "object": OBJECTS}
MATERIALS = ("plastic", "wooden", "metal")
COLORS = {
    "red": (0.85, 0.07, 0.07),
    "orange": (0.97, 0.47, 0.05),
    "yellow": (0.97, 0.86, 0.10),
    "white": (0.95, 0.95, 0.93),
    "pink": (0.97, 0.52, 0.68),
    "purple": (0.52, 0.16, 0.68),
    "blue": (0.15, 0.28, 0.88),
    "brown": (0.45, 0.25, 0.12),
}
GROUNDS = {
    "grass": "on grass",
    "garden": "in a garden",
    "table": "on a table",
    "wall": "in front of a wall",
    "sky": "under a blue sky",
}
VERTICAL_FOV = 0.70  # radians
_CLOSE_UPS = 0.4  # share of training images that are taken from near: heads and petals are small otherwise
_APART = 0.85  # between two flowers
# What a prompt leaves open of animals, wood and metal: nothing else depends on these draws.
_LOOK = ("coat", "coat tone", "coat pattern", "object tone", "object grain")


@dataclass(frozen=True)
class Attributes:
    """What a scene shows. `subject` is a key of SPECIES, `species` one of its values.

    `color` (a key of COLORS) is that of petals and of plastic objects; animals have the coats of their species, wood
    and metal their own colour. `material` (one of MATERIALS) is an object's. `ground` is a key of GROUNDS. `beside`, a
    key of COLORS, puts a second flower of the same species to the right of a flower; pocket is not trained on those.
    ValueError for anything else.
    """

    seed: int
    subject: str
    species: str
    color: str
    ground: str
    material: str = "plastic"
    beside: str | None = None

    def __post_init__(self):
        allowed = {"subject": SPECIES, "color": COLORS, "ground": GROUNDS, "material": MATERIALS}
        allowed["species"] = SPECIES.get(self.subject, ())
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(values)}")
        if self.beside is not None and (self.subject != "flower" or self.beside not in COLORS):
            raise ValueError(f"beside {self.beside!r} has to be the colour of a second flower, beside a flower")

    @staticmethod
    def sample(seed: int) -> Attributes:
        draw = Jitter(seed)
        share = draw("subject")
        subject = "flower" if share < 0.4 else "animal" if share < 0.75 else "object"
        return Attributes(
            seed,
            subject,
            draw.choice("species", SPECIES[subject]),
            draw.choice("color", tuple(COLORS)),
            draw.choice("ground", tuple(GROUNDS)),
            draw.choice("material", ("plastic", *MATERIALS)),  # half of them plastic: those come in eight colours
        )

    @staticmethod
    def sample_evenly(seed: int) -> Attributes:
        """What pocket is trained on: as `sample`, with animals and objects seen more often than there.

        The hard ones: an animal's face and an object's colour.
        """
        draw = Jitter(seed)
        share, plastic = draw("subject"), draw("plastic") < 0.6
        subject = "flower" if share < 0.3 else "animal" if share < 0.7 else "object"
        material = "plastic" if plastic else draw.choice("material", MATERIALS[1:])
        species, color = draw.choice("species", SPECIES[subject]), draw.choice("color", tuple(COLORS))
        return Attributes(seed, subject, species, color, draw.choice("ground", tuple(GROUNDS)), material)

    @property
    def painted(self) -> bool:
        """Whether `color` shows."""
        return self.subject == "flower" or (self.subject == "object" and self.material == "plastic")

    def edited(self, **changes: str) -> Attributes:
        """The same scene with some attributes changed; a species of another kind changes the subject too."""
        species = changes.get("species", self.species)
        subject = next((kind for kind, names in SPECIES.items() if species in names), self.subject)
        return replace(self, subject=subject, **changes)

    def towards(self, prompt_words: list[str]) -> Attributes | None:
        """The edit that these words of a prompt ask for ("red", "dog", "wooden"), or None where there is none.

        A colour makes an object plastic, for wood and metal show none.
        """
        changes: dict[str, str] = {}
        for word in prompt_words:
            if word in COLORS:
                changes["color"] = word
            elif word in MATERIALS:
                changes["material"] = word
            elif any(word in names for names in SPECIES.values()):
                changes["species"] = word
            else:
                return None
        edited = self.edited(**changes)
        if edited.subject == "object" and "color" in changes and "material" not in changes:
            edited = replace(edited, material="plastic")
        shown = {"color": edited.painted, "material": edited.subject == "object", "species": True}
        return edited if edited != self and all(shown[name] for name in changes) else None

    def caption(self, style: int = 0) -> str:
        """One natural description; seed and `style` choose whether it names species, colour, material and ground."""
        draw = Jitter(self.seed)
        prefix = ("", "", "a photo of ", "a picture of ")[int(draw(f"caption {style} prefix") * 4)]
        general = {"flower": 0.5, "animal": 0.05, "object": 0.05}[self.subject]
        noun = self.subject if draw(f"caption {style} noun") < general else self.species
        names_look = draw(f"caption {style} color") <= 0.9
        if self.painted and names_look:
            noun = f"{self.color} {noun}"
        elif self.subject == "object" and (names_look or self.painted):
            noun = f"{self.material} {noun}"
        place = f" {GROUNDS[self.ground]}" if draw(f"caption {style} ground") < 0.4 else ""
        return f"{prefix}{article(noun)} {noun}{place}"


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


class Jitter:
    """Named random numbers of one seed: `draw("bend", -1, 1)` is the same number whenever it is asked for.

    look: a seed of its own for coats, and for the tone and grain of objects; None is `seed`.
    """

    def __init__(self, seed: int, look: int | None = None):
        self.seed, self.look = seed, seed if look is None else look

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        # SplitMix64 of seed and name: well mixed, and a thousand times cheaper than a generator for each name.
        mask = (1 << 64) - 1
        seed = self.look if name in _LOOK else self.seed
        x = (seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode()) * 0xD1B54A32D192ED03 + 1) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return low + (high - low) * ((x ^ (x >> 31)) >> 11) / (1 << 53)

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        return options[int(self(name) * len(options))]


def build_scene(attributes: Attributes, width: int = 256, height: int = 192, *, look: int | None = None) -> Scene:
    """The 3D scene, with a camera of the given image size in front of it.

    look: a seed of another coat, or of another piece of wood or metal; pose, light, camera and ground stay.
    """
    draw = Jitter(attributes.seed, look)
    place = draw("place x", -0.25, 0.25)
    if attributes.beside is not None:
        place = -_APART / 2  # both flowers are in the picture
    base = np.array([place, 0, draw("place z", -0.2, 0.2)], F32)
    size = draw("size", 0.85, 1.15)
    if attributes.subject == "flower":
        solids, look_at = flowers.build(attributes.species, COLORS[attributes.color], base, size, draw)
        distance = draw("distance", 1.35, 2.0)
        if attributes.beside is not None:
            other = Jitter(attributes.seed + 1)  # a height, bend and face of its own
            right, seen = flowers.build(
                attributes.species, COLORS[attributes.beside], base + np.array([_APART, 0, 0], F32), size, other
            )
            solids, look_at, distance = solids + right, (look_at + seen) / 2, max(distance, 2.0)
    elif attributes.subject == "animal":
        solids, look_at = animals.build(attributes.species, base, size, draw)
        distance = draw("distance", 1.5, 2.2)
    else:
        color = COLORS[attributes.color]
        solids, look_at = objects.build(attributes.species, attributes.material, color, base, size, draw)
        distance = draw("distance", 1.2, 1.8)
    light = np.array([draw("light x", -0.7, 0.7), draw("light y", 0.7, 1.2), draw("light z", 0.3, 1.0)], F32)
    look_at = look_at + np.array([draw("look x", -0.15, 0.15), draw("look y", -0.08, 0.1), 0], F32)
    camera = orbit_camera(
        look_at,
        distance,
        yaw=draw("camera yaw", -0.45, 0.45),
        pitch=draw("camera pitch", 0.08, 0.42),
        roll=draw("camera roll", -0.05, 0.05),
        width=width,
        height=height,
    )
    scene = Scene(
        ground=_ground(attributes, base, draw),
        light=light / np.linalg.norm(light),
        ambient=draw("ambient", 0.4, 0.55),
        camera=camera,
    )
    scene.solids = _foliage(attributes.ground, draw) + solids
    return scene


def training_view(attributes: Attributes, width: int = 256, height: int = 192) -> tuple[Scene, Camera]:
    """The scene, and the camera by which pocket and its judge see it in training: its own one, or a close one."""
    scene, draw = build_scene(attributes, width, height), Jitter(attributes.seed)
    return scene, close_camera(scene, draw) if draw("close-up") < _CLOSE_UPS else scene.camera


def close_camera(scene: Scene, draw: Jitter) -> Camera:
    """A camera nearer to the scene's subject than its own: at an animal's head, a flower's petals or the whole object.

    On the line from the subject to the scene's own camera, at 0.4 to 0.8 of its distance (0.6 to 0.8 for what has
    several parts).
    """
    own, parts = scene.camera, {solid.part for solid in scene.solids}
    wanted = next(({name} for name in ("head", "petal") if name in parts), parts - {""})
    centers = np.stack([solid.center for solid in scene.solids if solid.part in wanted])
    middle = (centers.min(0) + centers.max(0)) / 2
    shift = np.array([draw("close x", -0.12, 0.12), draw("close y", -0.12, 0.06), 0], F32)
    eye = middle + draw("close", 0.4 if len(wanted) == 1 else 0.6, 0.8) * (own.position.numpy() - middle)
    eye[1] = max(eye[1], 0.06)  # above the ground
    return look_camera(eye, middle + shift, roll=draw("close roll", -0.05, 0.05), width=own.width, height=own.height)


def orbit_camera(look_at, distance, *, yaw, pitch, roll=0.0, width=256, height=192) -> Camera:
    """A camera on a sphere around `look_at` (3,), angles in radians; yaw 0 looks along -z, pitch lifts the camera."""
    offset = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    return look_camera(np.asarray(look_at) + distance * offset, look_at, roll=roll, width=width, height=height)


def look_camera(eye, look_at, *, roll=0.0, width=256, height=192) -> Camera:
    """A camera at `eye` (3,) that looks at `look_at` (3,) with the world's y up; roll in radians."""
    forward = np.asarray(look_at, np.float64) - np.asarray(eye, np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = math.cos(roll), math.sin(roll)
    axes = np.stack([cos * right + sin * down, cos * down - sin * right, forward, np.asarray(eye)], 1)
    focal = height / 2 / math.tan(VERTICAL_FOV / 2)
    pose = torch.from_numpy(axes.astype(F32))
    return Camera(pose, focal, focal, width / 2, height / 2, width, height)


def _ground(attributes: Attributes, base: np.ndarray, draw: Jitter) -> Ground:
    kind = attributes.ground
    tone = draw("ground tone")
    color, grain, scale = {
        "grass": ((0.25, 0.45 + 0.15 * tone, 0.12), 0.35, (0.35, 0.35)),
        "garden": ((0.25, 0.45 + 0.15 * tone, 0.12), 0.35, (0.35, 0.35)),
        "table": (np.array([0.55, 0.36, 0.20]) * (0.7 + 0.6 * tone), 0.22, (0.05, 0.5)),
        "wall": (np.array([0.50, 0.48, 0.45]) * (0.7 + 0.5 * tone), 0.10, (0.2, 0.2)),
        "sky": (np.array([0.72, 0.62, 0.42]) * (0.8 + 0.3 * tone), 0.15, (0.25, 0.25)),
    }[kind]
    wall = [draw(f"wall {c}", 0.45, 0.92) for c in "rgb"]
    return Ground(
        kind=kind,
        color=np.array(color, F32),
        wall_color=np.array(wall, F32) * F32(draw("wall tone", 0.6, 1.0)),
        grain=grain,
        grain_scale=scale,
        offset=(draw("grain u"), draw("grain v")),
        bricks=kind == "wall" and draw("bricks") < 0.5,
        shadow_center=base,
        shadow_radius={"flower": 0.25, "animal": 0.45, "object": 0.38}[attributes.subject],
    )


def _foliage(ground: str, draw: Jitter) -> list[Solid]:
    """Round bushes behind the subject: a hedge in a garden, a few on half of the meadows."""
    count = {"garden": 26, "grass": 12 if draw("bushes") < 0.5 else 0}.get(ground, 0)
    top = 2.6 if ground == "garden" else 0.7
    bushes = []
    for i in range(count):
        radius = draw(f"bush {i} radius", 0.35, 0.8)
        green = draw(f"bush {i} green", 0.22, 0.5)
        color = (green * draw(f"bush {i} red", 0.35, 0.8), green, green * draw(f"bush {i} blue", 0.2, 0.5))
        place = [draw(f"bush {i} {axis}", *span) for axis, span in zip("xyz", ((-3.6, 3.6), (-0.1, top), (-3.6, -1.7)))]
        radii = (radius, radius * draw(f"bush {i} flat", 0.6, 1.0), radius)
        bushes.append(
            Solid(
                "ellipsoid",
                np.array(place, F32),
                np.eye(3, dtype=F32),
                np.array(radii, F32),
                np.array(color, F32),
                grain=0.4,
                offset=draw(f"bush {i} grain"),
            )
        )
    return bushes
