"""load_capture: find the format, read the views, place the world, load the photos, split -> Capture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.captures import llff
from tensorf.captures.colmap import find_models, read_colmap
from tensorf.captures.geometry import mean_pose, place, transformed
from tensorf.captures.images import load_images
from tensorf.captures.pictures import is_transparent
from tensorf.captures.transforms import is_transforms, read_transforms
from tensorf.captures.views import Listing
from tensorf.errors import UserError

log = logging.getLogger("tensorf")


@dataclass(frozen=True)
class Capture:
    """Photos with poses in a normalised world (`geometry.py` says which), ready to train on.

    name: the folder's name. cameras: n of them, all of one (width, height); images: (n, height, width, 3) uint8 RGB.
    train, test: disjoint indices; where the capture leaves views out of both, those were not loaded.
    near, far: depths along the optical axis, world units. forward_facing: True for NDC, False for the bounded box.
    background: "white" for photos with transparency, else "black". box: (2, 3) low and high corners, world units (for
    forward-facing captures: NDC's). reference: (3, 4) pose of the mean camera, NDC's reference camera, right-handed.
    world_from_capture: (4, 4) the similarity that took the capture's own coordinates to the world's.
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
    forward_facing: bool
    background: str
    box: Tensor
    reference: Tensor
    world_from_capture: Tensor


def load_capture(
    root: Path,
    *,
    width: int | None = None,
    space: str = "auto",
    bound: float | None = None,
    test_every: int = 8,
    white_background: bool = True,
    show_progress: bool = False,
) -> Capture:
    """Loads the capture in `root`, whatever its format.

    width: of the images in pixels, aspect kept; None or more than the photos have: the photos' own.
    space: "auto" (decide by the cameras), "ndc" or "box". bound: half the box's side, where cameras stand at a mean
    distance of 1. test_every: every so many views one is held out, unless the capture names its split; 0 for none.
    white_background: transparency becomes white, else black. show_progress: count photos on stderr.
    Raises UserError for whatever is wrong with the capture or the options.
    """
    root = Path(root)
    _check_options(width, space, bound, test_every)
    listing = _read(root, width)
    transparent = is_transparent(listing.views[0].path)
    placement = place(listing, space, bound, transparent)
    log.info("%s: %d views, %s", root, len(listing.views), placement.reason)
    train, test = _split(listing, test_every)
    images, lenses = load_images(listing.views, width, white_background, show_progress)
    poses = transformed(np.stack([view.pose for view in listing.views]), placement.world_from_capture)
    cameras = [
        Camera(_tensor(pose), lens.fx, lens.fy, lens.cx, lens.cy, int(lens.width), int(lens.height))
        for pose, lens in zip(poses, lenses, strict=True)
    ]
    return Capture(
        name=root.resolve().name,
        root=root,
        cameras=cameras,
        images=images,
        image_names=[view.name for view in listing.views],
        train=train,
        test=test,
        near=placement.near,
        far=placement.far,
        forward_facing=placement.forward_facing,
        background="white" if transparent and white_background else "black",
        box=_tensor(placement.box),
        reference=_tensor(mean_pose(poses)),
        world_from_capture=_tensor(placement.world_from_capture),
    )


def _check_options(width: int | None, space: str, bound: float | None, test_every: int) -> None:
    if width is not None and width < 1:
        raise UserError(f"width={width} must be at least 1 pixel")
    if space not in ("auto", "ndc", "box"):
        raise UserError(f"space={space} is unknown; use auto, ndc or box")
    if bound is not None and not bound > 0:
        raise UserError(f"bound={bound} must be positive")
    if test_every < 0:
        raise UserError(f"test_every={test_every} must not be negative; 0 holds no view out")


def _read(root: Path, width: int | None) -> Listing:
    """The listing by the first format that `root` has a file of."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder of a capture")
    if (root / llff.FILE_NAME).is_file():
        return llff.read_llff(root, width)
    if is_transforms(root):
        return read_transforms(root)
    if find_models(root):
        return read_colmap(root, width)
    raise UserError(
        f"{root} is no capture: found neither poses_bounds.npy, transforms.json, transforms_train.json "
        "nor cameras.bin or cameras.txt in sparse/0, sparse or colmap/sparse/0"
    )


def _split(listing: Listing, test_every: int) -> tuple[list[int], list[int]]:
    """(train, test) indices: as the capture names them, else every `test_every`-th view held out, from the first.

    Held-out views are given back from the end until 2 remain to train on (3 where fewer than `test_every` exist).
    """
    roles = [view.held_out for view in listing.views]
    count = len(roles)
    if any(roles):  # a named split of which no held-out photo exists is no split
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
