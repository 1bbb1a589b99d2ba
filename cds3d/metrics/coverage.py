"""Parts of a scene that hardly any photo shows: a field can only guess them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.metrics.consistency import project, sampled
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.renderable import Renderable
from tensorf.space import Space

_FEW = 2  # photos: depth comes from two
_WIDTH, _MOST_VIEWS = 64, 100  # pixels of the training views' renders; of more views they are still smaller
_LEAST_WIDTH = 24
_MOST_HELD_OUT, _PLACES = 12, 256  # photos that are looked at, and pixels of their width, evenly spread
_HIDDEN = 0.07  # relative: what lies that much farther than a camera sees is hidden from it
_SOLID = 0.5  # opacity from which on a pixel shows an object; around it is nothing that a photo could show


@dataclass(frozen=True)
class RarelySeen:
    """What held-out photos show and fewer than two training photos do.

    share: of the held-out photos' pixels, in [0, 1]. error: their share of the squared error, in [0, 1]. photo: name of
    the held-out photo that has most of that error.
    """

    share: float
    error: float
    photo: str


@torch.no_grad()
def rarely_seen(field: Renderable, capture: Capture) -> RarelySeen | None:
    """Find those parts by the field's own depths; None where no photo is held out, or without error.

    Where the field is wrong about depth, so is this: it tells parts, not pixels.
    """
    if not capture.test:
        return None
    small = round(_WIDTH * min(1.0, (_MOST_VIEWS / len(capture.train)) ** 0.5))

    def seen(camera: Camera) -> tuple[Camera, dict[str, Tensor]]:
        return camera, {key: value.cpu() for key, value in field.render(camera).items()}

    def resized(camera: Camera) -> Camera:
        width = min(camera.width, max(_LEAST_WIDTH, small))
        return camera.resized(width, max(1, round(camera.height * width / camera.width)))

    space = field.space.to("cpu")
    others = [seen(resized(capture.cameras[i])) for i in capture.train]
    rare, counted, error, rare_errors = 0, 0, 0.0, {}
    for i in capture.test[:: math.ceil(len(capture.test) / _MOST_HELD_OUT)]:
        camera, view = seen(capture.cameras[i])
        every = math.ceil(camera.width / _PLACES)
        some = slice(None, None, every), slice(None, None, every)
        few = shown_by(space, space.points(camera, view["depth"])[some], others) < _FEW
        if space.kind == "box":
            few &= view["opacity"][some] > _SOLID
        squared = (view["color"].clamp(0, 1) - capture.images[i].float() / 255).square().mean(-1)[some]
        counts = torch.ones_like(few) if capture.masks is None else capture.masks[i][some]
        rare, counted = rare + int((few & counts).sum()), counted + int(counts.sum())
        error += float(squared[counts].sum())
        rare_errors[capture.image_names[i]] = float(squared[few & counts].sum())
    if error == 0:
        return None
    return RarelySeen(rare / counted, sum(rare_errors.values()) / error, max(rare_errors, key=rare_errors.get))


def shown_by(space: Space, points: Tensor, others: list[tuple[Camera, dict[str, Tensor]]]) -> Tensor:
    """(H, W) int64: how many views show world points (H, W, 3).

    others: cameras, each with what `Renderable.render` gives for it. A point is shown if it is in the picture, and
    nothing stands before it.
    """
    count = torch.zeros(points.shape[:2], dtype=torch.int64)
    for other, view in others:
        place, away = project(space, other, points)
        inside = (place.abs() < 1).all(-1) & (away > 0)
        surface = sampled(view["depth"][..., None], place)[..., 0]
        count += inside & (away < (1 + _HIDDEN) * surface)
    return count
