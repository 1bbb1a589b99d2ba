"""Where in its views an edit is at work, told from its own gradients and the source's pictures.

A step's gradient is noisy: one draw of t and noise makes it large here and there. Averaged over a few visits of the
same camera, while the target is still close to the source, what is left is large where the prompts disagree about the
picture, and small elsewhere: DiffEdit's mask (Couairon et al., ICLR 2023, section 3.2), without forwards of its own.

Latents are eight pixels wide, and so that mask is a blob around the subject, and patchy. The source's pictures tell
what it stands for. What looks like the mask's inside in all views, and is near it, belongs to it, as in GrabCut (Rother
et al., SIGGRAPH 2004); and the guided filter (He et al., TPAMI 2013) draws it to edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VISITS = 3  # of a camera, over which gradients are averaged
CELL = 4  # pixels; averages are kept, and the filter's coefficients found, on a coarser grid
RADIUS, EPSILON, ROUNDS = 4, 1e-4, 3  # of the guided filter: cells, variance of colours, how often
BINS, FEW = 12, 5.0  # of the colour model: steps a channel, and cells of a colour on which little can be said
BY_COLOR, TELLING = 0.7, 0.5  # the colour model's share if its mean in and outside of masks are so far apart
NEAR, ENOUGH = 8, 0.15  # the mask's share of the cells so far around from which on a pixel is near it
LOW, HIGH = 0.4, 0.6  # all is outside below, all inside above
SPECK = 2  # pixels; what is no wider than twice that is left out


@dataclass
class _Seen:
    """What is known of a camera. mean: (3, h, w) gradients; picture: (1, 3, h, w), the source's, as coarse."""

    mean: Tensor
    visits: int
    picture: Tensor

    def __post_init__(self):
        self.size = F.avg_pool2d(self.mean[None], 3, 1, 1, count_include_pad=False).norm(dim=1, keepdim=True)
        squares = self.size.square()
        self.usual = float(self.mean.square().sum(0).mean().sqrt())
        self.strong = float((squares * self.size).sum() / squares.sum().clamp(min=torch.finfo(torch.float32).tiny))
        r, g, b = (self.picture.clamp(0, 1) * (BINS - 1)).round().long()[0].flatten(1)
        self.colors = (r * BINS + g) * BINS + b


