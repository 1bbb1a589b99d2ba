"""A 2D image as a subject: its latent, or its pixels seen through the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cds3d.guidance import Guidance

_CELL = 8  # pixels a latent element


class LatentImage:
    """The parameter is the latent itself, started at the source's: the published 2D method.

    image: (3, H, W) in [0, 1], any size: it is padded to whole latent cells by repeating its border.
    """

    def __init__(self, image: Tensor, guidance: Guidance):
        self.guidance, self.size = guidance, tuple(image.shape[1:])
        height, width = self.size
        padded = F.pad(image[None], (0, -width % _CELL, 0, -height % _CELL), mode="replicate")
        with torch.no_grad():
            self.source = guidance.encode_image(padded)
        self.parameter = nn.Parameter(self.source.clone())

    def parameter_groups(self, lr: float) -> list[dict]:
        return [{"params": [self.parameter], "lr": lr}]

    def source_latent(self, step: int) -> Tensor:
        return self.source

    def target_latent(self) -> Tensor:
        return self.parameter.detach()

    def backward(self, gradient: Tensor) -> None:
        self.parameter.grad = gradient.clone()

    def after_step(self) -> None:
        pass

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass

    def image(self) -> Tensor:
        """(3, H, W) in [0, 1], the decoded latent, cut to the source's size."""
        return self.guidance.decode_image(self.parameter.detach())[0, :, : self.size[0], : self.size[1]].cpu()


class PixelImage:
    """The parameter is the image; each step the encoder sees it through a window shifted by up to 7 pixels.

    Without the shift the latent's 8-pixel grid shows in the result. Texture too fine for the encoder survives.
    """

    def __init__(self, image: Tensor, guidance: Guidance):
        self.guidance = guidance
        self.source = image[None].to(guidance.device)
        self.parameter = nn.Parameter(self.source.clone())
        self._sources: dict[tuple[int, int], Tensor] = {}

    def parameter_groups(self, lr: float) -> list[dict]:
        return [{"params": [self.parameter], "lr": lr}]

    def source_latent(self, step: int) -> Tensor:
        self._shift = top, left = tuple(torch.randint(0, _CELL, (2,)).tolist())
        if self._shift not in self._sources:
            with torch.no_grad():
                self._sources[self._shift] = self.guidance.encode_image(self._window(self.source, top, left))
        return self._sources[self._shift]

    def target_latent(self) -> Tensor:
        self._encoded = self.guidance.encode_image(self._window(self.parameter, *self._shift))
        return self._encoded.detach()

    @staticmethod
    def _window(image: Tensor, top: int, left: int) -> Tensor:
        """The image moved by (top, left) pixels against the latent's grid, in whole cells, the border repeated."""
        height, width = image.shape[2:]
        down, right = -(height + top) % _CELL, -(width + left) % _CELL
        return F.pad(image, (left, right, top, down), mode="replicate")

    def backward(self, gradient: Tensor) -> None:
        self._encoded.backward(gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        self.parameter.clamp_(0, 1)

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass

    def image(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self.parameter.detach()[0].cpu()
