"""Where an edit may go, as the user says it: `--where`, `mask=`, `box=`, `ball=`, `at=`, and `region=`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from cds3d.commands.named_pictures import by_photo, photo_index, picture_files, read_as_mask
from cds3d.commands.preparing import WAYS
from cds3d.commands.scenes import may_lie_outside
from cds3d.commands.videos import resized_to
from cds3d.guidance.prior import Prior
from cds3d.options import build, positive
from cds3d.subjects.given import in_ball, in_box, point_at, zoomed
from cds3d.subjects.region import RegionConfig
from cds3d.subjects.volume import check_volume, edited_volume
from cds3d.where import word_masks
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.local import cell_centers
from tensorf.renderable import Renderable

log = logging.getLogger("cds3d")

_BALL = 0.15  # radius of a click's ball where none is given, as a share of the distance to the camera


@dataclass(frozen=True)
class CarveConfig:
    """agreement, grow: as `VolumeConfig`'s. ValueError for what makes no sense."""

    agreement: float
    grow: float

    def __post_init__(self):
        check_volume(self.agreement, self.grow)


@dataclass(frozen=True)
class Pointing:
    """What the options say. way: one of `WAYS`, or None if nothing is given. find: whether gradients find the region,
    within the given one if there is one.
    """

    way: str | None
    find: bool
    numbers: tuple[float, ...] = ()  # of box and ball
    click: tuple[float, float, str] = (0.0, 0.0, "")  # u, v, view


def read_pointing(config: DictConfig) -> Pointing:
    """Check what can be checked before the capture is read. UserError, which names the option."""
    given = [way for way in WAYS if config.get(way) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} both say where the edit may go: give one of {', '.join(WAYS)}")
    if config.region not in (None, "auto", "given", "both"):
        raise UserError(f"region={config.region} is unknown; use auto, given or both")
    if config.region in ("given", "both") and not given:
        raise UserError(f"region={config.region} needs one of --where, mask=, box=, ball= and at=, which say where")
    if config.radius is not None:
        positive(config, "radius")
        if config.at is None:
            raise UserError("radius= works only with a click: give at=u,v,view too")
    build(CarveConfig, config.carve, group="carve")
    if config.zoom != 0:
        positive(config, "zoom")
    if not given or config.region == "auto":
        return Pointing(None, True)
    way, find = given[0], config.region == "both"
    if way == "where" and not str(config.where).strip():
        raise UserError('--where is empty: say what the edit may change, as in --where "the flower"')
    if way == "where" and not config.edit.region.mask_threshold > 0:
        raise UserError("--where finds masks by edit.region.mask_threshold, which has to be above 0")
    if way == "mask":
        picture_files(Path(config.mask), f"mask={config.mask}", may_lie_outside(config))
    if way == "box":
        return Pointing(way, find, numbers=_box(config.box))
    if way == "ball":
        return Pointing(way, find, numbers=_ball(config.ball))
    if way == "at":
        return Pointing(way, find, click=_click(config.at))
    return Pointing(way, find)


def given_region(
    config: DictConfig, pointing: Pointing, capture: Capture, source: Renderable, views: Sequence[Camera], prior: Prior
) -> Tensor | None:
    """(z, y, x) bool in the cells of the source's occupancy, or None where nothing is given.

    views: the training cameras at the editing size. UserError for what does not fit the scene.
    """
    if pointing.way is None:
        return None
    if not hasattr(source, "occupancy"):
        raise UserError(f"{pointing.way}= is for TensoRF's fields, and this one is a {type(source).__name__}")
    if pointing.way == "box":
        low, high = torch.tensor(pointing.numbers).view(2, 3)
        region, what = in_box(source, low, high), f"box={config.box}"
    elif pointing.way == "ball":
        *middle, radius = pointing.numbers
        region, what = in_ball(source, torch.tensor(middle), radius), f"ball={config.ball}"
    elif pointing.way == "at":
        region, what = _around_click(config, pointing, capture, source), f"at={config.at}"
    else:
        region, what = _carved(config, pointing, capture, source, views, prior)
    if not (region & source.occupancy).any():
        if pointing.way == "at":  # a surface is there: the ball is smaller than the cells
            raise UserError(f"{what}: the ball is too small, no cell of the scene lies in it: give a larger radius=")
        raise UserError(f"{what} has nothing of the scene in it: {_extent(source)}")
    share = float((region & source.occupancy).sum() / source.occupancy.sum())
    log.info("%s: the edit may change %.2g%% of what is there", what, 100 * share)
    return region


def zoomed_views(config: DictConfig, source: Renderable, views: Sequence[Camera], region: Tensor) -> Sequence[Camera]:
    """The views that an edit of a given region is seen through. UserError if none sees it."""
    if config.zoom == 0:
        return views
    crops = zoomed(views, source, region, config.zoom)
    if not crops:
        raise UserError(
            "no photo shows the given region: the edit has nothing to be seen by (zoom=0 takes whole views)"
        )
    log.info(
        "%d of %d views show the region; they are cropped around it (zoom=%g)", len(crops), len(views), config.zoom
    )
    return crops


