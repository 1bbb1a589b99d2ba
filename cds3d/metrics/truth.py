"""How far an edit got and what it kept, where the true edit is known (captures of the procedural world)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cds3d.metrics.psnr import psnr


@dataclass(frozen=True)
class TrueEdit:
    """One camera: `image` (H, W, 3) in [0, 1] after the true edit; `changed` (H, W) bool, where it differs."""

    image: Tensor
    changed: Tensor


def edit_figures(source: list[Tensor], edited: list[Tensor], truth: list[TrueEdit]) -> dict[str, float]:
    """Means over cameras, all images (H, W, 3) in [0, 1]; cameras that do not see the change are left out of the gain.

    edit_truth_psnr_db: edit against truth inside the changed region. edit_gain_db: that, less the unedited source's.
    kept_psnr_db: edit against the source's own renders outside it.
    """
    reached, gain, kept = [], [], []
    for before, after, true in zip(source, edited, truth, strict=True):
        if true.changed.any():
            reached.append(psnr(after, true.image, true.changed))
            gain.append(reached[-1] - psnr(before, true.image, true.changed))
        kept.append(psnr(after, before, ~true.changed))
    figures = {"edit_truth_psnr_db": _mean(reached), "edit_gain_db": _mean(gain), "kept_psnr_db": _mean(kept)}
    return {k: v for k, v in figures.items() if not math.isnan(v)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
