"""PatchNCE: a patch of the source should resemble the same patch of the edit more than any other patch of the edit.

CDS, equations 5 and 6, as its authors' code has them. In the paper, as in CUT (Park et al., ECCV 2020), the edit's
patches are compared with the source's, and equation 5 is a sum over patches where the code has the mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.errors import UserError

_EXCLUDED = -10.0  # a patch is not its own negative; before the division by the temperature


def patch_nce(
    reference: Tensor,
    target: Tensor,
    *,
    patches: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(n,) cross-entropy of each of n <= patches positions, unreduced.

    reference, target: (C, h, w) features of the same layer; the reference is detached. Positions are drawn without
    replacement, the same for both. The positive of a reference patch is its own target patch; the negatives are the
    other target patches drawn. generator: of the positions, on the CPU; None is torch's global one.
    """
    positions = reference.shape[1] * reference.shape[2]
    chosen = torch.randperm(positions, generator=generator)[:patches].to(reference.device, non_blocking=True)
    ref = F.normalize(reference.detach().flatten(1)[:, chosen].T.float(), dim=1)
    tgt = F.normalize(target.flatten(1)[:, chosen].T.float(), dim=1)
    similarity = ref @ tgt.T
    positive = similarity.diagonal()[:, None]
    negative = similarity.masked_fill(torch.eye(len(chosen), dtype=torch.bool, device=ref.device), _EXCLUDED)
    logits = torch.cat([positive, negative], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.long, device=ref.device), reduction="none")


def contrastive_loss(
    pairs: Iterable[tuple[Tensor, Tensor]],
    *,
    patch_sizes: tuple[int, ...],
    patches: int,
    temperature: float,
    center: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scalar: the mean over positions of `patch_nce`, summed over patch sizes and layers.

    pairs: (reference, target) features (C, h, w), one pair per layer. A patch of size p is the mean of p x p positions
    (average pooling); layers smaller than p are left out for that size. center: subtract the reference's mean over
    positions from both first. In a small model what all positions have in common is most of a feature: every cosine is
    then near 1, the loss near the logarithm of the number of patches, and its gradient near nothing. generator: as
    `patch_nce`'s. Raises UserError where every layer is smaller than every patch size.
    """
    total = None
    for reference, target in pairs:
        if center:
            common = reference.detach().float().mean((1, 2), keepdim=True)
            reference, target = reference.float() - common, target.float() - common
        for size in patch_sizes:
            if min(reference.shape[1:]) < size:
                continue
            ref, tgt = (F.avg_pool2d(x[None].float(), size)[0] for x in (reference, target))
            loss = patch_nce(ref, tgt, patches=patches, temperature=temperature, generator=generator).mean()
            total = loss if total is None else total + loss
    if total is None:
        raise UserError(f"objective.patch_sizes={list(patch_sizes)}: all are larger than every feature map; lower them")
    return total
