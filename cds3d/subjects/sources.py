"""The frozen source of a field's edit, as its cameras see it: made once a camera, and the next one meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cds3d.guidance.prior import CELL, Prior
from cds3d.threads import beside
from tensorf.cameras import Camera
from tensorf.renderable import FastView, Renderable

_AHEAD = 2  # steps whose views are made ahead, each in a thread of its own


@dataclass(frozen=True)
class SourceView:
    """What is made once a camera: the prepared view, the source's image (H, W, 3), its latent (1, C, h, w)."""

    view: FastView
    image: Tensor
    latent: Tensor


@torch.no_grad()
def source_view(source: Renderable, camera: Camera, prior: Prior) -> SourceView:
    view = source.view(camera)
    return SourceView(view, view.full, prior.encode_image(as_batch(view.full)))


def check_cameras(cameras: Sequence[Camera]) -> None:
    """ValueError for no cameras, and for pictures of less than a latent's cell."""
    if not cameras:
        raise ValueError("cameras is empty: an edit needs at least one view")
    for camera in cameras:
        if min(camera.width, camera.height) < CELL:
            size = f"{camera.width}x{camera.height}"
            raise ValueError(f"a camera of {size} pixels is too small: {CELL}x{CELL} are needed")


def spread(cameras: Sequence[Camera], count: int | None) -> list[int]:
    """Indices of `count` of the cameras, far from each other, in ascending order; None or too many: of all.

    Each next one is the camera whose position and direction are farthest from those of all chosen so far, where a
    distance of the cameras' mean distance from their middle counts as much as opposite directions.
    """
    if count is None or count >= len(cameras):
        return list(range(len(cameras)))
    positions = torch.stack([c.position for c in cameras]).double()
    directions = torch.stack([c.forward for c in cameras]).double()
    positions = positions - positions.mean(0)
    places = torch.cat([positions / positions.norm(dim=1).mean().clamp(min=1e-9), directions / 2], 1)
    chosen = [int((places - places.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < count:
        apart = torch.cdist(places, places[chosen]).amin(1)
        apart[chosen] = -1  # cameras at one place are chosen last, each once
        chosen.append(int(apart.argmax()))
    return sorted(chosen)


def as_batch(image: Tensor) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W)."""
    return image.permute(2, 0, 1)[None]


def turn_of(step: int, cameras: int, seed: int) -> int:
    """The camera of a step: every one once in random order, then all again in another order."""
    turn, place = divmod(step, cameras)
    return int(torch.randperm(cameras, generator=torch.Generator().manual_seed(seed * 7919 + turn))[place])


def views_at_a_time(device: torch.device) -> int:
    """How many views are prepared at once: several on a CPU of several cores."""
    return _AHEAD if device.type == "cpu" and torch.get_num_threads() > 1 else 1


class SourceViews:
    """The source's view of each camera, in the order of an edit's steps.

    seed: of the order in which cameras come. chosen: the indices of those that come; all unless it is set. made: the
    views that were asked for, by camera, the first one first. Raises ValueError for cameras that cannot be edited
    through.
    """

    def __init__(self, source: Renderable, cameras: Sequence[Camera], prior: Prior, seed: int):
        check_cameras(cameras)
        self.source, self.cameras, self.prior, self.seed = source, cameras, prior, seed
        self.chosen: Sequence[int] = range(len(cameras))
        self.made: dict[int, SourceView] = {}
        self._coming: dict[int, Future[SourceView]] = {}

    def __getstate__(self) -> dict:
        """For `copy.deepcopy`: without the threads, and without views that are on their way in them."""
        return {name: value for name, value in vars(self).items() if name != "_threads"} | {"_coming": {}}

    def turn(self, step: int) -> int:
        return self.chosen[turn_of(step, len(self.chosen), self.seed)]

    def of(self, step: int) -> tuple[int, SourceView]:
        """The step's camera and its view. On a CPU of several cores the next steps' are begun in threads.

        They fill the cores that a step's small operators leave idle. Every view is made in such a thread, so that a
        view has the same bits wherever an edit was resumed.
        """
        if self._threads:
            for ahead in range(_AHEAD + 1):
                self._begin(self.turn(step + ahead))
        camera = self.turn(step)
        return camera, self[camera]

    def __getitem__(self, camera: int) -> SourceView:
        if camera not in self.made:
            if self._threads:
                self._begin(camera)
                self.made[camera] = self._coming.pop(camera).result()
            else:
                self.made[camera] = self._make(camera)
        return self.made[camera]

    def _begin(self, camera: int) -> None:
        if camera not in self.made and camera not in self._coming:
            self._coming[camera] = self._threads.submit(self._make, camera)

    def _make(self, camera: int) -> SourceView:
        return source_view(self.source, self.cameras[camera], self.prior)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor | None:
        count = views_at_a_time(self.source.device)
        return beside("source", torch.get_num_threads() // 2, count) if count > 1 else None
