"""load_capture: find the format, read the views, place the world, load the photos, split -> Capture."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.captures import matching
from tensorf.captures.colmap import find_models, read_colmap
from tensorf.captures.geometry import mean_pose, off_middle, place, transformed
from tensorf.captures.images import (
    flat_background,
    is_cut_out,
    leave_out_other_orientation,
    load_images,
    quarter_turns,
)
from tensorf.captures.llff import is_llff, read_llff
from tensorf.captures.nsvf import is_nsvf, read_nsvf
from tensorf.captures.sources import name_of
from tensorf.captures.transforms import is_transforms, read_transforms
from tensorf.captures.views import Listing, View, turned_pose
from tensorf.errors import UserError
from tensorf.precision import full_precision
from tensorf.untrusted import require_inside

log = logging.getLogger("tensorf")

TEST_EVERY = 8  # views, of which one is held out


@dataclass(frozen=True, eq=False)
class Capture:
    """Photos with poses in a normalised world (`geometry.py` says which), ready to train on.

    name: the folder's name. cameras: n of them, all of one (width, height); images: (n, height, width, 3) uint8 RGB.
    train, test: disjoint indices; where the capture leaves views out of both, those were not loaded.
    near, far: depths along the optical axis, world units. space: "ndc", "box" or "unbounded" (`tensorf.space`).
    background: of an object cut out of it, "white" or "black"; for all other captures "black". box: (2, 3) low and
    high corners, world units: of the box or the inner box, or of NDC. reference: (3, 4) pose of the mean camera, NDC's
    reference camera, right-handed.
    world_from_capture: (4, 4) float64, the similarity that took the capture's own coordinates to the world's.
    sightings: (views (m,) int64, points (m, 3) world units): which training views show which points of the scene. Each
    triangulated point stands twice in a row, once for each of its two views. None if the photos were not matched, or
    disagree with the poses.
    masks: (n, height, width) bool, True where a photo counts: nothing else of it is trained on, or measured; None where
    all of it does.
    turns: by how many quarter turns, clockwise, all photos were turned upright, and their cameras with them. Poses in
    the capture's own coordinates are those of the photos as stored.

    Raises ValueError where these do not fit together, and where there is no training view. Captures are equal if they
    are one and the same object.
    """

    name: str
    root: Path
    cameras: list[Camera]
    images: Tensor
    image_names: list[str]
    train: list[int]
    test: list[int]
    near: float
    far: float
    space: str
    background: str
    box: Tensor
    reference: Tensor
    world_from_capture: Tensor
    sightings: tuple[Tensor, Tensor] | None = None
    masks: Tensor | None = None
    turns: int = 0

    def __post_init__(self):
        images, masks = self.images, self.masks
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
            raise ValueError(f"images of {_described(images)} have to be uint8 of (n, height, width, 3), 0 to 255")
        count, height, width, _ = images.shape
        if not len(self.cameras) == len(self.image_names) == count:
            raise ValueError(
                f"{count} images need as many cameras and image_names, not {len(self.cameras)} and "
                f"{len(self.image_names)}"
            )
        for i, camera in enumerate(self.cameras):
            if (camera.width, camera.height) != (width, height):
                raise ValueError(
                    f"camera {i} is for {camera.width}x{camera.height} pixels, but the images have {width}x{height}: "
                    "Camera.resized gives one for them"
                )
        if masks is not None and (masks.dtype != torch.bool or masks.shape != images.shape[:3]):
            raise ValueError(f"masks of {_described(masks)} have to be bool of {tuple(images.shape[:3])}")
        for name, views in (("train", self.train), ("test", self.test)):
            if strangers := [i for i in views if not 0 <= i < count]:
                raise ValueError(f"{name} names view {strangers[0]}, but the {count} views are 0 to {count - 1}")
        if not self.train:
            raise ValueError("train=[] has to name at least one view to train on")

    def camera_at(self, pose: Tensor | np.ndarray, like: Camera | None = None) -> Camera:
        """A camera in the world, where the field is, from a pose in the capture's own coordinates.

        pose: (3, 4) or (4, 4), camera to world, with OpenCV's axes (x right, y down, z forward), as transforms.json or
        COLMAP mean it once their axes are OpenCV's. like: whose intrinsics and size it has. Without it, the pose is one
        of a photo as stored: the camera has the first view's intrinsics and size, and is turned upright as the views
        are. The rotation stays a rotation: `world_from_capture @ pose` would scale it. Raises ValueError for another
        shape, and for what is no rotation.
        """
        pose = torch.as_tensor(pose).detach().cpu().double().numpy()
        if pose.shape not in ((3, 4), (4, 4)):
            raise ValueError(f"pose of shape {pose.shape} has to be (3, 4) or (4, 4), camera to world")
        moved = transformed(pose[None, :3], self.world_from_capture.double().numpy())[0]
        if like is not None:
            return like.with_pose(_tensor(moved))
        return self.cameras[0].turned(-self.turns).with_pose(_tensor(moved)).turned(self.turns)

    def mask(self, i: int) -> Tensor | None:
        """(height, width) bool: where photo `i` counts; None where all of it does."""
        return None if self.masks is None else self.masks[i]

    @property
    def forward_facing(self) -> bool:
        """Whether its space is NDC."""
        return self.space == "ndc"


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of {tuple(tensor.shape)}"


@full_precision
def load_capture(
    root: Path,
    *,
    width: int | None = None,
    space: str = "auto",
    bound: float | None = None,
    order: str = "auto",
    check: bool = True,
    test_every: int = TEST_EVERY,
    white_background: bool = True,
    outside: bool = False,
    show_progress: bool = False,
) -> Capture:
    """Loads the capture in `root`, whatever its format.

    width: of the images in pixels, aspect kept; None or more than the photos have: the photos' own.
    space: "auto" (decide by the cameras), "ndc", "box" or "unbounded". bound: half the side of the box, or of the inner
    box, where cameras stand at a mean distance of 1. order: of LLFF's photos, "auto" (the photos decide), "text" or
    "number". check: match the photos, warn if they do not fit the poses, and place the scene by what they show.
    test_every: every so many views one is held out, unless the capture names its split; 0 for none.
    white_background: transparency becomes white, else black. outside: photos may lie outside of `root`, where links or
    names with ../ in the capture's files lead; otherwise that is an error. show_progress: count photos on stderr.
    Raises UserError for whatever is wrong with the capture or the options.
    """
    root = Path(root)
    _check_options(width, space, bound, order, test_every)
    listing = _read(root, width, order, check, outside)
    if not outside:
        require_inside((path for view in listing.views for path in (view.path, view.mask) if path), root)
    listing = leave_out_other_orientation(listing)
    train, test = _split(listing, test_every)
    transparent = is_cut_out([listing.views[i] for i in train])
    points, seen_by = _matched_points(listing, train, check)
    turns = quarter_turns(listing.views)
    images, lenses, masks = load_images(listing.views, width, white_background, show_progress, turns)
    if turns:
        log.info("%s: photos are turned upright, as their EXIF data say, and their cameras with them", root)
        listing = replace(listing, views=[_turned(view, turns) for view in listing.views])
    background = ("white" if white_background else "black") if transparent else flat_background(images)
    placement = place(listing, space, bound, background is not None, points)
    log.info("%s: %d views, %s", root, len(listing.views), placement.reason)
    if bound is not None and placement.space == "ndc":
        log.warning("%s: bound=%g is not used: NDC has no such box; space=unbounded has one", root, bound)
    _warn_of_astray(listing, placement.astray)
    poses = transformed(np.stack([view.pose for view in listing.views]), placement.world_from_capture)
    cameras = [
        Camera(_tensor(pose), lens.fx, lens.fy, lens.cx, lens.cy, int(lens.width), int(lens.height))
        for pose, lens in zip(poses, lenses, strict=True)
    ]
    return Capture(
        name=name_of(root.resolve()),
        root=root,
        cameras=cameras,
        images=images,
        image_names=[view.name for view in listing.views],
        train=train,
        test=test,
        near=placement.near,
        far=placement.far,
        space=placement.space,
        background=background or "black",
        box=_tensor(placement.box),
        reference=_tensor(mean_pose(poses[~placement.astray])),
        world_from_capture=torch.from_numpy(placement.world_from_capture),
        sightings=_sightings(points, seen_by, cameras, placement.world_from_capture),
        masks=masks,
        turns=turns,
    )


def _turned(view: View, turns: int) -> View:
    """The view with its pose and lens turned by so many quarter turns clockwise; its file is as it was."""
    for _ in range(turns):
        view = replace(view, pose=turned_pose(view.pose), lens=view.lens.turned())
    return view


def _sightings(
    points: np.ndarray | None, seen_by: np.ndarray | None, cameras: list[Camera], similarity: np.ndarray
) -> tuple[Tensor, Tensor] | None:
    """`Capture.sightings` from points (n, 3) in the capture's coordinates and the two views (n, 2) that show each.

    Points that lie outside the undistorted pinhole pictures are left out.
    """
    if points is None or seen_by is None:
        return None
    points = _tensor(points @ similarity[:3, :3].T + similarity[:3, 3]).repeat_interleave(2, 0)
    views = torch.from_numpy(seen_by).flatten()
    shown = torch.zeros(len(views), dtype=torch.bool)
    for i in views.unique().tolist():
        mine = views == i
        shown[mine] = cameras[i].shows(points[mine])
    shown = shown.view(-1, 2).all(1).repeat_interleave(2)
    return (views[shown], points[shown]) if shown.any() else None


def _matched_points(listing: Listing, train: list[int], check: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(points (n, 3) of the scene in the capture's coordinates, the two views (n, 2) that show each).

    They come from matches of the training photos: what a held-out photo shows must not help the training. Where there
    are no matches, they are the listing's own points, without views. Warns if photos and poses disagree.
    """
    views = [listing.views[i] for i in train]
    fit = matching.fit(views) if check and len(train) > 1 else None
    if fit is not None and fit.unlikely:
        log.warning(
            "%s: photos and poses disagree: %d features matched between neighbouring photos lie %.1f pixels (median, "
            "at %d wide) off where the poses put them; good poses give less than 2. %s Training is of no use before "
            "that is settled",
            listing.source, fit.matches, fit.residual, matching.LONGEST, _likely_cause(listing, views),
        )  # fmt: skip
        return listing.points, None
    for misfit in fit.misfits if fit is not None else ():
        log.warning(
            "%s: %s does not fit its pose, while its neighbours fit theirs: %d features matched with them lie at "
            "least %.1f pixels (median of a pair, at %d wide) off. If it was swapped with another photo or renamed, "
            "undo that; else estimate its pose again, or remove it",
            listing.source, views[misfit.view].name, misfit.matches, misfit.residual, matching.LONGEST,
        )  # fmt: skip
    if fit is None or len(fit.points) == 0:
        return listing.points, None
    return fit.points, np.array(train)[fit.seen_by]


