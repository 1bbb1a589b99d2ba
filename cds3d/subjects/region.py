"""The region of an edit: a soft mask of each view, estimated from the edit's own gradients and the source's pictures.

1. DiffEdit's mask (Couairon et al., ICLR 2023, section 3.2) is where the predictions for two prompts differ. A step's
   gradient holds that difference for one draw of t and noise. The mean over a few visits of the same camera, while the
   target is still close to the source, is large where the prompts disagree about the picture.
2. A latent element is eight pixels wide, so this mask is a blob. A colour model of the foreground and background, as in
   GrabCut (Rother et al., SIGGRAPH 2004), with histograms over all views, and the guided filter (He et al., TPAMI
   2013) carry the mask to the edges of the source's picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.masks import averaged, dilated

# Side in cells (of gradients) or pixels (of colours' probabilities) of the square over which single ones, which are
# noise, are averaged. The smallest there is: edges stay where they are.
_NEARBY = 3


@dataclass(frozen=True)
class RegionConfig:
    """How the mask is estimated. Lengths are shares of the view's width."""

    mask_threshold: float  # foreground: mean gradient of at least this share of the strong ones; 0: every pixel
    visits: int  # of a camera, over which gradients are averaged
    cell: float  # side of the cells in which averages are kept and the filter's coefficients found
    filter_radius: float  # of the guided filter
    filter_epsilon: float  # its variance of colours
    filter_rounds: int
    color_bins: int  # of the colour model, a channel
    color_prior: float  # cells of a colour below which the mask's mean outweighs them
    color_weight: float  # share of the colour model where foreground and background differ in colour, else less
    color_contrast: float  # difference of mean probabilities from which on they count as different
    near_radius: float  # half side of a square around a pixel
    near_share: float  # of the square: a pixel is foreground only if the gradients' mask covers so much of it
    low: float  # below it all is background
    high: float  # above it all is foreground
    speck: float  # what is no wider than twice this is left out

    def __post_init__(self):
        for name in ("mask_threshold", "cell", "filter_radius", "near_radius", "speck"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} has to be 0 or more")
        for name in ("filter_epsilon", "color_prior", "color_contrast", "near_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be above 0")
        for name, least in (("visits", 1), ("filter_rounds", 0), ("color_bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least {least}")
        if self.color_bins > 64:
            raise ValueError(
                f"color_bins={self.color_bins} has to be at most 64: the colour model has its cube of cells"
            )
        if not 0 <= self.color_weight <= 1:
            raise ValueError(f"color_weight={self.color_weight} has to be between 0 and 1")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low={self.low} has to be below high={self.high}, both between 0 and 1")


class _Visited:
    """What is known of a camera, in cells of `cell` pixels.

    mean: (3, h, w) its mean gradient over `visits`. picture: (1, 3, h, w) the source's. length: (1, 1, h, w) of the
    smoothed gradient. gradient_rms: root mean square length of the mean gradient. strong_gradient: mean of `length`,
    weighted by its squares. Both are tensors of one number, so that no GPU is waited for.
    """

    def __init__(self, mean: Tensor, visits: int, picture: Tensor, bins: int):
        self.mean, self.visits, self.picture = mean, visits, picture
        self.length = averaged(mean[None], _NEARBY).norm(dim=1, keepdim=True)
        squares = self.length.square()
        tiny = torch.finfo(torch.float32).tiny
        self.gradient_rms = mean.square().sum(0).mean().sqrt().double()
        self.strong_gradient = ((squares * self.length).sum() / squares.sum().clamp(min=tiny)).double()
        r, g, b = (picture.clamp(0, 1) * (bins - 1)).round().long()[0].flatten(1)
        self.colors = (r * bins + g) * bins + b


class EditedRegion:
    """The masks of all views. A camera's mean gradient is settled after `visits`; before, it is that of those so far.

    gradient_rms: of the mean gradients; strong_gradient: their size where they are large. Both are means over the
    cameras visited so far.
    """

    def __init__(self, config: RegionConfig):
        self.config = config
        self._take({})

    def _take(self, visited: dict[int, _Visited]) -> None:
        self._visited = visited
        count = max(1, len(visited))
        self.gradient_rms = sum(v.gradient_rms for v in visited.values()) / count
        self.strong_gradient = sum(v.strong_gradient for v in visited.values()) / count
        self._colors: tuple[Tensor, Tensor] | None = None  # the colour model of the means as they are now
        self._weights: dict[int, Tensor] = {}  # masks, likewise

    def add(self, camera: int, gradient: Tensor, picture: Tensor) -> None:
        """Take in dLoss/dcolour (H, W, 3) of one visit, if there is a threshold to hold it against.

        picture: (H, W, 3) the source's in [0, 1].
        """
        before, config = self._visited.get(camera), self.config
        if config.mask_threshold == 0 or (before and before.visits == config.visits):
            return
        cell = _pixels(config.cell, picture, least=1)
        mean, visits = _coarse(gradient, cell)[0], 1
        if before:
            visits = before.visits + 1
            mean = before.mean + (mean - before.mean) / visits
        seen = _Visited(mean, visits, _coarse(picture, cell), config.color_bins)
        self._take(self._visited | {camera: seen})

    def weight(self, camera: int, picture: Tensor) -> Tensor:
        """(H, W) mask in [0, 1], 1 for foreground; picture: (H, W, 3) the source's in [0, 1].

        1 everywhere without a threshold, and for a camera that has not been visited.
        """
        if self.config.mask_threshold == 0 or camera not in self._visited:
            return torch.ones(picture.shape[:2], device=picture.device)
        if camera not in self._weights:
            self._weights[camera] = self._mask(camera, picture)
        return self._weights[camera]

    def _from_gradients(self, length: Tensor) -> Tensor:
        """DiffEdit's mask, soft, in [0, 1]."""
        return (length / (self.config.mask_threshold * self.strong_gradient).clamp(min=1e-30)).clamp(max=1).square()

    def _mask(self, camera: int, picture: Tensor) -> Tensor:
        config, (height, width, _) = self.config, picture.shape
        cell = _pixels(config.cell, picture, least=1)
        radius, near_radius = (_pixels(r, picture) // cell for r in (config.filter_radius, config.near_radius))
        guide = self._visited[camera].picture
        found = self._from_gradients(self._visited[camera].length)
        near = (_mean(found, near_radius) / config.near_share).clamp(max=1).maximum(found)
        model, mask = _guided_filter(guide, radius, config.filter_epsilon), found
        slope, offset = torch.zeros_like(guide), mask
        for _ in range(config.filter_rounds):
            slope, offset = model(mask)
            mask = ((slope * guide).sum(1, keepdim=True) + offset).clamp(0, 1)
        # The last round's coefficients for the picture in full; the last cell may reach over its edge.
        coarse = torch.cat([slope, offset, near, found], 1)
        fine = F.interpolate(coarse, scale_factor=cell, mode="bilinear", align_corners=False)
        fine = fine[0, :, :height, :width].permute(1, 2, 0)
        filtered = (fine[..., :3] * picture).sum(-1) + fine[..., 3]
        by_color, trust = self._by_color(picture)
        # Where colours say nothing there may be no edges either, and the filter does no more than blur.
        filtered = torch.lerp(filtered.maximum(fine[..., 5]), filtered, trust)
        mixed = torch.lerp(filtered, by_color, (config.color_weight * trust.double()).float())
        weight = ((mixed - config.low) / (config.high - config.low)).clamp(0, 1) * fine[..., 4]
        speck = _pixels(config.speck, picture)
        return dilated(-dilated(-weight, speck), speck)

    def _by_color(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """((H, W) probability that a pixel of this colour is foreground, one number in [0, 1]: how far to trust it).

        picture: (H, W, 3) in [0, 1]. A model that says the same of foreground and background is not trusted at all.
        """
        config, bins = self.config, self.config.color_bins
        if self._colors is None:
            index = torch.cat([v.colors for v in self._visited.values()])
            masks = self._from_gradients(torch.cat([v.length.flatten() for v in self._visited.values()]))
            count, share = masks.new_zeros(2, bins**3)  # `bincount` would wait for a GPU
            count.index_add_(0, index, torch.ones_like(masks))
            share = share.index_add_(0, index, masks) + config.color_prior * masks.mean()
            share = share / (count + config.color_prior)
            tiny = torch.finfo(torch.float32).tiny
            inside, outside = ((m * share[index]).sum() / m.sum().clamp(min=tiny) for m in (masks, 1 - masks))
            trust = ((inside - outside) / config.color_contrast).clamp(0, 1)
            self._colors = share.view(1, 1, bins, bins, bins), trust
        colors, trust = self._colors
        points = picture.flip(-1).reshape(1, 1, 1, -1, 3) * 2 - 1  # the last axis comes first
        found = F.grid_sample(colors, points, padding_mode="border", align_corners=True)
        return averaged(found.view(1, 1, *picture.shape[:2]), _NEARBY)[0, 0], trust

    @property
    def visited(self) -> list[int]:
        """The cameras that have a mask."""
        return sorted(self._visited)

    def state(self) -> dict:
        """Cameras' mean gradients, visits and pictures."""
        return {camera: (v.mean, v.visits, v.picture) for camera, v in self._visited.items()}

    def load_state(self, state: dict, device: torch.device) -> None:
        """ValueError for a state whose numbers are not finite."""
        if not all(torch.isfinite(part).all() for mean, _, picture in state.values() for part in (mean, picture)):
            raise ValueError("masks with numbers that are not finite")
        bins = self.config.color_bins
        self._take(
            {
                k: _Visited(mean.to(device), visits, picture.to(device), bins)
                for k, (mean, visits, picture) in state.items()
            }
        )


def _pixels(share: float, picture: Tensor, least: int = 0) -> int:
    """A share of the width of (H, W, 3) in whole pixels."""
    return max(least, round(share * picture.shape[1]))


def _coarse(image: Tensor, cell: int) -> Tensor:
    """(H, W, 3) -> (1, 3, h, w) means of cells of `cell` pixels."""
    return F.avg_pool2d(image.permute(2, 0, 1)[None], cell, ceil_mode=True)


def _mean(x: Tensor, radius: int) -> Tensor:
    """(1, c, h, w): means of the squares of 2 radius + 1 cells around each, along one axis after the other."""
    for size, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        x = F.avg_pool2d(x, size, 1, padding, count_include_pad=False)
    return x


def _guided_filter(guide: Tensor, radius: int, epsilon: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The guided filter of a guide (1, 3, h, w): He et al., equations 19 to 21, whose coefficients are averaged.

    It takes a mask (1, 1, h, w) and gives the linear model, mask = slope . guide + offset around each cell:
    (1, 3, h, w), (1, 1, h, w).
    """
    m = _mean(guide, radius)
    products = _mean((guide[:, :, None] * guide[:, None]).flatten(1, 2), radius)
    variance = products.view(3, 3, *guide.shape[2:]) - m[0][:, None] * m[0][None]
    # A covariance plus epsilon can be inverted: to ask whether it could, as `inv` does, waits for a GPU.
    inverse = torch.linalg.inv_ex(variance.permute(2, 3, 0, 1) + epsilon * torch.eye(3, device=guide.device))[0]

    def model(mask: Tensor) -> tuple[Tensor, Tensor]:
        p = _mean(mask, radius)
        covariance = _mean(guide * mask, radius) - m * p
        slope = (inverse @ covariance[0].permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)[None]
        return _mean(slope, radius), _mean(p - (slope * m).sum(1, keepdim=True), radius)

    return model
