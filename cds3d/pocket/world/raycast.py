"""Ray casting of simple solids: how a scene of the procedural world becomes an image.

NumPy only. A scene is a list of ellipsoids, cones, boxes and cylinders, a ground, and a sky or a back wall. Every
solid is intersected analytically, inside its own rectangle on the image only, and shaded with Lambert and ambient
light. World axes: y up, the ground is y = 0, the viewer stands on the +z side. Colours are linear factors in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tensorf.cameras import Camera

F32 = np.float32
FAR = F32(1e9)
_BOX_CORNERS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], F32)
# What a solid can be a part of; a pixel's part label is the place here, 0 where no subject is seen.
PARTS = ("", "stem", "leaf", "petal", "heart", "body", "leg", "tail", "head", "ear", "face", "horn")
PARTS += ("inside", "handle", "lid", "spout", "seat", "back")
_CLOSEST = 0.05  # a solid nearer to the camera than this, or behind it, is not drawn


@dataclass(frozen=True)
class Solid:
    """An ellipsoid, a box, a closed cylinder around y, or a cone of base y = 0 and apex y = 1, in local coordinates.

    center (3,), axes (3, 3) columns = local x, y, z, radii (3,): local unit solid -> world.
    color (3,); color2 (3,) or None is used by the patterns "stripes", "patches" and "sectors"; "wood" needs none.
    grain: amplitude of the surface noise; offset: shifts the noise, so that no two solids look the same.
    gloss: 0 is matt, 1 a mirror of the sky and the ground. part: one of PARTS; "" belongs to no subject.
    """

    shape: str
    center: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    color: np.ndarray
    color2: np.ndarray | None = None
    pattern: str = "plain"
    pattern_scale: float = 1.0
    grain: float = 0.1
    offset: float = 0.0
    gloss: float = 0.0
    part: str = ""

    def __post_init__(self):
        if self.part not in PARTS:
            raise ValueError(f"part {self.part!r} is none of {', '.join(PARTS[1:])}")


@dataclass(frozen=True)
class Ground:
    """What is under and behind the subject: see `scenes.GROUNDS` for the kinds."""

    kind: str
    color: np.ndarray
    wall_color: np.ndarray
    grain: float
    grain_scale: tuple[float, float]
    offset: tuple[float, float]
    bricks: bool
    shadow_center: np.ndarray
    shadow_radius: float
    wall_z: float = -2.6

    @property
    def has_wall(self) -> bool:
        return self.kind in ("table", "wall")


@dataclass
class Scene:
    """Solids, ground and light; `camera` is the view that the 2D image of this scene is taken from."""

    ground: Ground
    light: np.ndarray
    ambient: float
    camera: Camera
    solids: list[Solid] = field(default_factory=list)


@dataclass(frozen=True)
class Render:
    """image (H, W, 3) uint8; parts (H, W) uint8, places in PARTS; depth (H, W) float32 along the optical axis.

    Depth is inf for the sky.
    """

    image: np.ndarray
    parts: np.ndarray
    depth: np.ndarray

    @property
    def subject(self) -> np.ndarray:
        """(H, W) bool: where the flower, animal or object is seen."""
        return self.parts > 0


def _noise_table() -> np.ndarray:
    """Tileable band-limited noise in [-1, 1], falling off with frequency."""
    rng, size = np.random.default_rng(7), 256
    freq = np.fft.fftfreq(size) * size
    radius = np.hypot(freq[:, None], freq[None])
    amplitude = np.where((radius > 1) & (radius < 48), 1 / np.maximum(radius, 1) ** 1.1, 0)
    table = np.fft.ifft2(amplitude * np.exp(2j * np.pi * rng.random((size, size)))).real
    return (table / table.std() / 2.2).clip(-1, 1).astype(F32)


_NOISE = _noise_table()


def noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up of the noise table, periodic with period 1 in both arguments."""
    size = len(_NOISE)
    u, v = u * size, v * size
    u0, v0 = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = (u - u0).astype(F32), (v - v0).astype(F32)
    u1, v1 = (u0 + 1) & (size - 1), (v0 + 1) & (size - 1)
    u0, v0 = u0 & (size - 1), v0 & (size - 1)
    low = _NOISE[u0, v0] * (1 - fv) + _NOISE[u0, v1] * fv
    high = _NOISE[u1, v0] * (1 - fv) + _NOISE[u1, v1] * fv
    return low * (1 - fu) + high * fu