def _warn_of_astray(listing: Listing, astray: np.ndarray) -> None:
    """astray: (n,) of the views, `Placement.astray`."""
    away = off_middle(np.stack([view.pose[:, 3] for view in listing.views]))
    for i in np.flatnonzero(astray):
        log.warning(
            "%s: the camera of %s stands %.3g times as far from the middle of the cameras as they usually do: it has "
            "no say in the scene's place and size. Estimate its pose again, or remove the photo",
            listing.source, listing.views[i].name, away[i],
        )  # fmt: skip


def _likely_cause(listing: Listing, views: list[View]) -> str:
    """A sentence: which of the usual mistakes was made, if without it the views' photos would fit their poses."""
    flip = np.array([1.0, -1.0, -1.0, 1.0])  # from OpenCV's camera axes to OpenGL's, and back
    opengl = listing.source.suffix == ".json"

    def read(written: np.ndarray) -> np.ndarray:
        return written * flip if opengl else written  # either is its own inverse

    def inverted(pose: np.ndarray) -> np.ndarray:
        turned = pose[:, :3].T
        return np.concatenate([turned, -turned @ pose[:, 3:]], axis=1)

    axes = "their camera axes are OpenCV's where the format has OpenGL's, or the other way round: turn y and z around"
    inverse = "they are world-to-camera matrices where the format has camera-to-world: invert them"
    mistakes = [
        (axes, lambda pose: pose * flip),
        (inverse, lambda pose: read(inverted(read(pose)))),
        (f"{inverse}, and then {axes}", lambda pose: read(inverted(read(pose)) * flip)),
    ]
    for mistake, mended in mistakes:
        if matching.fit([replace(view, pose=mended(view.pose)) for view in views]).likely:
            return f"The poses would fit if mended: {mistake}."
    return "Are these the photos that the poses were estimated on, in their order, and the intrinsics for their size?"


