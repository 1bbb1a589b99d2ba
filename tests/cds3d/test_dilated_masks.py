"""What lies around each pixel: dilation and means, against loops."""

import pytest
import torch

from cds3d.masks import averaged, dilated


def around(picture, radius, what):
    """`what` of the square around each pixel of (H, W), pixel by pixel."""
    height, width = picture.shape
    cut = [
        [picture[max(0, v - radius) : v + radius + 1, max(0, u - radius) : u + radius + 1] for u in range(width)]
        for v in range(height)
    ]
    return torch.tensor([[float(what(part)) for part in row] for row in cut])


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_dilation_takes_the_largest_of_a_square_of_any_kind_of_mask(radius):
    torch.manual_seed(0)
    soft = torch.rand(7, 11)
    assert torch.equal(dilated(soft, radius), around(soft, radius, torch.max))
    assert torch.equal(-dilated(-soft, radius), around(soft, radius, torch.min))
    several = torch.stack([soft, soft.flip(0)])[None]
    assert torch.equal(dilated(several, radius)[0, 1], dilated(soft.flip(0), radius))
    spots = soft > 0.9
    grown = dilated(spots, radius)
    assert grown.dtype == torch.bool and torch.equal(grown.float(), around(spots, radius, torch.any))


@pytest.mark.parametrize("side", [1, 3, 5])
def test_means_at_borders_are_of_what_is_left(side):
    torch.manual_seed(0)
    picture = torch.rand(1, 2, 6, 9)
    assert torch.allclose(averaged(picture, side)[0, 1], around(picture[0, 1], side // 2, torch.mean))
