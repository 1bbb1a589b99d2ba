"""A 2D image as a subject: its latent, or its pixels seen through the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cds3d.guidance.prior import CELL, Prior, encoder_gradient

_ROUNDING = 1e-3  # by which colours may leave [0, 1]


def checked_picture(image: Tensor) -> Tensor:
    """The picture as float32, if it is (3, H, W) in [0, 1], floating point, and at least 8 pixels high and wide.

    Raises ValueError that says what is wrong. Colours may leave [0, 1] by rounding.
    """
    shape = tuple(image.shape)
    if image.ndim != 3 or shape[0] != 3:
        hint = ": use permute(2, 0, 1)" if image.ndim == 3 and shape[2] == 3 else ""
        raise ValueError(f"a picture has the shape (3, H, W), not {shape}{hint}")
    if min(shape[1:]) < CELL:
        raise ValueError(f"a picture of {shape[2]}x{shape[1]} pixels is too small: at least {CELL}x{CELL} are needed")
    if not image.is_floating_point():
        raise ValueError(f"a picture has floating-point colours in [0, 1], not {image.dtype}: divide bytes by 255")
    low, high = torch.stack(image.aminmax()).tolist()
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also where they are not numbers
        raise ValueError(f"a picture has colours in [0, 1], and these go from {low:.4g} to {high:.4g}")
    return image.float()


class LatentPair:
    """The latent itself is the parameter: there is no graph to go back through."""

    def __init__(self, source: Tensor, parameter: nn.Parameter):
        self.source, self._parameter = source, parameter

    def target(self) -> Tensor:
        return self._parameter.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        before = self._parameter.grad
        self._parameter.grad = gradient.clone() if before is None else before + gradient
        return gradient


class LatentImage:
    """The parameter is the latent itself, started at the source's: the published 2D method.

    image: (3, H, W) in [0, 1], any size from 8x8 on: it is padded to whole latent cells by repeating its border.
    Raises ValueError for anything else (`checked_picture`).
    """

    def __init__(self, image: Tensor, prior: Prior):
        image = checked_picture(image)
        self.prior, self.size = prior, tuple(image.shape[1:])
        self.source = self.encoded(image)
        self.parameter = nn.Parameter(self.source.clone())

    @torch.no_grad()
    def encoded(self, image: Tensor) -> Tensor:
        """(3, H, W) in [0, 1] of the source's size -> (1, C, h, w), its latent."""
        height, width = self.size
        padded = F.pad(image[None], (0, -width % CELL, 0, -height % CELL), mode="replicate")
        return self.prior.encode_image(padded)

    @torch.no_grad()
    def restart(self, image: Tensor) -> None:
        """Go on from this picture, (3, H, W) in [0, 1]; the source stays what it is."""
        self.parameter.copy_(self.encoded(image))

    def parameter_groups(self, lr: float) -> list[dict]:
        """As `Subject.parameter_groups`: one group, of one parameter."""
        return [{"params": [self.parameter], "lr": lr}]

    def pair(self, step: int, generator: torch.Generator | None = None) -> LatentPair:
        """As `Subject.pair`; nothing is drawn at random."""
        return LatentPair(self.source, self.parameter)

    def observe(self, pair: LatentPair, image_gradient: Tensor) -> None:
        """As `Subject.observe`: there is nothing to learn."""

    def state(self) -> dict:
        """As `Subject.state`: the parameter is all there is."""
        return {}

    def load_state(self, state: dict) -> None:
        """As `Subject.load_state`."""

    def image(self) -> Tensor:
        """(3, H, W) in [0, 1], the decoded latent, cut to the source's size."""
        return self.decoded(self.parameter.detach())

    def decoded(self, latent: Tensor) -> Tensor:
        """(3, H, W) in [0, 1], a latent as a picture of the source's size."""
        return self.prior.decode_image(latent)[0, :, : self.size[0], : self.size[1]].cpu()


class PixelPair:
    """An image seen through the encoder, moved by `shift` (rows, columns) pixels against the latent's grid."""

    def __init__(self, prior: Prior, parameter: nn.Parameter, source: Tensor, shift: tuple[int, int]):
        self.source, self._prior, self._parameter, self._shift = source, prior, parameter, shift
        self._encoded: Tensor | None = None

    def target(self) -> Tensor:
        if self._encoded is None:
            self._encoded = self._prior.encode_image(shifted(self._parameter, *self._shift))
        return self._encoded.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        self.target()
        own = encoder_gradient(self._encoded, self._parameter, gradient)
        before = self._parameter.grad
        self._parameter.grad = own.clone() if before is None else before + own
        return own


class PixelImage:
    """The parameter is the image; each step the encoder sees it through a window shifted by up to 7 pixels.

    Without the shift the latent's 8-pixel grid shows in the result. Texture too fine for the encoder survives. image:
    as `LatentImage`'s.
    """

    def __init__(self, image: Tensor, prior: Prior):
        self.prior = prior
        self.source = checked_picture(image)[None].to(prior.device)
        self.parameter = nn.Parameter(self.source.clone())
        self._sources: dict[tuple[int, int], Tensor] = {}

    def parameter_groups(self, lr: float) -> list[dict]:
        """As `Subject.parameter_groups`: one group, of one parameter."""
        return [{"params": [self.parameter], "lr": lr}]

    def pair(self, step: int, generator: torch.Generator | None = None) -> PixelPair:
        """As `Subject.pair`; the shift is drawn at random."""
        shift = tuple(torch.randint(0, CELL, (2,), generator=generator).tolist())
        if shift not in self._sources:
            with torch.no_grad():
                self._sources[shift] = self.prior.encode_image(shifted(self.source, *shift))
        return PixelPair(self.prior, self.parameter, self._sources[shift], shift)

    @torch.no_grad()
    def observe(self, pair: PixelPair, image_gradient: Tensor) -> None:
        """As `Subject.observe`: colours are kept in [0, 1]."""
        self.parameter.clamp_(0, 1)

    def state(self) -> dict:
        """As `Subject.state`: the parameter is all there is."""
        return {}

    def load_state(self, state: dict) -> None:
        """As `Subject.load_state`."""

    def image(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self.parameter.detach()[0].cpu()


def shifted(image: Tensor, top: int, left: int) -> Tensor:
    """(1, 3, H, W) moved by (top, left) pixels against the latent's grid, in whole cells, the border repeated."""
    height, width = image.shape[2:]
    down, right = -(height + top) % CELL, -(width + left) % CELL
    return F.pad(image, (left, right, top, down), mode="replicate")
