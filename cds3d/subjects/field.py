"""A radiance field as a subject: paired views of a frozen source field and a trainable copy of it.

The source's render and latent of a camera, and the samples that both fields are rendered with, are made once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from cds3d.guidance import Guidance
from cds3d.subjects.region import EditedRegion, dilated
from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.visibility import View

INSIDE = 0.05  # weight in the edited region from which on a pixel belongs to it at all
MARGIN = 2  # pixels around it that are free to follow: an edge's colour is in part the subject's
SHARE = 8  # one in so many of the rays outside is rendered in a step, to be held


class FieldViews:
    """source: the field to edit, left alone. cameras: the views to edit through, at the editing size.

    color_lr, network_lr, density_lr: learning rates of the colour grids, the colour network and the density grids, as
    shares of the edit's; 0 freezes them. The network gives all that looks alike a new look at once, also where the
    gradient says little; grids change one place apart from others. line_lr: the rate of VM's lines as a share of their
    planes': a line's point belongs to a whole slice of the scene, so that what moves it shows everywhere.

    gate, hold: pixels outside the region where the edit is at work (`EditedRegion`, which `gate` bounds; 0: everything
    is inside) are the source's in the picture that is encoded, and do not get the objective's gradient, which there is
    a small and steady bias, but one towards the source's colour: `hold` times the difference, in units of what
    gradients usually are. Parameters are shared between places, so that without it the background follows the subject.
    Pixels in the region's margin get neither: they show what becomes of them.
    seed: of the order in which cameras come.
    """

    def __init__(
        self,
        source: Field,
        cameras: Sequence[Camera],
        guidance: Guidance,
        *,
        color_lr: float = 1.0,
        network_lr: float = 0.1,
        density_lr: float = 1.0,
        line_lr: float = 1.0,
        gate: float = 0.0,
        hold: float = 0.0,
        seed: int = 0,
    ):
        self.source = source.requires_grad_(False)
        self.target = copy.deepcopy(source).requires_grad_(True)
        self.cameras, self.guidance = list(cameras), guidance
        self.shares = {"color": color_lr, "density": density_lr, "network": network_lr}
        self.shares |= {f"{name}_lines": self.shares[name] * line_lr for name in ("color", "density")}
        self.region, self.hold, self.seed = EditedRegion(gate), hold, seed
        self._views: dict[int, tuple[View, Tensor, Tensor]] = {}

    def parameter_groups(self, lr: float) -> list[dict]:
        groups = self.target.parameter_groups()
        for name, share in self.shares.items():
            for p in groups[name]:
                p.requires_grad_(share > 0)
        moved = {name: lr * share for name, share in self.shares.items() if share > 0 and groups[name]}
        return [{"params": groups[name], "lr": rate} for name, rate in moved.items()]

    def camera_index(self, step: int) -> int:
        """Every camera once in random order, then all again in another order."""
        turn, place = divmod(step, len(self.cameras))
        order = torch.randperm(len(self.cameras), generator=torch.Generator().manual_seed(self.seed * 7919 + turn))
        return int(order[place])

    def source_latent(self, step: int) -> Tensor:
        self._index = self.camera_index(step)
        _, source_image, source_latent = self._view(self._index)
        # Outside the edited region the picture is the source's, and only some rays, others each time, are looked at.
        _, reach = self._edited(source_image)
        inside = (reach >= INSIDE).nonzero()[:, 0]
        outside = (reach < INSIDE).nonzero()[int(torch.randint(SHARE, (1,))) :: SHARE, 0]
        self._rays, self._inside = torch.cat([inside, outside]), len(inside)
        return source_latent

    def target_latent(self) -> Tensor:
        view, source_image, _ = self._view(self._index)
        self._color = view.color(self.target, self._rays)
        inside = self._rays[: self._inside]
        image = source_image.view(-1, 3).index_copy(0, inside, self._color[: self._inside].detach())
        self._image = image.view_as(source_image).requires_grad_()
        self._encoded = self.guidance.encode_image(_as_batch(self._image))
        return self._encoded.detach()

    def _edited(self, source_image: Tensor) -> tuple[Tensor, Tensor]:
        """(H * W,) each, in [0, 1]: how much the step's pixels belong to the edited region, and to it or its margin."""
        weight = self.region.weight(self._index, source_image)
        return weight.flatten(), dilated(weight, MARGIN).flatten()

    def _view(self, index: int) -> tuple[View, Tensor, Tensor]:
        """(samples, the source's render, its latent) of a camera."""
        if index not in self._views:
            view = View(self.source, self.cameras[index])
            with torch.no_grad():
                self._views[index] = (view, view.full, self.guidance.encode_image(_as_batch(view.full)))
        return self._views[index]

    def backward(self, gradient: Tensor) -> None:
        (image_gradient,) = torch.autograd.grad(self._encoded, self._image, gradient)
        # What is not finite goes on to the editor, which stops: the region, which is saved, must not take it in.
        source_image = self._view(self._index)[1]
        if torch.isfinite(image_gradient).all():
            self.region.add(self._index, image_gradient, source_image)
        # With this visit's gradient, so that a first visit, too, is held to what it tells.
        weight, reach = (w[self._rays, None] for w in self._edited(source_image))
        back = self.hold * self.region.usual * (self._color.detach() - source_image.view(-1, 3)[self._rays])
        own = image_gradient.view(-1, 3)[self._rays]
        mixed = weight * own + (1 - reach) * back
        mixed[self._inside :] *= SHARE  # each stands for those that were left out
        self._color.backward(mixed)

    def after_step(self) -> None:
        pass

    def state(self) -> dict:
        return self.region.state()

    def load_state(self, state: dict) -> None:
        self.region.load_state(state, self.source.device)


def _as_batch(image: Tensor) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W)."""
    return image.permute(2, 0, 1)[None]
