"""What a camera changed by itself from photo to photo: a gain and an offset of colours, learnt beside the field."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Exposure(nn.Module):
    """A gain and an offset a photo and channel, as in Urban Radiance Fields (Rematas et al., CVPR 2022, section 3.2).

    A phone sets exposure and white balance anew for every photo. A field that has to explain each photo exactly puts
    such changes into colours that depend on the direction, and into fog. Over all photos the mean of the logarithm of
    the gain and that of the offset are 0: the field has the colours of the average photo, and is rendered without this.
    """

    def __init__(self, photos: int):
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(photos, 3))  # natural logarithms
        self.offsets = nn.Parameter(torch.zeros(photos, 3))

    def forward(self, color: Tensor, photo: Tensor) -> Tensor:
        """color (n, 3) of the field, photo (n,) the number of the photo that each is compared with -> (n, 3)."""
        gains, offsets = self.gains - self.gains.mean(0), self.offsets - self.offsets.mean(0)
        return color * gains[photo].exp() + offsets[photo]

    def size(self) -> Tensor:
        """Mean square of logarithms of gains and of offsets, a number: what the trainer holds small."""
        return (self.gains.square().mean() + self.offsets.square().mean()) / 2
