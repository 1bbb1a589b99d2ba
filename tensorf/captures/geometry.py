"""Where a capture's cameras stand: the choice of its space, and the normalised world that belongs to it.

NumPy float64 throughout; poses are (n, 3, 4) OpenCV camera-to-world.

- Forward-facing (NDC): the mean camera becomes the origin, looking along +z, and 0.75 of the nearest depth becomes 1,
  which is where NDC's near plane stands.
- Bounded box and unbounded space: the point closest to all optical axes becomes the origin and the mean camera distance
  from it becomes 1. The rotation stays, so that the capture's up remains up.

A single camera that stands far away from all others has a wrong pose: it has no say in where the world lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tensorf.captures.views import Lens, Listing
from tensorf.errors import UserError
from tensorf.space import NEAR_MARGIN

_AXIS_LIMIT, _CORNER_LIMIT = 35.0, 75.0  # degrees off the mean axis within which NDC pays
_NDC_LIMIT = 85.0  # degrees; NDC's coordinates run to infinity at 90
_NDC_BOX = ((-1.5, -1.67, -1.0), (1.5, 1.67, 1.0))
_HALF_SIZE = 1.5  # of a box around an opaque capture, if asked for: cameras at distance 1 and some background
_INNER_HALF_SIZES = 0.3, 1.0  # of the inner box of unbounded space: the least, and the most, where no points are known
_INNER_SHARE = 0.9  # of the scene's points that lie in the inner box, if it may be as large
_ENDLESS = 1000.0  # far in unbounded space, in mean camera distances
_OBJECT_HALF_SIZE = 1.5 / 4.03  # Blender's synthetic scenes: object within +-1.5, cameras 4.03 away
_ALIKE_DISTANCE = 1.2  # distances of cameras up to that many times their mean count as equal
_SMALLEST_NEAR = 0.05
_LARGEST_NEAR = 0.45  # in unbounded space, in mean camera distances: plain things have no points, and may stand nearer
_WALK = 0.5  # of the cameras' way to the sides, above which the way ahead is no mere unsteadiness
_MAP = 1e4  # coordinates beyond it are those of maps
_MOST_POINTS = 20_000  # whose depths are looked at
_FOCUS_CONDITION = 0.01  # of the axes' normal matrix; below it they are parallel to about 6 degrees
_FEWEST_POINTS = 50  # of the scene, that tell how large and how near it is
_ASTRAY = 10.0  # times the cameras' median distance from their middle, and the depth: farther off, a pose is wrong
_FEWEST_CAMERAS, _STILL = 10, 1e-5  # that tell what is usual; their median distance, as a share of the largest
_ASTRAY_SHARE = 0.1  # of the cameras; more of them are a part of the capture


@dataclass(frozen=True, eq=False)
class Placement:
    """The fields of Capture that placing decides, as arrays.

    reason: the line that tells why. astray: (n,) of the views, as `astray` gives them.
    """

    space: str
    reason: str
    world_from_capture: np.ndarray
    near: float
    far: float
    box: np.ndarray
    astray: np.ndarray


def place(
    listing: Listing, space: str, bound: float | None, cut_out: bool, points: np.ndarray | None = None
) -> Placement:
    """Chooses the space for the listed views and normalises the world (see the module's docstring).

    space: "auto", "ndc", "box" or "unbounded". bound: half the (inner) box's side in normalised units, None to let the
    scene decide. cut_out: the photos show an object without its background. points: (n, 3) of the scene in the
    capture's coordinates, if some are known. Raises UserError where all cameras stand at one place and where "ndc" is
    asked for a capture that looks back.
    """
    poses = np.stack([view.pose for view in listing.views])
    centres = poses[:, :, 3]
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    farthest = np.abs(centres).max()  # map coordinates are read exactly, others may be rounded to float32
    if spread <= farthest * (1e-9 if farthest > _MAP else 1e-6):
        raise UserError(
            f"{listing.source}: all cameras are at the same place: within {spread:.3g} of each other, {farthest:.3g} "
            "from the origin. The poses carry no parallax, estimate again; if the scene is that small, move the origin "
            "to it"
        )
    far_off = astray(centres, _usual_depth(poses, listing, points))
    all_poses, all_lenses = poses, [view.lens for view in listing.views]
    poses, centres = poses[~far_off], centres[~far_off]
    lenses = [lens for lens, off in zip(all_lenses, far_off, strict=True) if not off]
    seen = seen_depths(poses, lenses, points) if points is not None else np.empty(0)
    known = listing.depths or _depth_range(seen)
    depths = known or _guessed_depths(poses)
    space, reason = _decide(all_poses, all_lenses, ~far_off, known and known[0], cut_out, space, listing)
    if space == "ndc":
        scale = 1 / (NEAR_MARGIN * depths[0])
        similarity = _similarity(scale, mean_pose(poses))
        return Placement(space, reason, similarity, depths[0] * scale, depths[1] * scale, np.array(_NDC_BOX), far_off)
    origin = focus_point(poses, poses[:, :, 2], depths)
    distances = np.linalg.norm(centres - origin, axis=1)
    scale = 1 / distances.mean()
    similarity = _similarity(scale, np.concatenate([np.eye(3), origin[:, None]], axis=1))
    if space == "unbounded":
        half = bound or _inner_half_size(points, origin, scale)
        near = 0.1
        if len(seen) and len(points) >= _FEWEST_POINTS:
            near = float(np.clip(NEAR_MARGIN * scale * np.quantile(seen, 0.002), _SMALLEST_NEAR, _LARGEST_NEAR))
        reason += f"; inner box of half size {half:.2f}, in mean camera distances"
        return Placement(space, reason, similarity, near, _ENDLESS, np.array([[-half] * 3, [half] * 3]), far_off)
    half = bound or (_object_half_size(lenses, scale * distances) if cut_out else _HALF_SIZE)
    # The box is around what pictures show in their middle: of cropped ones, that is not where the axes meet.
    middle = (focus_point(poses, _centre_rays(poses, lenses), depths) - origin) * scale
    box = np.array([middle - half, middle + half])
    told = None if listing.depths is None else (listing.depths[0] * scale, listing.depths[1] * scale)
    near, far = _box_depths(transformed(poses, similarity), box, told)
    return Placement(space, reason, similarity, near, far, box, far_off)


def _usual_depth(poses: np.ndarray, listing: Listing, points: np.ndarray | None) -> float | None:
    """The depth at which views usually see the scene, in the capture's units; None where nothing tells it."""
    seen = seen_depths(poses, [view.lens for view in listing.views], points) if points is not None else np.empty(0)
    if len(seen):
        return float(np.median(seen))
    return None if listing.depths is None else 2 / (1 / listing.depths[0] + 1 / listing.depths[1])


def off_middle(centres: np.ndarray) -> np.ndarray:
    """(n,) distances of camera centres (n, 3) from their median position, in units of the median distance.

    Ones where most cameras stand at one and the same place.
    """
    away = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    usual = np.median(away)
    return away / usual if usual > 1e-9 * away.max() else np.ones(len(away))


def astray(centres: np.ndarray, depth: float | None) -> np.ndarray:
    """(n,) bool: which of the cameras at `centres` (n, 3) stand so far off that their poses must be wrong.

    depth: at which cameras usually see the scene, where something tells it: a camera within ten times that may well
    show the same scene from afar. Without it nobody is astray among few cameras, or where most have hardly moved. Those
    astray are few: where many stand far off, such as in a video that begins with a long rest, nobody is.
    """
    away = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    usual = float(np.median(away))
    if depth is None and (len(centres) < _FEWEST_CAMERAS or usual <= _STILL * away.max()):
        return np.zeros(len(centres), dtype=bool)
    far_off = away > _ASTRAY * max(usual, depth or 0.0)
    return far_off if far_off.sum() <= max(1, _ASTRAY_SHARE * len(centres)) else np.zeros(len(centres), dtype=bool)


def seen_depths(poses: np.ndarray, lenses: list[Lens], points: np.ndarray) -> np.ndarray:
    """(observations,) depths along the optical axes at which views have `points` (n, 3) in their picture.

    Of many points a random choice, the same each time: one depth is kept for each point and view.
    """
    if len(points) > _MOST_POINTS:
        points = np.random.default_rng(0).choice(points, _MOST_POINTS, replace=False)
    depths = []
    for pose, lens in zip(poses, lenses, strict=True):
        x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).T
        ahead = np.maximum(z, 1e-12)
        u, v = x / ahead * lens.fx + lens.cx, y / ahead * lens.fy + lens.cy
        depths.append(z[(z > 0) & (u > 0) & (u < lens.width) & (v > 0) & (v < lens.height)])
    return np.concatenate(depths)


