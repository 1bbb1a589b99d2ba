"""A radiance field as a subject: paired views of a frozen source field and a trainable copy of it.

The source's render and latent of a camera, and the samples that both fields are rendered with, are made once a camera.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior, encoder_gradient
from cds3d.masks import dilated
from cds3d.subjects.given import seen_share
from cds3d.subjects.region import EditedRegion, RegionConfig
from cds3d.subjects.sources import SourceView, SourceViews, as_batch, spread
from cds3d.subjects.volume import edited_volume
from tensorf.cameras import Camera
from tensorf.local import LocalField
from tensorf.packed import split_indices
from tensorf.renderable import FastView, Renderable

_GROUPS = ("color", "density", "network", "color_lines", "density_lines")  # of `Renderable.parameter_groups`


@dataclass(frozen=True)
class FieldRates:
    """Learning rates, as shares of the edit's; 0 freezes a group.

    The network changes all that looks alike at once, also where the gradient says little. Grids change one place apart
    from others. One number on a line multiplies a whole slice of the scene, so a change of it shows everywhere.
    """

    color_lr: float  # of the colour grids
    network_lr: float  # of the colour network
    density_lr: float  # of the density grids
    line_lr: float  # of VM's lines, as a share of their planes' rate

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} has to be 0 or more")
        if not any((self.color_lr, self.network_lr, self.density_lr)):
            raise ValueError("color_lr, network_lr and density_lr are all 0: nothing would change")

    def of(self, group: str) -> float:
        """The share of a group of `Renderable.parameter_groups`."""
        kind = group.removesuffix("_lines")
        share = {"color": self.color_lr, "network": self.network_lr, "density": self.density_lr}[kind]
        return share * self.line_lr if group != kind else share


@dataclass(frozen=True)
class Preservation:
    """How pixels outside the region are kept (`FieldPair.backward`)."""

    preservation: float  # weight of the pull to the source's colour, in root-mean-square gradients a unit of colour
    margin: float  # width of the band around the region that is neither edited nor pulled, a share of the view's width
    inside: float  # weight in the region from which on a pixel belongs to it
    ray_share: float  # of the rays outside, the share that each step renders

    def __post_init__(self):
        if not (0 <= self.preservation < math.inf and 0 <= self.margin <= 1):
            raise ValueError(
                f"preservation={self.preservation} and margin={self.margin} have to be 0 or more, and margin at most 1"
            )
        if not 0 < self.inside < 1:
            raise ValueError(f"inside={self.inside} has to be between 0 and 1")
        if not 0 < self.ray_share <= 1:
            raise ValueError(f"ray_share={self.ray_share} has to be above 0 and at most 1")


class FieldPair:
    """One camera's views of source and target, with the rays of this step and the region as it is now.

    weight (H * W,) in [0, 1]: how far each pixel belongs to the region. reach (H * W,): the same for the region and its
    margin. Rays in reach are all rendered; of the rest one in `stride`, from a random start each step. All other pixels
    show the source.
    """

    def __init__(
        self,
        prior: Prior,
        target: Renderable,
        camera: int,
        source: SourceView,
        weight: Tensor,
        reach: Tensor,
        inside: float,
        stride: int,
        pull: float | Tensor,
        generator: torch.Generator | None = None,
        exact: bool = False,
    ):
        self.source, self.camera = source.latent, camera
        self._colors = colors_by(source.view, exact)
        self._prior, self._field, self._source_view = prior, target, source
        self._weight, self._reach, self._stride, self._pull = weight, reach, stride, pull
        within, outside = split_indices(reach >= inside)
        outside = outside[int(torch.randint(stride, (1,), generator=generator)) :: stride]
        self._rays, self._within = torch.cat([within, outside]), len(within)
        self._encoded: Tensor | None = None

    def target(self) -> Tensor:
        if self._encoded is None:
            self._color = self._colors(self._field, self._rays)
            within, picture = self._rays[: self._within], self._source_view.image
            image = picture.view(-1, 3).index_copy(0, within, self._color[: self._within].detach())
            self._image = image.view_as(picture).requires_grad_()
            self._encoded = self._prior.encode_image(as_batch(self._image))
        return self._encoded.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """Pixels of the region get the objective's gradient; pixels outside are pulled back to the source's colour.

        Places share parameters, so without the pull the background follows the subject. The objective's gradient is no
        use outside: there it is a small and steady bias, also towards the source's colour. Pixels of the margin get
        neither.
        """
        self.target()
        image_gradient = encoder_gradient(self._encoded, self._image, gradient)
        weight, reach = (w[self._rays, None] for w in (self._weight, self._reach))
        back = self._pull * (self._color.detach() - self._source_view.image.view(-1, 3)[self._rays])
        mixed = weight * image_gradient.view(-1, 3)[self._rays] + (1 - reach) * back
        mixed[self._within :] *= self._stride  # each stands for those that were left out
        self._color.backward(mixed)
        return image_gradient


class FieldViews:
    """source: the field to edit, left alone; it has to stay as it is meanwhile. cameras: the views to edit through, at
    the editing size.

    seed: of the order in which cameras come. given: (z, y, x) bool in the cells of the source's occupancy; if there is
    one, nothing changes outside of it. find: whether gradients find the region, inside the given one if there is one.
    views: how many of the cameras to edit through, far from each other; None: all. A camera has no mask before its
    first visit, so with many more cameras than steps nothing is masked. exact: render all samples of the target each
    step, and not the few that stood for the source's: where surfaces move, these show another picture (`colors_by`).

    Raises ValueError for no cameras, cameras of less than 8 pixels a side, and where neither says the region.
    """

    def __init__(
        self,
        source: Renderable,
        cameras: Sequence[Camera],
        prior: Prior,
        rates: FieldRates,
        region: RegionConfig,
        preservation: Preservation,
        seed: int = 0,
        given: Tensor | None = None,
        find: bool = True,
        views: int | None = None,
        exact: bool = False,
    ):
        if not find and given is None:
            raise ValueError("find=False needs a given region")
        self.source, self.find, self.exact = source, find, exact
        self._trainable = copy.deepcopy(source).requires_grad_(True)
        self.target = self._trainable if given is None else LocalField(source, given, self._trainable)
        self.prior, self.rates = prior, rates
        self.region, self.preservation = EditedRegion(region), preservation
        self.views = SourceViews(source, list(cameras), prior, seed)
        self.views.chosen = spread(cameras, views)
        self._given: dict[int, Tensor] = {}

    @property
    def cameras(self) -> list[Camera]:
        """Those that are edited through."""
        return [self.views.cameras[i] for i in self.views.chosen]

    def parameter_groups(self, lr: float) -> list[dict]:
        """As `Subject.parameter_groups`, named as `Renderable.parameter_groups`, at `rates`."""
        return moved_groups(self._trainable, self.rates, lr)

    def pair(self, step: int, generator: torch.Generator | None = None) -> FieldPair:
        """As `Subject.pair`: of the step's camera. Which rays outside the region are rendered is drawn at random."""
        kept = self.preservation
        camera, source = self.views.of(step)
        weight = self._weight(camera, source)
        margin = round(kept.margin * source.image.shape[1])
        return FieldPair(
            self.prior,
            self.target,
            camera,
            source,
            weight.flatten(),
            dilated(weight, margin).flatten(),
            kept.inside,
            max(1, round(1 / kept.ray_share)),
            kept.preservation * self.region.gradient_rms,
            generator,
            self.exact,
        )

    def _weight(self, camera: int, source: SourceView) -> Tensor:
        """(H, W) in [0, 1]: the region of the edit, as this camera sees it."""
        within = self._given_share(camera, source)
        return within * self.region.weight(camera, source.image) if self.find else within

    def _given_share(self, camera: int, source: SourceView) -> Tensor:
        """(H, W) of what each pixel shows, the share that lies in the given region; 1 without one."""
        if self.target is self._trainable:
            return torch.ones(source.image.shape[:2], device=source.image.device)
        if camera not in self._given:
            self._given[camera] = seen_share(self.source, source.view, self.target.region)
        return self._given[camera]

    def observe(self, pair: FieldPair, image_gradient: Tensor) -> None:
        """Let the region learn from the step's gradient, of which only that in the given region counts."""
        source = self.views[pair.camera]
        within = self._given_share(pair.camera, source)
        self.region.add(pair.camera, image_gradient * within[..., None], source.image)

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Of the first camera that was visited: source beside edit (H, 2 W, 3), and the region (H, W, 1)."""
        if not self.views.made:
            return {}
        camera, made = next(iter(self.views.made.items()))
        now = colors_by(made.view, self.exact)(self.target).view_as(made.image)
        return {"source_and_edit": torch.cat([made.image, now], 1), "region": self._weight(camera, made)[..., None]}

    def edited(self) -> Renderable:
        """The field as it is to be saved."""
        return self.target

    @torch.no_grad()
    def region_in_space(self) -> Tensor | None:
        """(z, y, x) bool in the cells of the source's occupancy: what the masks show, of the given region if any.

        None where everything may change, and for fields without occupancy.
        """
        cameras = self.region.visited if self.find else []
        if not cameras and self.target is not self._trainable:
            return self.target.region
        if not cameras or not hasattr(self.source, "occupancy"):
            return None
        made = [self.views[camera] for camera in cameras]
        views = ((m.view, self._weight(camera, m)) for camera, m in zip(cameras, made, strict=True))
        return edited_volume(self.source, views, self.preservation.inside, grow=0.0, one_subject=False)

    def state(self) -> dict:
        """As `Subject.state`: the masks, and which cameras are edited through."""
        return {"masks": self.region.state(), "cameras": list(self.views.chosen)}

    def load_state(self, state: dict) -> None:
        """Go on with the cameras of the state, also where a longer edit would have chosen more of them."""
        if "masks" not in state:  # of earlier versions, which edited through all cameras
            state = {"masks": state, "cameras": range(len(self.views.cameras))}
        chosen = list(state["cameras"])
        if not chosen or not {*chosen} <= {*range(len(self.views.cameras))}:
            raise ValueError("cameras that the scene does not have")
        self.views.chosen = chosen
        self.region.load_state(state["masks"], self.source.device)


def colors_by(view: FastView, exact: bool) -> Callable[..., Tensor]:
    """`view.color`, or `view.exact_color` if it is to be exact and the view has one: kinds of fields may have none."""
    return getattr(view, "exact_color", view.color) if exact else view.color


def moved_groups(target: Renderable, rates: FieldRates, lr: float) -> list[dict]:
    """What an optimiser moves, at shares of `lr`; other parameters are frozen.

    Groups come in an order of their own, whatever the field's: it is part of a resumed optimiser's state.
    """
    groups, moved = target.parameter_groups(), []
    if unknown := groups.keys() - set(_GROUPS):
        raise ValueError(f"{unknown.pop()!r} is no group of parameters: use {', '.join(_GROUPS)}")
    for name in _GROUPS:
        share, parameters = rates.of(name), groups.get(name, [])
        for p in parameters:
            p.requires_grad_(share > 0)
        if share > 0 and parameters:
            moved.append({"params": parameters, "lr": lr * share, "name": name})
    return moved