def render(scene: Scene, camera: Camera | None = None, *, supersample: int = 1) -> Render:
    """Cast one ray a pixel (`supersample`^2 with supersampling) from `camera` (default: the scene's own)."""
    camera = camera or scene.camera
    width, height = camera.width, camera.height
    fine = camera.resized(width * supersample, height * supersample)
    origin, rays = (a.numpy() for a in fine.pixel_rays())
    origin, rays = origin[0], rays.reshape(fine.height, fine.width, 3)
    image = np.zeros((*rays.shape[:2], 3), F32)
    depth = np.full(rays.shape[:2], FAR, F32)
    parts = np.zeros(rays.shape[:2], np.uint8)
    _draw_surroundings(scene, origin, rays, image, depth)
    for solid in scene.solids:
        _draw_solid(solid, scene, fine, origin, rays, image, depth, parts)
    depth[depth >= FAR] = np.inf
    if supersample > 1:
        image = image.reshape(height, supersample, width, supersample, 3).mean((1, 3))
        middle = slice(supersample // 2, None, supersample)
        parts, depth = parts[middle, middle], depth[middle, middle]
    else:
        image = _soften(image)
    return Render((image.clip(0, 1) * 255 + 0.5).astype(np.uint8), parts, depth)


def _soften(image: np.ndarray) -> np.ndarray:
    """A narrow separable blur: what a lens does, and all the antialiasing that one ray a pixel gets."""
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, middle, after = (np.take(padded, range(k, k + image.shape[axis]), axis) for k in range(3))
        image = F32(0.7) * middle + F32(0.15) * (before + after)
    return image


def _draw_surroundings(scene: Scene, origin, rays, image, depth) -> None:
    """The ground plane, and behind it a wall, a hedge or the sky."""
    ground, down = scene.ground, rays[..., 1]
    t_ground = np.where(down < -1e-3, -origin[1] / np.minimum(down, -1e-3), FAR).astype(F32)
    toward = np.minimum(rays[..., 2], -1e-3)
    t_wall = np.where(rays[..., 2] < -1e-3, (ground.wall_z - origin[2]) / toward, FAR).astype(F32)
    on_ground = t_ground < (t_wall if ground.has_wall else 30)
    above = ~on_ground

    t, d = t_ground[on_ground], rays[on_ground]
    x, z = origin[0] + t * d[:, 0], origin[2] + t * d[:, 2]
    grain = noise(x * ground.grain_scale[0] + ground.offset[0], z * ground.grain_scale[1] + ground.offset[1])
    fade = 1 / (1 + 0.08 * t)  # far ground is seen at a grazing angle: its grain would only alias
    squared = (x - ground.shadow_center[0]) ** 2 + (z - ground.shadow_center[2]) ** 2
    shade = 1 - 0.55 * np.exp(-squared / ground.shadow_radius**2)
    lit = scene.ambient + (1 - scene.ambient) * scene.light[1]
    image[on_ground] = ground.color * ((1 + ground.grain * grain * fade) * lit * shade)[:, None]
    depth[on_ground] = t

    d = rays[above]
    if ground.has_wall:
        t = t_wall[above]
        image[above] = _wall_color(ground, origin[0] + t * d[:, 0], origin[1] + t * d[:, 1])
        depth[above] = t
    elif ground.kind == "garden":
        leaves = noise(d[:, 0] * 0.5 + ground.offset[0], d[:, 1] * 0.5)
        image[above] = np.array([0.12, 0.22, 0.10], F32) * (1 + 0.5 * leaves)[:, None]
    else:
        image[above] = _sky_color(ground, d)


def _wall_color(ground: Ground, x, y) -> np.ndarray:
    color = ground.wall_color * (1 + 0.07 * noise(x * 0.15 + ground.offset[0], y * 0.15 + ground.offset[1]))[:, None]
    if ground.bricks:
        row = np.floor(y / 0.28)
        mortar = ((y / 0.28) % 1 < 0.1) | ((x / 0.6 + 0.5 * (row % 2)) % 1 < 0.05)
        color = np.where(mortar[:, None], color * 0.72, color)
    return color * 0.92


def _sky_color(ground: Ground, rays) -> np.ndarray:
    elevation = (rays[:, 1] / np.linalg.norm(rays, axis=1)).clip(0, 0.5)[:, None]
    horizon, zenith = np.array([0.70, 0.84, 0.96], F32), np.array([0.28, 0.52, 0.90], F32)
    blue = horizon + (zenith - horizon) * (elevation * 2.2).clip(0, 1)
    amount = 1.6 if ground.kind == "sky" else 0.8
    cloud = noise(rays[:, 0] * 0.22 + ground.offset[0], rays[:, 1] * 0.4 + ground.offset[1]) * amount
    return blue + (0.97 - blue) * cloud.clip(0, 1)[:, None] * 0.8


def _draw_solid(solid: Solid, scene: Scene, camera: Camera, origin, rays, image, depth, parts) -> None:
    window = _window(solid, camera)
    if window is None:
        return
    to_local = (solid.axes / solid.radii).astype(F32)  # row vector @ to_local: world -> unit solid
    d, o = rays[window] @ to_local, (origin - solid.center) @ to_local
    hit, t = _HITS[solid.shape](o, d)
    rows, cols = np.nonzero(hit & (t > 0) & (t < depth[window]))
    if rows.size == 0:
        return
    t, d = t[rows, cols], d[rows, cols]
    point = o + t[:, None] * d
    normal = _gradient(solid.shape, point) @ to_local.T
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    facing_away = (normal * rays[window][rows, cols]).sum(1, keepdims=True) > 0
    normal = np.where(facing_away, -normal, normal)
    lambert = (normal @ scene.light).clip(0)
    # The small third term is light that comes from the sky rather than from the sun.
    light = scene.ambient + (1 - scene.ambient) * lambert + 0.08 * normal[:, 1]
    color = _surface_color(solid, point)
    shaded = color * light[:, None]
    if solid.gloss:
        shaded = shaded + solid.gloss * (_mirrored(color, rays[window][rows, cols], normal, scene.light) - shaded)
    image[window][rows, cols] = shaded
    depth[window][rows, cols] = t
    parts[window][rows, cols] = PARTS.index(solid.part)


def _mirrored(color, rays, normal, light) -> np.ndarray:
    """(n, 3): a bright sky, a dark ground, lit and dark sides, and the sun's spot, in a mirror of this colour."""
    d = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    reflected = d - 2 * (d * normal).sum(1, keepdims=True) * normal
    sky = 0.25 + 1.0 / (1 + np.exp(-6 * reflected[:, 1]))
    sky = sky + 0.3 * np.sin(4 * np.arctan2(reflected[:, 0], reflected[:, 2])) * (1 - reflected[:, 1] ** 2)
    spot = (reflected @ light).clip(0) ** 24
    return color * sky[:, None] + spot[:, None]


def _window(solid: Solid, camera: Camera) -> tuple[slice, slice] | None:
    """The image rectangle that the solid's box projects into; None where it is outside or behind."""
    pose = camera.pose.numpy()
    corners = (solid.center + (_BOX_CORNERS * solid.radii) @ solid.axes.T - pose[:, 3]) @ pose[:, :3]
    z = corners[:, 2]
    if z.min() < _CLOSEST:
        return None
    u, v = corners[:, 0] / z * camera.fx + camera.cx, corners[:, 1] / z * camera.fy + camera.cy
    left, right = max(int(u.min()), 0), min(int(u.max()) + 2, camera.width)
    top, bottom = max(int(v.min()), 0), min(int(v.max()) + 2, camera.height)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _hit_ellipsoid(o, d):
    """Nearest crossing of the unit sphere: solves |o + t d| = 1."""
    a, b, c = (d * d).sum(-1), d @ o, o @ o - 1
    discriminant = b * b - a * c
    hit = discriminant > 0
    return hit, (-b - np.sqrt(np.where(hit, discriminant, 0))) / a


def _hit_cone(o, d):
    """Nearest crossing of the unit cone's side, x^2 + z^2 = (1 - y)^2 with 0 <= y <= 1 (the base is open)."""
    a = d[..., 0] ** 2 + d[..., 2] ** 2 - d[..., 1] ** 2
    a = np.where(np.abs(a) < 1e-6, 1e-6, a)
    b = d[..., 0] * o[0] + d[..., 2] * o[2] + d[..., 1] * (1 - o[1])
    c = o[0] ** 2 + o[2] ** 2 - (1 - o[1]) ** 2
    discriminant = b * b - a * c
    root = np.sqrt(np.where(discriminant > 0, discriminant, 0))
    first, second = (-b - root) / a, (-b + root) / a
    first, second = np.minimum(first, second), np.maximum(first, second)

    def on_side(t):
        y = o[1] + t * d[..., 1]
        return (y >= 0) & (y <= 1) & (t > 0)

    hit_first, hit_second = on_side(first), on_side(second)
    return (discriminant > 0) & (hit_first | hit_second), np.where(hit_first, first, second)


def _hit_box(o, d):
    """Nearest crossing of the cube [-1, 1]^3, by slabs."""
    d = np.where(np.abs(d) < 1e-6, 1e-6, d)
    first, second = (-1 - o) / d, (1 - o) / d
    enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    return enter < leave, enter


def _hit_cylinder(o, d):
    """Nearest crossing of the closed cylinder x^2 + z^2 = 1 with -1 <= y <= 1."""
    a = np.maximum(d[..., 0] ** 2 + d[..., 2] ** 2, 1e-9)
    b = d[..., 0] * o[0] + d[..., 2] * o[2]
    discriminant = b * b - a * (o[0] ** 2 + o[2] ** 2 - 1)
    root = np.sqrt(np.where(discriminant > 0, discriminant, 0))
    rise = np.where(np.abs(d[..., 1]) < 1e-6, 1e-6, d[..., 1])
    low, high = (-1 - o[1]) / rise, (1 - o[1]) / rise
    enter = np.maximum((-b - root) / a, np.minimum(low, high))
    leave = np.minimum((-b + root) / a, np.maximum(low, high))
    return (discriminant > 0) & (enter < leave), enter


_HITS = {"ellipsoid": _hit_ellipsoid, "cone": _hit_cone, "box": _hit_box, "cylinder": _hit_cylinder}


def _gradient(shape: str, point) -> np.ndarray:
    """(n, 3) outward normals, not of unit length, at local points (n, 3) on the solid."""
    if shape == "ellipsoid":
        return point
    if shape == "cone":
        return np.stack([point[:, 0], 1 - point[:, 1], point[:, 2]], 1)
    x, y, z = point.T
    if shape == "cylinder":
        cap = np.abs(y) > x * x + z * z
        return np.stack([np.where(cap, 0, x), np.where(cap, y, 0), np.where(cap, 0, z)], 1)
    face = np.abs(point).argmax(1)[:, None] == np.arange(3)
    return np.where(face, point, 0)


def _surface_color(solid: Solid, point) -> np.ndarray:
    """(n, 3) base colour at local points (n, 3): pattern, then grain."""
    x, y, z = point[:, 0], point[:, 1], point[:, 2]
    s, off = solid.pattern_scale, solid.offset
    color = np.broadcast_to(solid.color, (len(point), 3))
    if solid.pattern == "stripes":
        wave = np.sin(z * 9 * s + 1.5 * np.sin(3 * x + 6 * off) + y * 2)
        color = np.where((wave > 0.45)[:, None], solid.color2, color)
    elif solid.pattern == "patches":
        field_ = noise(x * 0.06 * s + off, z * 0.06 * s + off * 3.1) + noise(y * 0.06 * s + off * 2, z * 0.04 * s + off)
        color = np.where((field_ > 0.2)[:, None], solid.color2, color)
    elif solid.pattern == "sectors":
        color = np.where((np.arctan2(x, z) * 3 / np.pi % 2 < 1)[:, None], color, solid.color2)
    elif solid.pattern == "wood":
        rings = noise(x * 0.35 * s + off, z * 0.35 * s + y * 0.03 + off) + 0.5 * noise(z * 0.05 + off, x * 0.9 * s)
        color = color * (1 + 0.38 * rings)[:, None]
    if solid.grain:
        color = color * (1 + solid.grain * noise(x * 0.16 + off, (y + 0.6 * z) * 0.16 + off * 0.7))[:, None]
    return color
