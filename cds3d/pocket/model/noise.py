"""Noise with more power in its coarse parts than white noise has."""

from __future__ import annotations

import torch
from torch import Tensor


def coarse_noise(shape: tuple[int, int, int, int], discount: float, generator: torch.Generator | None = None) -> Tensor:
    """(B, C, H, W) noise of mean 0 and variance 1: white noise plus noise that is constant in squares of 2, 4, 8, ...

    A square twice as wide has its noise times `discount`, in [0, 1); 0 gives white noise. Squares begin at a random
    place. This is multi-resolution ("pyramid") noise, as people fine-tune Stable Diffusion with. White noise leaves
    the colour and place of large things readable up to large t, so a model learns to read them there and to ignore
    the prompt. Coarse noise hides them, so the prompt has to say what they are. ValueError for another discount.
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount={discount} has to be from 0 to below 1")
    batch, channels, height, width = shape
    draw = {"generator": generator, "device": generator.device if generator else None}
    noise, power = torch.randn(shape, **draw), 1.0
    size, weight = 2, discount
    while discount and size <= max(height, width):
        squares = torch.randn(batch, channels, -(-height // size) + 1, -(-width // size) + 1, **draw)
        fine = squares.repeat_interleave(size, 2).repeat_interleave(size, 3)
        top, left = torch.randint(size, (2,), **draw).tolist()
        noise = noise + weight * fine[..., top : top + height, left : left + width]
        power += weight**2
        size, weight = 2 * size, weight * discount
    return noise / power**0.5