def _depth_range(depths: np.ndarray) -> tuple[float, float] | None:
    """(near, far) that leave out stray points; None where there are too few."""
    if len(depths) < 200:
        return None
    near, far = np.quantile(depths, (0.005, 0.995))
    return float(near), float(max(far, 2 * near))


def _inner_half_size(points: np.ndarray | None, origin: np.ndarray, scale: float) -> float:
    """Half the side of the cube around the origin that holds what most of the points show."""
    least, most = _INNER_HALF_SIZES
    if points is None or len(points) < _FEWEST_POINTS:
        return most
    return float(np.quantile(np.abs(points - origin).max(1) * scale, _INNER_SHARE).clip(least, most))


def mean_pose(poses: np.ndarray) -> np.ndarray:
    """(3, 4) pose at the mean position, looking along the mean forward axis, mean down kept as down; determinant +1.

    Where the axes cancel out (cameras all around), the first camera's rotation.
    """
    position = poses[:, :, 3].mean(0)
    forward, down = poses[:, :, 2].mean(0), poses[:, :, 1].mean(0)
    if np.linalg.norm(forward) < 1e-3 or np.linalg.norm(np.cross(down, forward)) < 1e-3 * np.linalg.norm(forward):
        return np.concatenate([poses[0, :, :3], position[:, None]], axis=1)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(down, forward)  # y x z = x: right-handed
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, position], axis=1)


