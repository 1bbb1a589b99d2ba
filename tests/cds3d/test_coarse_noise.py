"""Coarse noise, on which pocket is trained: its power by size, and that nothing shares it."""

import pytest
import torch

from cds3d.pocket.model.noise import coarse_noise


def test_coarse_noise_is_white_without_a_discount():
    shape = (2, 4, 24, 32)
    noise = coarse_noise(shape, 0.0, torch.Generator().manual_seed(3))
    assert torch.equal(noise, torch.randn(shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("side", "window"), [(32, 8), (2, 2)])
def test_coarse_noise_has_unit_variance_and_power_in_large_squares(side, window):
    # Two places i, j of a line lie in the same square of width w, which begins anywhere, with chance 1 - |i - j| / w.
    # So a mean over a window keeps the share (mean of that over i and j) squared of such squares' variance.
    d, generator = 0.6, torch.Generator().manual_seed(0)
    noise = torch.cat([coarse_noise((1024 // side, 4, side, side), d, generator) for _ in range(400)])
    assert noise.mean().abs() < 0.02 and abs(noise.var() - 1) < 0.03
    apart = (torch.arange(window)[:, None] - torch.arange(window)).abs()
    widths = [2**k for k in range(side.bit_length())]
    kept = [(1 - apart / width).clamp(min=0).mean().item() ** 2 for width in widths]
    power = [d ** (2 * k) for k in range(len(widths))]
    expected = sum(p * k for p, k in zip(power, kept)) / sum(power)
    assert torch.nn.functional.avg_pool2d(noise, window).var().item() == pytest.approx(expected, rel=0.04)


def test_each_image_and_channel_has_coarse_noise_of_its_own():
    noise = coarse_noise((400, 4, 32, 32), 0.6, torch.Generator().manual_seed(0))
    channels, images = noise.mean((2, 3)).T.corrcoef() - torch.eye(4), noise[:2].flatten(1).corrcoef()[0, 1]
    assert channels.abs().max() < 0.2 and abs(images) < 0.2


def test_coarse_noise_refuses_other_discounts():
    for discount in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"discount={discount} has to be"):
            coarse_noise((1, 1, 4, 4), discount)
