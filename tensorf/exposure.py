"""What a camera changed by itself from photo to photo: a gain and an offset of colours, learnt beside the field."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tensorf.captures import Capture

UNEVEN = 0.08  # standard deviation of logarithms of exposure; photos of one exposure stay below 0.04
LEARNT = 0.02  # `TrainConfig.exposure` where exposures differ at random
_FEWEST = 50  # pairs of pixels that say something about exposures


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

    def forward(self, color: Tensor, opacity: Tensor, background: float, photo: Tensor) -> Tensor:
        """What a photo shows of a field's rays, (n, 3).

        color (n, 3), opacity (n,): of the field over `background`, which no camera has seen and which stays as it is.
        photo (n,): the number of the photo that each ray belongs to.
        """
        gains, offsets = self.gains - self.gains.mean(0), self.offsets - self.offsets.mean(0)
        opacity = opacity[:, None]
        behind = (1 - opacity) * background
        return (color - behind) * gains[photo].exp() + opacity * offsets[photo] + behind

    def size(self) -> Tensor:
        """Mean square of logarithms of gains and of offsets, a number: what the trainer holds small."""
        return (self.gains.square().mean() + self.offsets.square().mean()) / 2


def exposures(capture: Capture) -> Tensor | None:
    """Natural logarithms of the training photos' exposures, against their mean, in the photos' order.

    Each point that was matched in two photos says how bright one is against the other (of the three channels, the
    median); together they give each photo's exposure, by least absolute deviations. Photos without such a point are
    left out. None where too few points were matched.
    """
    if capture.sightings is None:
        return None
    views, points = capture.sightings
    cameras = capture.cameras
    poses = torch.stack([c.pose for c in cameras])[views]
    intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras])[views]
    local = torch.einsum("nji,nj->ni", poses[:, :, :3], points - poses[:, :, 3])
    place = local[:, :2] / local[:, 2:].clamp(min=1e-6) * intrinsics[:, :2] + intrinsics[:, 2:]
    height, width = capture.images.shape[1:3]
    u, v = (place[:, i].long().clamp(1, size - 2) for i, size in enumerate((width, height)))
    steps = range(-1, 2)  # the mean of 3x3 pixels: matches are not exact
    colors = sum(capture.images[views, v + i, u + j].float() for i in steps for j in steps) / 9 / 255
    first, second = colors[::2], colors[1::2]
    clear = (torch.minimum(first, second).amin(1) > 0.02) & (torch.maximum(first, second).amax(1) < 0.97)
    if clear.sum() < _FEWEST:
        return None
    ratio = (first[clear] / second[clear]).log().median(1).values.double()
    a, b = views[::2][clear], views[1::2][clear]
    found = _from_differences(ratio, a, b, len(cameras))[torch.cat([a, b]).unique()]
    return found - found.mean()


def differ_at_random(exposures: Tensor | None) -> bool:
    """Whether photos differ in exposure, and neighbours no less than others.

    A video's exposure drifts. Colours that depend on the direction follow it, and held-out frames with them: they are
    worse where each photo's exposure is learnt. Photos that a phone has exposed one by one are much better then.
    """
    if exposures is None or len(exposures) < 3 or exposures.std() < UNEVEN:
        return False
    return bool(exposures.diff().square().mean().sqrt() > exposures.std())  # sqrt(2) of it at random


def _from_differences(difference: Tensor, a: Tensor, b: Tensor, count: int) -> Tensor:
    """x (count,) such that x[a] - x[b] is near difference (n,), by weighted least squares, weighted anew ten times."""
    weight, x = torch.ones_like(difference), difference.new_zeros(count)
    for _ in range(10):
        matrix = 1e-3 * torch.eye(count, dtype=x.dtype)  # parts that no pair joins stay near 0
        for row, column, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            matrix.index_put_((row, column), sign * weight, accumulate=True)
        right = x.new_zeros(count).index_add(0, a, weight * difference).index_add(0, b, -weight * difference)
        x = torch.linalg.solve(matrix, right)
        weight = 1 / ((difference - x[a] + x[b]).abs() + 0.02)
    return x