def focus_point(poses: np.ndarray, rays: np.ndarray, depths: tuple[float, float]) -> np.ndarray:
    """(3,) the point closest to a ray (n, 3), of length 1, from each camera (least squares).

    Nearly parallel rays have no such point: then the one ahead of the mean camera at the harmonic mean of `depths`, or,
    where the cameras look both ways along a line, their mean position.
    """
    centres = poses[:, :, 3]
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]  # projections onto the planes across each ray
    normal = across.mean(0)
    if np.linalg.eigvalsh(normal)[0] > _FOCUS_CONDITION:
        return np.linalg.solve(normal, (across @ centres[:, :, None]).mean(0)[:, 0])
    mean, ray = mean_pose(poses), rays.mean(0)
    if np.linalg.norm(ray) < 0.5:
        return centres.mean(0)
    return mean[:, 3] + ray / (ray @ mean[:, 2]) * 2 / (1 / depths[0] + 1 / depths[1])


def _centre_rays(poses: np.ndarray, lenses: list[Lens]) -> np.ndarray:
    """(n, 3) of length 1, through the middle of each picture: the optical axis, unless it was cropped or shifted."""
    local = [((n.width / 2 - n.cx) / n.fx, (n.height / 2 - n.cy) / n.fy, 1.0) for n in lenses]
    rays = np.einsum("nij,nj->ni", poses[:, :, :3], np.array(local))
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def transformed(poses: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """(n, 3, 4) poses in the world that `similarity` (4, 4) leads to; rotations stay rotations."""
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    rotations = (similarity[:3, :3] / scale) @ poses[:, :, :3]
    positions = poses[:, :, 3] @ similarity[:3, :3].T + similarity[:3, 3]
    return np.concatenate([rotations, positions[:, :, None]], axis=2)


def _similarity(scale: float, origin: np.ndarray) -> np.ndarray:
    """(4, 4) that makes the pose `origin` (3, 4) the identity and then scales."""
    rotation = origin[:, :3].T
    similarity = np.eye(4)
    similarity[:3, :3] = scale * rotation
    similarity[:3, 3] = -scale * rotation @ origin[:, 3]
    return similarity


def _guessed_depths(poses: np.ndarray) -> tuple[float, float]:
    """(near, far) for a capture that tells neither: 1.5 and 30 times the farthest camera's distance from the mean.

    People step sideways by about half the distance to what they photograph. Too near a plane wastes some resolution,
    too far a one cuts the scene off; 1.5 also keeps every camera behind the plane at 0.75 of it. Of people who walk
    forward it says nothing (`_decide`).
    """
    centres = poses[:, :, 3]
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return 1.5 * spread, 30 * spread


def _decide(poses, lenses, placing, near, cut_out, space, listing) -> tuple[str, str]:
    """(the space, the reason as a line). placing: (n,) bool, which views place the world; near: the nearest depth, None
    where nothing tells it.
    """
    mean = mean_pose(poses[placing])
    axes = _degrees_off(poses[:, :, 2], mean[:, 2])
    rays = np.stack([_corner_rays(lens) @ pose[:, :3].T for lens, pose in zip(lenses, poses, strict=True)])
    corners = _degrees_off(rays.reshape(-1, 3), mean[:, 2])
    offsets = poses[:, :, 3] - mean[:, 3]
    ahead = offsets @ mean[:, 2]
    if space == "ndc":
        if corners > _NDC_LIMIT:
            raise UserError(
                f"{listing.source}: rays point up to {corners:.0f} degrees off the cameras' mean axis, which NDC "
                "cannot hold; use space=unbounded"
            )
        return space, "forward-facing (NDC), as asked"
    if space != "auto":
        return space, {"box": "bounded box, as asked", "unbounded": "unbounded, as asked"}[space]
    if cut_out:
        return "box", "bounded box: the photos show an object cut out of its background"
    if axes > _AXIS_LIMIT:
        return "unbounded", f"unbounded: cameras look up to {axes:.0f} degrees off their mean axis"
    if corners > _CORNER_LIMIT:
        return "unbounded", f"unbounded: image corners look up to {corners:.0f} degrees off the cameras' mean axis"
    aside = offsets - ahead[:, None] * mean[:, 2]
    if near is None and np.linalg.norm(ahead[placing]) > _WALK * np.linalg.norm(aside[placing]):
        return "unbounded", "unbounded: cameras move forward, and neither file nor photos tell how near the scene is"
    if near is not None and ahead.max() >= NEAR_MARGIN * near:
        return "unbounded", "unbounded: a camera stands ahead of the near plane"
    return "ndc", f"forward-facing (NDC): all cameras look within {axes:.0f} degrees of their mean axis"


def _degrees_off(directions: np.ndarray, axis: np.ndarray) -> float:
    """The largest angle between `directions` (n, 3) and the unit vector `axis`."""
    cosines = directions @ axis / np.linalg.norm(directions, axis=1)
    return float(np.degrees(np.arccos(cosines.clip(-1, 1)).max()))


def _corner_rays(lens: Lens) -> np.ndarray:
    """(4, 3) camera-space directions through the image's corners."""
    u, v = np.meshgrid([-lens.cx / lens.fx, (lens.width - lens.cx) / lens.fx], [0.0, 1.0])
    v = (v * lens.height - lens.cy) / lens.fy
    return np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)