def _box(value) -> tuple[float, ...]:
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 6:
        raise UserError(f"box={value} has to be six numbers: box=x0,y0,z0,x1,y1,z1")
    if any(not low < high for low, high in zip(numbers[:3], numbers[3:], strict=True)):
        raise UserError(f"box={value} has no room inside: each of x0, y0, z0 has to be below x1, y1, z1")
    return tuple(numbers)


def _ball(value) -> tuple[float, ...]:
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 4 or not numbers[3] > 0:
        raise UserError(f"ball={value} has to be a place and a radius above 0: ball=x,y,z,radius")
    return tuple(numbers)


def _click(value) -> tuple[float, float, str]:
    parts = _parts(value)
    place = _numbers(parts[:2]) if len(parts) == 3 else None
    if place is None:
        raise UserError(f"at={value} has to be u,v,view, as in at=0.5,0.4,12 or at=0.5,0.4,IMG_0012")
    if not all(0 <= p <= 1 for p in place):
        raise UserError(f"at={value}: u and v go from 0 (left, top) to 1 (right, bottom) of the photo")
    return place[0], place[1], parts[2]


def _parts(value) -> list[str]:
    items = value if OmegaConf.is_list(value) or isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items]


def _numbers(value) -> list[float] | None:
    """Finite numbers, or None."""
    try:
        numbers = [float(part) for part in _parts(value)]
    except ValueError:
        return None
    return numbers if all(math.isfinite(n) for n in numbers) else None


def _around_click(config: DictConfig, pointing: Pointing, capture: Capture, source: Renderable) -> Tensor:
    u, v, view = pointing.click
    index, photos = photo_index(capture, view), len(capture.image_names)
    if index is None and view.isdecimal() and int(view) < photos:
        index = int(view)
    if index is None:
        raise UserError(
            f"at={config.at}: there is no photo {view}; give a name, such as {Path(capture.image_names[0]).stem}, or "
            f"0 to {photos - 1}"
        )
    camera = resized_to(capture.cameras[index], config.edit.width)
    middle = point_at(source, camera, u * camera.width, v * camera.height)
    if middle is None:
        raise UserError(f"at={config.at} hits nothing: the field is empty there")
    radius = config.radius or _BALL * float((middle - camera.position).norm())
    told = ", ".join(f"{x:.3g}" for x in middle.tolist())
    log.info("at=%s: a ball of radius %.3g around (%s); radius= makes it larger or smaller", config.at, radius, told)
    return in_ball(source, middle, radius)


def _carved(config, pointing, capture, source, views, prior) -> tuple[Tensor, str]:
    """The region of masks, and of what it is."""
    carve = build(CarveConfig, config.carve, group="carve")
    if pointing.way == "where":
        what = f'--where "{config.where}"'
        seen = word_masks(source, views, prior, str(config.where), build(RegionConfig, config.edit.region), config.seed)
    else:
        what = f"mask={config.mask}"
        seen = []
        files = picture_files(Path(config.mask), what, may_lie_outside(config))
        for index, file in by_photo(files, capture, what).items():
            camera = resized_to(capture.cameras[index], config.edit.width)
            seen.append((source.view(camera), _mask(file, camera, what).to(source.device)))
        if not any(float(mask.max()) > 0 for _, mask in seen):
            raise UserError(f"{what}: all masks are black: white is where the edit may go")
    grow = next((config.edit[k].grow for k in ("volume", "fit") if k in config.edit), carve.grow)
    region = edited_volume(source, seen, carve.agreement, grow, one_subject=pointing.way == "where")
    if not region.any():
        raise UserError(
            f"{what}: the masks of the views do not overlap in space: lower carve.agreement, or check that masks "
            "fit the photos"
        )
    return region, what


def _mask(file: Path, camera: Camera, option: str) -> Tensor:
    """(H, W) in [0, 1] at the camera's size."""
    picture = read_as_mask(file, camera.width, camera.height, option)
    small = picture.resize((camera.width, camera.height), Image.BOX)
    return torch.from_numpy(np.asarray(small).copy()).float() / 255


def _extent(source: Renderable) -> str:
    """Where the scene is, in words."""
    centers = source.space.world(cell_centers(source.occupancy.shape, source.device)[source.occupancy.flatten()])
    centers = centers[:: max(1, len(centers) // 1_000_000)]  # quantile() takes no more than 16 million
    low, high = (centers.quantile(q, dim=0) for q in (0.02, 0.98))
    return "the scene lies between ({}) and ({}); a click in view.py, or at=, tells where a thing is".format(
        *(", ".join(f"{x:.3g}" for x in c.tolist()) for c in (low, high))
    )
