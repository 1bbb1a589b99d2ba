"""Where a picture shows what some words name: DiffEdit's difference between the words' prompt and none.

Couairon et al., ICLR 2023, section 3.2, over all views of a field: the gradients of `EditedRegion` come from the
prediction for the words less that without a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from cds3d.guidance.prior import Prior
from cds3d.objectives.csd import CSD
from cds3d.objectives.objective import Prompts
from cds3d.subjects.field import source_view
from cds3d.subjects.local import LookPair
from cds3d.subjects.region import EditedRegion, RegionConfig
from tensorf.cameras import Camera
from tensorf.renderable import FastView, Renderable

# The paper encodes at half of the noise's strength; draws around it tell more than one alone.
_T_MIN, _T_MAX = 400, 600


def word_masks(
    field: Renderable, cameras: Sequence[Camera], prior: Prior, words: str, config: RegionConfig, seed: int
) -> list[tuple[FastView, Tensor]]:
    """Each camera's view of the field, and its mask (H, W) in [0, 1] of what the words name."""
    difference = CSD(
        scale=1.0, scale_end=None, score_scale=1.0, t_min=_T_MIN, t_max=_T_MAX, t_order="random", versus="source"
    )
    prompts, region = Prompts.of(prior, "", words), EditedRegion(config)
    sources = [source_view(field, camera, prior) for camera in tqdm(cameras, desc="views", unit="view")]
    torch.manual_seed(seed)
    for _ in tqdm(range(config.visits), desc=f"looking for {words}", unit="round"):
        for camera, source in enumerate(sources):
            pair = LookPair(prior, camera, source)
            step = difference.gradient(prior, pair, prompts, difference.draw(source.latent, 0.0))
            region.add(camera, pair.backward(step.gradient), source.image)
    return [(source.view, region.weight(camera, source.image)) for camera, source in enumerate(sources)]
