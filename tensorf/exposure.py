"""What a camera changed by itself from photo to photo: a gain and an offset of colours, learnt beside the field."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tensorf.captures import Capture

UNEVEN = 0.08  # `exposure_difference` from which on exposures are learnt; photos of one exposure stay below 0.04
LEARNT = 0.02  # `TrainConfig.exposure` then
_FEWEST_POINTS, _FEWEST_PAIRS = 8, 4  # of a pair of photos, and of such pairs, that say something


class Exposure(nn.Module):
    """A gain and an offset a photo and channel.

    After Urban Radiance Fields (Rematas et al., CVPR 2022), where a network gives each photo a matrix of colours.
    A phone sets exposure and white balance anew for every photo. A field that has to explain each photo exactly puts
    such changes into colours that depend on the direction, and into fog. Over all photos the mean of the logarithm of
    the gain and that of the offset are 0: the field has the colours of the average photo, and is rendered without this.
    """

    def __init__(self, photos: int):
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(photos, 3, dtype=torch.float32))  # natural logarithms
        self.offsets = nn.Parameter(torch.zeros(photos, 3, dtype=torch.float32))

    def forward(self, color: Tensor, opacity: Tensor, background: float, photo: Tensor) -> Tensor:
        """What a photo shows of a field's rays, (n, 3).

        color (n, 3), opacity (n,): of the field over `background`, which exposure does not change.
        photo (n,): the number of the photo that each ray belongs to.
        """
        gains, offsets = self.gains - self.gains.mean(0), self.offsets - self.offsets.mean(0)
        opacity = opacity[:, None]
        behind = (1 - opacity) * background
        return (color - behind) * gains[photo].exp() + opacity * offsets[photo] + behind

    def penalty(self) -> Tensor:
        """Mean square of logarithms of gains and of offsets, a number: what the trainer holds small."""
        return (self.gains.square().mean() + self.offsets.square().mean()) / 2


def exposure_difference(capture: Capture) -> float | None:
    """How much exposure differs between training photos from about the same side.

    Photos in which the same points were matched are neighbours in space. Their colours at these points (of the three
    channels, and of the points, the median) say how bright one photo is against the other. The result is the standard
    deviation that the logarithms of exposure would have if they were drawn at random and gave such differences: two
    draws of a standard normal variable differ by 0.954 in the median. None where too few points were matched.

    A video's exposure that drifts does not count: neighbours have about the same. Colours that depend on the direction
    follow it, and held-out frames with them, which are worse where each photo's exposure is learnt.
    """
    if capture.sightings is None or len(capture.sightings[0]) < 2:
        return None
    whole = len(capture.sightings[0]) // 2 * 2  # the two photos of a point stand side by side
    views, points = (part[:whole] for part in capture.sightings)
    colors = _colors_at(capture, views, points)
    first, second = colors[::2], colors[1::2]
    clear = (torch.minimum(first, second).amin(1) > 0.02) & (torch.maximum(first, second).amax(1) < 0.97)
    ratios = (first[clear] / second[clear]).log().median(1).values
    pairs, pair = views.view(-1, 2)[clear].unique(dim=0, return_inverse=True)
    chosen = (ratios[pair == i] for i in range(len(pairs)))
    differences = [part.median().abs() for part in chosen if len(part) >= _FEWEST_POINTS]
    if len(differences) < _FEWEST_PAIRS:
        return None
    return torch.stack(differences).median().item() / 0.954


def _colors_at(capture: Capture, views: Tensor, points: Tensor) -> Tensor:
    """(n, 3) in [0, 1]: what the views (n,) show around the points (n, 3), world units; means of 3x3 pixels."""
    poses = torch.stack([c.pose for c in capture.cameras])[views]
    intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in capture.cameras], dtype=torch.float32)[views]
    local = torch.einsum("nji,nj->ni", poses[:, :, :3], points - poses[:, :, 3])
    place = local[:, :2] / local[:, 2:].clamp(min=1e-6) * intrinsics[:, :2] + intrinsics[:, 2:]
    height, width = capture.images.shape[1:3]
    u, v = (place[:, i].long().clamp(1, size - 2) for i, size in enumerate((width, height)))
    around = range(-1, 2)  # matches are not exact
    return sum(capture.images[views, v + i, u + j].float() for i in around for j in around) / 9 / 255
