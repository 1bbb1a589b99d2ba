"""Where in its views an edit is at work, told from its own gradients.

A step's gradient is noisy: one draw of t and noise makes it large here and there. Averaged over a few visits of the
same camera, while the target is still close to the source, what is left is large where the prompts disagree about the
picture, and small elsewhere: DiffEdit's mask (Couairon et al., ICLR 2023, section 3.2), without forwards of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VISITS = 3  # of a camera, over which gradients are averaged
CELL = 4  # pixels; averages are kept on a coarser grid, and blurred by three cells, about one latent of 8 pixels


class EditedRegion:
    """Pixels by the norm of their mean gradient: all the edit's from `gate` times the root mean square of all on.

    The root mean square, `usual`, is averaged over the cameras seen so far. A camera's region is settled after VISITS
    visits; before, it is that of the visits so far.
    """

    def __init__(self, gate: float):
        self.gate = gate
        self.usual = 0.0
        self._means: dict[int, tuple[Tensor, int]] = {}  # camera -> (3, h, w) mean gradient, visits

    def add(self, camera: int, gradient: Tensor) -> None:
        """Take in dLoss/dcolour (H, W, 3) of one visit, if there is a gate to hold it against."""
        if self.gate == 0:
            return
        coarse = F.avg_pool2d(gradient.permute(2, 0, 1)[None], CELL, ceil_mode=True)[0]
        mean, visits = self._means.get(camera, (torch.zeros_like(coarse), 0))
        if visits < VISITS:
            self._means[camera] = (mean + (coarse - mean) / (visits + 1), visits + 1)
            sizes = [m.square().sum(0).mean().sqrt() for m, _ in self._means.values()]
            self.usual = float(torch.stack(sizes).mean())

    def weight(self, camera: int, height: int, width: int) -> Tensor:
        """(height, width) in [0, 1]: how much a pixel belongs to the edit.

        The square of the mean gradient's norm over `gate` times `usual`; 1 from there on. 1 everywhere where there is
        no gate, and for a camera that has not been seen.
        """
        if self.gate == 0 or camera not in self._means:
            return torch.ones(height, width)
        blurred = F.avg_pool2d(self._means[camera][0][None], 3, 1, 1, count_include_pad=False)
        size = blurred.norm(dim=1, keepdim=True)
        # The last cell may reach over the edge: what lies beyond is cut off.
        fine = F.interpolate(size, scale_factor=CELL, mode="bilinear", align_corners=False)[0, 0, :height, :width]
        return (fine / max(self.gate * self.usual, 1e-30)).clamp(max=1).square()

    def state(self) -> dict:
        return {"usual": self.usual, "means": dict(self._means)}

    def load_state(self, state: dict) -> None:
        self.usual, self._means = state["usual"], dict(state["means"])