class EditedRegion:
    """Pixels are the edit's whose mean gradient reaches `gate` times what it is where the edit is at work.

    usual: the root mean square of the mean gradients; strong: their mean where they are large (weighted by their
    squares). Both are averaged over the cameras seen so far. A camera's mean is settled after VISITS visits; before, it
    is that of the visits so far.
    """

    def __init__(self, gate: float):
        self.gate = gate
        self._take({})

    def _take(self, seen: dict[int, _Seen]) -> None:
        self._seen = seen
        self.usual, self.strong = (
            sum(getattr(s, name) for s in seen.values()) / max(1, len(seen)) for name in ("usual", "strong")
        )
        self._colors: tuple[Tensor, float] | None = None  # the colour model by the means as they are now
        self._weights: dict[int, Tensor] = {}  # of cameras, likewise

    def add(self, camera: int, gradient: Tensor, picture: Tensor) -> None:
        """Take in dLoss/dcolour (H, W, 3) of one visit, if there is a gate to hold it against.

        picture: (H, W, 3) the source's in [0, 1].
        """
        before = self._seen.get(camera)
        if self.gate == 0 or (before and before.visits == VISITS):
            return
        mean, visits = _coarse(gradient)[0], 1
        if before:
            visits = before.visits + 1
            mean = before.mean + (mean - before.mean) / visits
        self._take(self._seen | {camera: _Seen(mean, visits, _coarse(picture))})

    def weight(self, camera: int, picture: Tensor) -> Tensor:
        """(H, W) in [0, 1]: how much a pixel belongs to the edit; picture: (H, W, 3) the source's in [0, 1].

        1 everywhere where there is no gate, and for a camera that has not been seen.
        """
        if self.gate == 0 or camera not in self._seen:
            return torch.ones(picture.shape[:2], device=picture.device)
        if camera not in self._weights:
            self._weights[camera] = self._drawn(camera, picture)
        return self._weights[camera]

    def _mask(self, size: Tensor) -> Tensor:
        """In [0, 1], by the gradients alone."""
        return (size / max(self.gate * self.strong, 1e-30)).clamp(max=1).square()

    def _drawn(self, camera: int, picture: Tensor) -> Tensor:
        height, width, _ = picture.shape
        guide, found = self._seen[camera].picture, self._mask(self._seen[camera].size)
        near = (_mean(found, NEAR) / ENOUGH).clamp(max=1).maximum(found)
        model, mask = _guided_by(guide), found
        for _ in range(ROUNDS):
            slope, offset = model(mask)
            mask = ((slope * guide).sum(1, keepdim=True) + offset).clamp(0, 1)
        # The last round's coefficients for the picture in full; the last cell may reach over its edge.
        coarse = torch.cat([slope, offset, near, found], 1)
        fine = F.interpolate(coarse, scale_factor=CELL, mode="bilinear", align_corners=False)
        fine = fine[0, :, :height, :width].permute(1, 2, 0)
        drawn = (fine[..., :3] * picture).sum(-1) + fine[..., 3]
        by_color, trust = self._by_color(picture)
        # Where colours say nothing there may be no edges either, and the filter does no more than blur.
        drawn = torch.lerp(drawn.maximum(fine[..., 5]), drawn, trust)
        drawn = torch.lerp(drawn, by_color, BY_COLOR * trust)
        weight = ((drawn - LOW) / (HIGH - LOW)).clamp(0, 1) * fine[..., 4]
        return dilated(-dilated(-weight, SPECK), SPECK)

    def _by_color(self, picture: Tensor) -> tuple[Tensor, float]:
        """((H, W) in [0, 1]: the masks' mean where the views have a pixel's colour, how far to trust it in [0, 1]).

        picture: (H, W, 3) in [0, 1]. Colours that say the same inside and outside the masks are not trusted at all.
        """
        if self._colors is None:
            index = torch.cat([s.colors for s in self._seen.values()])
            masks = self._mask(torch.cat([s.size.flatten() for s in self._seen.values()]))
            count = torch.bincount(index, minlength=BINS**3)
            share = (torch.bincount(index, masks, minlength=BINS**3) + FEW * masks.mean()) / (count + FEW)
            tiny = torch.finfo(torch.float32).tiny
            inside, outside = ((m * share[index]).sum() / m.sum().clamp(min=tiny) for m in (masks, 1 - masks))
            trust = float(((inside - outside) / TELLING).clamp(0, 1))
            self._colors = share.view(1, 1, BINS, BINS, BINS).float(), trust
        colors, trust = self._colors
        points = picture.flip(-1).reshape(1, 1, 1, -1, 3) * 2 - 1  # the last axis comes first
        found = F.grid_sample(colors, points, padding_mode="border", align_corners=True)
        return F.avg_pool2d(found.view(1, 1, *picture.shape[:2]), 3, 1, 1, count_include_pad=False)[0, 0], trust

    def state(self) -> dict:
        """Cameras' mean gradients, visits and pictures."""
        return {camera: (s.mean, s.visits, s.picture) for camera, s in self._seen.items()}

    def load_state(self, state: dict, device: torch.device) -> None:
        self._take(
            {k: _Seen(mean.to(device), visits, picture.to(device)) for k, (mean, visits, picture) in state.items()}
        )


def dilated(weight: Tensor, radius: int) -> Tensor:
    """(H, W): the largest of the square of 2 radius + 1 pixels around each."""
    return F.max_pool2d(weight[None], 2 * radius + 1, 1, radius)[0]


def _coarse(image: Tensor) -> Tensor:
    """(H, W, 3) -> (1, 3, h, w) means of cells."""
    return F.avg_pool2d(image.permute(2, 0, 1)[None], CELL, ceil_mode=True)


def _mean(x: Tensor, radius: int = RADIUS) -> Tensor:
    """(1, c, h, w): means of the squares of 2 radius + 1 cells around each, along one axis after the other."""
    for size, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        x = F.avg_pool2d(x, size, 1, padding, count_include_pad=False)
    return x


def _guided_by(guide: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The guided filter of a guide (1, 3, h, w): He et al., equations 19 to 21, whose coefficients are averaged.

    It takes a mask (1, 1, h, w) and gives the linear model, mask = slope . guide + offset around each cell:
    (1, 3, h, w), (1, 1, h, w).
    """
    m = _mean(guide)
    products = _mean((guide[:, :, None] * guide[:, None]).flatten(1, 2))
    variance = products.view(3, 3, *guide.shape[2:]) - m[0][:, None] * m[0][None]
    inverse = torch.linalg.inv(variance.permute(2, 3, 0, 1) + EPSILON * torch.eye(3, device=guide.device))

    def model(mask: Tensor) -> tuple[Tensor, Tensor]:
        p = _mean(mask)
        covariance = _mean(guide * mask) - m * p
        slope = (inverse @ covariance[0].permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)[None]
        return _mean(slope), _mean(p - (slope * m).sum(1, keepdim=True))

    return model