def _object_half_size(lenses: list[Lens], distances: np.ndarray) -> float:
    """What the widest lens sees at the usual distance, and no less than the box of Blender's synthetic scenes.

    distances (n,): of the cameras, their mean being 1. With close-ups, which show parts, the farther quarter's counts.
    """
    width = max(max(lens.width / lens.fx, lens.height / lens.fy) / 2 for lens in lenses)
    far = float(np.quantile(distances, 0.75))
    return max(_OBJECT_HALF_SIZE, width * (far if far > _ALIKE_DISTANCE else 1.0))


def _box_depths(poses: np.ndarray, box: np.ndarray, known: tuple[float, float] | None) -> tuple[float, float]:
    """(near, far): the depths of the box's corners over all cameras, near at least 0.05 (cameras inside the box).

    Depths `known` from the capture narrow that, with a margin of a quarter on either side.
    """
    corners = np.stack(np.meshgrid(*box.T, indexing="ij"), axis=-1).reshape(-1, 3)
    depths = np.einsum("nci,ni->nc", corners[None] - poses[:, None, :, 3], poses[:, :, 2])
    near, far = max(depths.min(), _SMALLEST_NEAR), depths.max()
    if known is not None and 1.25 * known[1] > max(near, NEAR_MARGIN * known[0]):
        near, far = max(near, NEAR_MARGIN * known[0]), min(far, 1.25 * known[1])
    return float(near), float(max(far, 2 * near))
