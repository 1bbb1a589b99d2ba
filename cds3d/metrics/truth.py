"""How far an edit got and what it kept, where the true edit is known (captures of the procedural world)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cds3d.masks import dilated
from cds3d.metrics.edges import edge_f1
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim_map

CHANGED = 15  # a pixel belongs to the region that an edit changes if some channel differs by more than this, of 255
_MARGIN = 6  # pixels around the subject in which edges are compared


@dataclass(frozen=True)
class Truth:
    """One view of the world before and after the true edit.

    image (H, W, 3) in [0, 1] after it; changed (H, W) bool, where it differs from before; subject (H, W) bool, what
    is of the subject before or after, and a margin.
    """

    image: Tensor
    changed: Tensor
    subject: Tensor

    @staticmethod
    def of(before, after) -> Truth:
        """before, after: renders with `image` (H, W, 3) uint8 and `subject` (H, W) bool, as `raycast.Render`."""
        subject = dilated(torch.from_numpy(before.subject | after.subject), _MARGIN)
        changed = torch.from_numpy(changed_region(before.image, after.image))
        return Truth(torch.from_numpy(after.image).float() / 255, changed, subject)


def changed_region(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W) bool: where two (H, W, 3) uint8 renders differ visibly."""
    return np.abs(before.astype(np.int16) - after).max(-1) > CHANGED


def picture_figures(edited: Tensor, source: Tensor, truth: Truth) -> dict[str, float]:
    """Figures of one picture; edited, source: (H, W, 3) in [0, 1]. A figure of a region without a pixel is nan.

    edit_truth_psnr_db, edit_truth_ssim: edit against truth inside the changed region. edit_gain_db: the PSNR, less the
    source's. kept_psnr_db: edit against source outside it. structure: edge F1 against the truth around the subject.
    """
    changed = truth.changed
    reached = psnr(edited, truth.image, changed)
    return {
        "edit_truth_psnr_db": reached,
        "edit_gain_db": reached - psnr(source, truth.image, changed),
        "edit_truth_ssim": float(ssim_map(edited, truth.image)[changed].mean()),
        "kept_psnr_db": psnr(edited, source, ~changed),
        "structure": edge_f1(edited, truth.image, truth.subject),
    }


def mean_figures(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the rows in which it is a number; figures that are nowhere one are left out."""
    means = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows if row[key] == row[key]]
        if values:
            means[key] = float(np.mean(values))
    return means
