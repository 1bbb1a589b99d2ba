"""Where a picture shows what some words name: there the words help to tell the noise from the picture.

The map is the pointwise conditional mutual information of words and picture (Kong et al., "Interpretable Diffusion via
Information Decomposition", ICLR 2024): the squared error of the noise that is predicted without a prompt, less that
with the words. It is positive where the words fit and negative where they do not, so it tells two flowers of different
colours apart, which the size of the difference alone (DiffEdit's mask) does not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cds3d.guidance.prior import Prior, Query
from cds3d.masks import averaged
from cds3d.subjects.region import EditedRegion, RegionConfig
from cds3d.subjects.sources import source_view
from tensorf.cameras import Camera
from tensorf.renderable import FastView, Renderable

log = logging.getLogger("cds3d")

_T_MIN, _T_MAX = 200, 800  # what is in a picture shows neither in little noise nor in nothing but noise
_DRAWS = 8  # of t and noise, a view
_FITS = (
    0.17  # share of what the words change that fits: of right words 0.2 to 0.8 with pocket, of wrong ones below 0.15
)


def as_caption(words: str) -> str:
    """The words as captions have them, which priors are trained on: with "a" in place of "the"."""
    words = words.strip()
    vowel = re.match(r"the\s+[aeiou]", words, re.IGNORECASE)
    return re.sub(r"^the\s+", "an " if vowel else "a ", words, flags=re.IGNORECASE)


def _over_picture(cells: Tensor, height: int, width: int) -> Tensor:
    """(1, 1, h, w) values of a latent's cells -> (H, W, 1). The cells are of whole pixels: what they leave at the right
    and below has the values of the last ones.
    """
    h, w = cells.shape[2:]
    size = height // h, width // w  # of a cell, in pixels
    fine = F.interpolate(cells, (h * size[0], w * size[1]), mode="bilinear")
    return F.pad(fine, (0, width - w * size[1], 0, height - h * size[0]), mode="replicate")[0].permute(1, 2, 0)


@torch.no_grad()
def word_masks(
    field: Renderable, cameras: Sequence[Camera], prior: Prior, words: str, config: RegionConfig, seed: int
) -> list[tuple[FastView, Tensor]]:
    """Each camera's view of the field, and its mask (H, W) in [0, 1] of what the words name.

    Warns if the words fit little of what the views show.
    """
    prompt, null, region = prior.embed(as_caption(words)), prior.embed(""), EditedRegion(config)
    sources = [source_view(field, camera, prior) for camera in tqdm(cameras, desc="views", unit="view")]
    generator = torch.Generator().manual_seed(seed)
    fits, all_of_it = torch.zeros(2, device=field.device)
    for camera, source in enumerate(tqdm(sources, desc=f"looking for {words}", unit="view")):
        information = torch.zeros_like(source.latent[:, :1])
        for _ in range(_DRAWS):
            t = int(torch.randint(_T_MIN, _T_MAX + 1, (1,), generator=generator))
            noise = torch.randn(source.latent.shape, generator=generator, dtype=torch.float32)
            noise = noise.to(source.latent.device, non_blocking=True)
            z_t = prior.noised(source.latent, t, noise)
            told, untold = (answer.noise - noise for answer in prior.ask(Query(z_t, t, prompt), Query(z_t, t, null)))
            information += (untold.square() - told.square()).sum(1, keepdim=True) / _DRAWS
        smooth = averaged(information, 3)
        fits, all_of_it = fits + smooth.clamp(min=0).sum(), all_of_it + smooth.abs().sum()
        shown = _over_picture(smooth.clamp(min=0).sqrt(), *source.image.shape[:2])
        region.add(camera, F.pad(shown, (0, 2)), source.image)
    if fits < _FITS * all_of_it:
        log.warning(
            '--where "%s": the prior finds little that these words fit (%.0f%% of what they change): look at the '
            "result, and use words that it knows, with the thing's colour",
            words, 100 * float(fits / all_of_it),
        )  # fmt: skip
    return [(source.view, region.weight(camera, source.image)) for camera, source in enumerate(sources)]
