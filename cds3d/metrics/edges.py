"""Edge F1: do two pictures have their edges in the same places?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.masks import dilated

_STRONG = 0.15  # of the gradient's length after a 5x5 blur, where a step from black to white has 0.62
_APART = 2  # pixels that matching edges may lie apart


def edges(image: Tensor) -> Tensor:
    """(H, W) bool: ridges of the Sobel gradient of (H, W, 3) in [0, 1], the strongest of the three channels."""
    x = image.permute(2, 0, 1)[:, None].float()
    taper = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), (taper[:, None] * taper)[None, None])
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    gradient = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernels)  # (3, 2, H, W)
    lengths = gradient.square().sum(1).sqrt()
    length, strongest = lengths.max(0)
    across = gradient.gather(0, strongest[None, None].expand(1, 2, -1, -1))[0]
    # A ridge is no weaker than its two neighbours across the edge, along x or y, whichever is nearer to the gradient.
    padded = F.pad(length[None, None], (1, 1, 1, 1))[0, 0]
    left, right, up, down = padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]
    along_x = across[0].abs() >= across[1].abs()
    ridge = torch.where(along_x, (length >= left) & (length > right), (length >= up) & (length > down))
    return ridge & (length > _STRONG)


def edge_f1(image: Tensor, reference: Tensor, region: Tensor | None = None) -> float:
    """F1 in [0, 1] of the edges of `image` against those of `reference`, both (H, W, 3) in [0, 1].

    An edge pixel counts as found if the other picture has one at most two pixels away. region: (H, W) bool, where edges
    count. Without an edge in both it is nan.
    """
    mine, theirs = edges(image), edges(reference)
    region = torch.ones_like(mine) if region is None else region
    precision = _share(mine & region, dilated(theirs, _APART))
    recall = _share(theirs & region, dilated(mine, _APART))
    if precision != precision or recall != recall:
        return 0.0 if (mine & region).any() or (theirs & region).any() else float("nan")
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _share(of: Tensor, inside: Tensor) -> float:
    return (of & inside).sum().item() / of.sum().item() if of.any() else float("nan")
