"""The figures of one edited picture, against the true edit and the unedited source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.metrics.edges import edge_f1
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim_map
from cds3d.pocket.capture import changed_region
from cds3d.pocket.judge import Judge, agrees, labels
from cds3d.pocket.raycast import Render
from cds3d.pocket.world import Attributes

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
    def of(before: Render, after: Render) -> Truth:
        either = torch.from_numpy(before.subject | after.subject)
        size = 2 * _MARGIN + 1
        subject = F.max_pool2d(either[None, None].float(), size, 1, _MARGIN)[0, 0] > 0
        changed = torch.from_numpy(changed_region(before.image, after.image))
        return Truth(torch.from_numpy(after.image).float() / 255, changed, subject)


def picture_figures(edited: Tensor, source: Tensor, truth: Truth, judge: Judge, target: Attributes) -> dict[str, float]:
    """edited, source: (H, W, 3) in [0, 1].

    edit_truth_psnr_db, edit_truth_ssim: edit against truth inside the changed region; edit_gain_db: the PSNR, less the
    source's. kept_psnr_db: edit against source outside it. structure: edge F1 against the truth around the subject.
    accuracy: 1 if the judge sees the target's species, colour and material, else 0.
    """
    changed = truth.changed
    reached = psnr(edited, truth.image, changed)
    return {
        "edit_truth_psnr_db": reached,
        "edit_gain_db": reached - psnr(source, truth.image, changed),
        "edit_truth_ssim": float(ssim_map(edited, truth.image)[changed].mean()),
        "kept_psnr_db": psnr(edited, source, ~changed),
        "structure": edge_f1(edited, truth.image, truth.subject),
        "accuracy": float(agrees(judge, edited.permute(2, 0, 1)[None], labels(target))[0]),
    }
