"""A radiance field as a subject: paired views of a frozen source field and a trainable copy of it.

The source's render and latent of a camera, and the samples that both fields are rendered with, are made once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from cds3d.guidance import Guidance
from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.visibility import View


class FieldViews:
    """source: the field to edit, left alone. cameras: the views to edit through, at the editing size.

    network_lr, density_lr: learning rates of the colour network and the density grids, as shares of the colour
    grids'; density_lr 0 freezes the shape. line_lr: the rate of VM's lines as a share of their planes': a line's point
    belongs to a whole slice of the scene, so that what moves it shows everywhere.

    gate: pixels whose gradient is below this share of what is usual while the edit begins (the root mean square,
    averaged over the first turn of the cameras) are not back-propagated. What is being edited is above it until it is
    done; the background's small and steady bias never is. seed: of the order in which cameras come.
    """

    def __init__(
        self,
        source: Field,
        cameras: Sequence[Camera],
        guidance: Guidance,
        *,
        network_lr: float = 0.1,
        density_lr: float = 1.0,
        line_lr: float = 1.0,
        gate: float = 0.0,
        seed: int = 0,
    ):
        self.source = source.requires_grad_(False)
        self.target = copy.deepcopy(source).requires_grad_(True)
        self.cameras, self.guidance = list(cameras), guidance
        self.network_lr, self.density_lr, self.line_lr = network_lr, density_lr, line_lr
        self.gate, self.seed = gate, seed
        self._views: dict[int, tuple[View, Tensor]] = {}
        self._usual, self._counted = 0.0, 0  # the mean gradient's size so far, over how many views

    def parameter_groups(self, lr: float) -> list[dict]:
        groups = self.target.parameter_groups()
        rates = {"color": lr, "density": lr * self.density_lr, "network": lr * self.network_lr}
        rates |= {f"{name}_lines": rates[name] * self.line_lr for name in ("color", "density")}
        for name, rate in rates.items():
            for p in groups[name]:
                p.requires_grad_(rate > 0)
        return [{"params": groups[name], "lr": rate} for name, rate in rates.items() if rate > 0 and groups[name]]

    def camera_index(self, step: int) -> int:
        """Every camera once in random order, then all again in another order."""
        turn, place = divmod(step, len(self.cameras))
        order = torch.randperm(len(self.cameras), generator=torch.Generator().manual_seed(self.seed * 7919 + turn))
        return int(order[place])

    def latents(self, step: int) -> tuple[Tensor, Tensor]:
        view, source_latent = self._view(self.camera_index(step))
        image = view.render(self.target)
        self._view_now, self._image = view, image.requires_grad_()
        self._encoded = self.guidance.encode_image(_as_batch(self._image))
        return source_latent, self._encoded.detach()

    def _view(self, index: int) -> tuple[View, Tensor]:
        if index not in self._views:
            view = View(self.source, self.cameras[index])
            with torch.no_grad():
                latent = self.guidance.encode_image(_as_batch(view.render(self.source)))
            self._views[index] = (view, latent)
        return self._views[index]

    def backward(self, gradient: Tensor) -> None:
        (image_gradient,) = torch.autograd.grad(self._encoded, self._image, gradient)
        if self._counted < len(self.cameras):
            size = float(image_gradient.square().sum(-1).mean().sqrt())
            self._usual += (size - self._usual) / (self._counted + 1)
            self._counted += 1
        self._view_now.backward(self.target, image_gradient, least=self.gate * self._usual)

    def after_step(self) -> None:
        pass

    def state(self) -> dict:
        return {"usual": self._usual, "counted": self._counted}

    def load_state(self, state: dict) -> None:
        self._usual, self._counted = state["usual"], state["counted"]


def _as_batch(image: Tensor) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W)."""
    return image.permute(2, 0, 1)[None]