def _check_options(width: int | None, space: str, bound: float | None, order: str, test_every: int) -> None:
    if width is not None and width < 1:
        raise UserError(f"width={width} must be at least 1 pixel")
    if space not in ("auto", "ndc", "box", "unbounded"):
        raise UserError(f"space={space} is unknown; use auto, ndc, box or unbounded")
    if order not in ("auto", "text", "number"):
        raise UserError(f"order={order} is unknown; use auto, text or number")
    if bound is not None and not bound > 0:
        raise UserError(f"bound={bound} must be positive")
    if test_every < 0:
        raise UserError(f"test_every={test_every} must not be negative; 0 holds no view out")


def _read(root: Path, width: int | None, order: str, check: bool, outside: bool) -> Listing:
    """The listing by the first format that `root` has a file of."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder of a capture")
    if is_llff(root):
        return read_llff(root, width, order, check, outside)
    if order != "auto":
        log.warning(
            "%s: order=%s is not used: it is for the rows of poses_bounds.npy, which have no names", root, order
        )
    if is_transforms(root):
        return read_transforms(root, width, outside)
    if find_models(root):
        return read_colmap(root, width, outside)
    if is_nsvf(root):
        return read_nsvf(root)
    raise UserError(
        f"{root} is no capture: found neither poses_bounds.npy, transforms.json, transforms_train.json, intrinsics.txt "
        "nor cameras.bin or cameras.txt in it or in its sparse/0, sparse or colmap/sparse/0"
    )


def _split(listing: Listing, test_every: int) -> tuple[list[int], list[int]]:
    """(train, test) indices: as the capture names them, else every `test_every`-th view held out, from the first.

    Held-out views are given back from the end until 2 remain to train on (3 where fewer than `test_every` exist).
    """
    roles = [view.held_out for view in listing.views]
    count = len(roles)
    if any(roles):  # a named split of which no held-out photo exists is no split
        if test_every != TEST_EVERY:
            log.warning("%s: test_every=%d is not used: the capture names its split", listing.source, test_every)
        train, test = [i for i in range(count) if not roles[i]], [i for i in range(count) if roles[i]]
        if len(train) < 2:
            raise UserError(f"{listing.source}: its split leaves {len(train)} views to train on; at least 2 are needed")
        return train, test
    test = list(range(0, count, test_every)) if test_every else []
    least = 3 if count < test_every else 2
    while test and count - len(test) < least:
        test.pop()
    return [i for i in range(count) if i not in test], test


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()
