"""Where in its views an edit is at work, told from its own gradients and the source's pictures.

A step's gradient is noisy: one draw of t and noise makes it large here and there. Averaged over a few visits of the
same camera, while the target is still close to the source, what is left is large where the prompts disagree about the
picture, and small elsewhere: DiffEdit's mask (Couairon et al., ICLR 2023, section 3.2), without forwards of its own.

Latents are eight pixels wide, and so the mask is a blob around the subject. The guided filter (He et al., TPAMI 2013),
applied a few times, draws it to the edges of the source's picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

VISITS = 3  # of a camera, over which gradients are averaged
CELL = 4  # pixels; averages are kept, and the filter's coefficients found, on a coarser grid
RADIUS, EPSILON, ROUNDS = 4, 1e-4, 3  # of the guided filter: cells, variance of colours, how often
LOW, HIGH = 0.4, 0.6  # of the filtered mask: all is outside below, all inside above


class EditedRegion:
    """Pixels by the norm of their mean gradient: the edit's from `gate` times the root mean square of all on.

    The root mean square, `usual`, is averaged over the cameras seen so far. A camera's region is settled after VISITS
    visits; before, it is that of the visits so far.
    """

    def __init__(self, gate: float):
        self.gate = gate
        self.usual = 0.0
        self._means: dict[int, tuple[Tensor, int]] = {}  # camera -> (3, h, w) mean gradient, visits
        self._weights: dict[int, Tensor] = {}  # camera -> its weight by the means as they are now

    def add(self, camera: int, gradient: Tensor) -> None:
        """Take in dLoss/dcolour (H, W, 3) of one visit, if there is a gate to hold it against."""
        if self.gate == 0:
            return
        coarse = _coarse(gradient)[0]
        mean, visits = self._means.get(camera, (torch.zeros_like(coarse), 0))
        if visits < VISITS:
            self._means[camera] = (mean + (coarse - mean) / (visits + 1), visits + 1)
            sizes = [m.square().sum(0).mean().sqrt() for m, _ in self._means.values()]
            self.usual = float(torch.stack(sizes).mean())
            self._weights.clear()

    def weight(self, camera: int, picture: Tensor) -> Tensor:
        """(H, W) in [0, 1]: how much a pixel belongs to the edit; picture: (H, W, 3) the source's in [0, 1].

        1 everywhere where there is no gate, and for a camera that has not been seen.
        """
        if self.gate == 0 or camera not in self._means:
            return torch.ones(picture.shape[:2], device=picture.device)
        if camera not in self._weights:
            self._weights[camera] = self._drawn(camera, picture)
        return self._weights[camera]

    def _drawn(self, camera: int, picture: Tensor) -> Tensor:
        height, width, _ = picture.shape
        blurred = F.avg_pool2d(self._means[camera][0][None], 3, 1, 1, count_include_pad=False)
        mask = (blurred.norm(dim=1, keepdim=True) / max(self.gate * self.usual, 1e-30)).clamp(max=1).square()
        guide = _coarse(picture)
        model = _guided_by(guide)
        for _ in range(ROUNDS):
            slope, offset = model(mask)
            mask = ((slope * guide).sum(1, keepdim=True) + offset).clamp(0, 1)
        # The last round's coefficients for the picture in full; the last cell may reach over its edge.
        fine = F.interpolate(torch.cat([slope, offset], 1), scale_factor=CELL, mode="bilinear", align_corners=False)
        fine = fine[0, :, :height, :width].permute(1, 2, 0)
        mask = (fine[..., :3] * picture).sum(-1) + fine[..., 3]
        return ((mask - LOW) / (HIGH - LOW)).clamp(0, 1)

    def state(self) -> dict:
        return {"usual": self.usual, "means": dict(self._means)}

    def load_state(self, state: dict) -> None:
        self.usual, self._means = state["usual"], dict(state["means"])
        self._weights.clear()


def _coarse(image: Tensor) -> Tensor:
    """(H, W, 3) -> (1, 3, h, w) means of cells."""
    return F.avg_pool2d(image.permute(2, 0, 1)[None], CELL, ceil_mode=True)


def _mean(x: Tensor) -> Tensor:
    """(1, c, h, w): means of the squares of 2 RADIUS + 1 cells around each, along one axis after the other."""
    for size, padding in (((2 * RADIUS + 1, 1), (RADIUS, 0)), ((1, 2 * RADIUS + 1), (0, RADIUS))):
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
