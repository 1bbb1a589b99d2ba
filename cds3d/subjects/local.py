"""A radiance field edited inside a region of space, shape and all; outside it is the source by construction.

First the edit only looks: gradients of the unchanged views give the masks (`region.py`), and the masks the region
(`volume.py`), unless the user gives it (`given.py`). Then density and colour inside the region are free.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior, encoder_gradient
from cds3d.subjects.field import FieldRates, moved_groups
from cds3d.subjects.given import seen_share
from cds3d.subjects.region import EditedRegion, RegionConfig
from cds3d.subjects.sources import SourceView, SourceViews, as_batch
from cds3d.subjects.volume import VolumeConfig, agreed_region
from tensorf.cameras import Camera
from tensorf.local import LocalField
from tensorf.renderable import Renderable
from tensorf.visibility import LocalView

log = logging.getLogger("cds3d")

# Steps after which the cells of the region that are empty by now are no longer sampled: renders become faster. To find
# them, the density of the whole region is looked at.
_SETTLE = 25


class LookPair:
    """A view of the source as source and target both: its gradient tells where the prompts disagree."""

    def __init__(self, prior: Prior, camera: int, source: SourceView):
        self.source, self.camera = source.latent, camera
        self._image = source.image.clone().requires_grad_()
        self._encoded = prior.encode_image(as_batch(self._image))

    def target(self) -> Tensor:
        return self._encoded.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """As `Pair.backward`; no parameter gets a gradient."""
        return encoder_gradient(self._encoded, self._image, gradient)


class LocalPair:
    """One camera's views of source and target. Rays through the region are rendered, all others are the source's.

    volume: its weights. clears: whether haze is pulled back to the source.
    """

    def __init__(
        self,
        prior: Prior,
        target: LocalField,
        camera: int,
        source: SourceView,
        view: LocalView,
        volume: VolumeConfig,
        clears: bool,
    ):
        self.source, self.camera = source.latent, camera
        self._prior, self._field, self._source_view, self._view = prior, target, source, view
        self._volume, self._clears = volume, clears
        self._encoded: Tensor | None = None

    def target(self) -> Tensor:
        if self._encoded is None:
            self._color = self._view.color(self._field)
            image = self._source_view.image.view(-1, 3).index_copy(0, self._view.index, self._color.detach())
            self._image = image.view_as(self._source_view.image).requires_grad_()
            self._encoded = self._prior.encode_image(as_batch(self._image))
        return self._encoded.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """The objective's gradient, and those of the total variation and of what clears haze.

        Density that grows a little everywhere in the region is haze in front of the background. It changes a pixel
        less than what is meant does, so the robust loss of Geman and McClure (1985) tells them apart: it pulls small
        differences from the source back, and leaves large ones alone.
        """
        self.target()
        image_gradient = encoder_gradient(self._encoded, self._image, gradient)
        inside = image_gradient.view(-1, 3)[self._view.index]
        loss, volume = (self._color * inside).sum(), self._volume
        usual = (inside.square().sum() / max(1, len(inside))).sqrt().double()  # a camera may look past the region
        if volume.smoothness > 0:
            weight = (volume.smoothness * usual * len(inside)).float()
            loss = loss + weight * self._field.target.total_variation()
        if self._clears and volume.haze > 0:
            apart = self._color - self._source_view.image.view(-1, 3)[self._view.index]
            squares = (apart / volume.haze_color).square().sum(1)
            pull = (volume.haze * volume.haze_color * usual).float()
            loss = loss + pull * (squares / (1 + squares)).sum()
        loss.backward()
        return image_gradient


class LocalViews:
    """source: the field to edit, left alone; it has to stay as it is meanwhile. cameras: the views to edit through, at
    the editing size.

    looks: how many steps only look; 0 needs a given region. clear_from: the step from which haze is cleared. seed: of
    the order in which cameras come. given: (z, y, x) bool in the cells of the source's occupancy. The region lies
    in it; with looks=0 it is all of it.

    Raises ValueError for no cameras, and for cameras of less than 8 pixels a side.
    """

    def __init__(
        self,
        source: Renderable,
        cameras: Sequence[Camera],
        prior: Prior,
        rates: FieldRates,
        region: RegionConfig,
        volume: VolumeConfig,
        looks: int,
        clear_from: int,
        seed: int = 0,
        given: Tensor | None = None,
    ):
        self.source = source
        self.target = LocalField(source, torch.zeros_like(source.occupancy))
        self.cameras, self.prior, self.rates = list(cameras), prior, rates
        self.region, self.volume, self.given = EditedRegion(region), volume, given
        self.looks, self.clear_from = looks, clear_from
        self._opened = False
        self.sources = SourceViews(source, self.cameras, prior, seed)
        self._views: dict[int, LocalView] = {}

    def parameter_groups(self, lr: float) -> list[dict]:
        """As `Subject.parameter_groups`, named as `Renderable.parameter_groups`, at `rates`."""
        return moved_groups(self.target.target, self.rates, lr)

    def pair(self, step: int, generator: torch.Generator | None = None) -> LookPair | LocalPair:
        """As `Subject.pair`; nothing is drawn at random."""
        camera, source = self.sources.of(step)
        if step < self.looks and not self._opened:
            return LookPair(self.prior, camera, source)
        if not self._opened:
            self._open()
        elif (step - self.looks) % _SETTLE == 0:
            self.target.settle()
        clears = step >= self.clear_from
        return LocalPair(self.prior, self.target, camera, source, self.view(camera), self.volume, clears)

    def view(self, camera: int) -> LocalView:
        """The camera's rays through the region, prepared when they are first asked for."""
        if camera not in self._views:
            self._views[camera] = LocalView(self.target, self.cameras[camera])
        return self._views[camera]

    def _open(self) -> None:
        """Open the region: the given one, or that of the masks of the views that have been looked at, or both."""
        region = self.given if self.looks == 0 else self._found()
        self.target.open(region)
        self._opened = True
        log.info("the region of the edit is %.2g%% of the scene's cells", 100 * float(region.float().mean()))

    def _found(self) -> Tensor:
        looked = {self.sources.turn(step) for step in range(self.looks)}
        cameras = self.region.visited or sorted(looked)  # without a threshold, masks need no visits
        seen = [self.sources[camera] for camera in cameras]
        masks = [self.region.weight(camera, made.image) for camera, made in zip(cameras, seen)]
        views = zip((made.view for made in seen), masks, strict=True)
        volume = self.volume
        return agreed_region(self.source, views, volume.agreement, volume.grow, self.given, "edit.volume")

    def observe(self, pair: LookPair | LocalPair, image_gradient: Tensor) -> None:
        """Let the masks learn from a look. Where a region is given, only gradients of what lies in it count."""
        if not isinstance(pair, LookPair):
            return
        made = self.sources[pair.camera]
        if self.given is not None:
            within = seen_share(self.source, made.view, self.given)
            image_gradient = image_gradient * within[..., None]
        self.region.add(pair.camera, image_gradient, made.image)

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Of the first camera: source beside edit (H, 2 W, 3), and while it looks the mask (H, W, 1)."""
        if self._views:
            camera, view = next(iter(self._views.items()))
            made = self.sources[camera]
            now = made.image.view(-1, 3).index_copy(0, view.index, view.color(self.target)).view_as(made.image)
            return {"source_and_edit": torch.cat([made.image, now], 1)}
        if not self.sources.made:
            return {}
        camera, made = next(iter(self.sources.made.items()))
        return {"region": self.region.weight(camera, made.image)[..., None]}

    def edited(self) -> LocalField:
        """The target, with what is empty now left out."""
        self.target.settle()
        return self.target

    def region_in_space(self) -> Tensor:
        """(z, y, x) bool in the cells of the source's occupancy: where the edit could change something."""
        return self.target.region

    def state(self) -> dict:
        """As `Subject.state`: the masks, the region, and which of its cells are empty."""
        return {"masks": self.region.state(), "region": self.target.region, "occupancy": self.target.occupancy}

    def load_state(self, state: dict) -> None:
        """As `Subject.load_state`."""
        self.region.load_state(state["masks"], self.source.device)
        self.target.open(state["region"].to(self.source.device))
        self._opened = bool(state["region"].any())
        self.target.occupancy = state["occupancy"].to(self.source.device)
        self._views.clear()
