"""Arithmetic on packed samples: all rays' samples in one list, sorted by ray."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.occupancy import Samples


def split_indices(mask: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Ascending int64 indices where a mask (n,) holds, and where it does not.

    count: the number of the former, if the caller knows it. A GPU is waited for at most once, and not at all with it.
    """
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    if count is None:
        count = int(mask.sum())
    order = mask.sort(descending=True, stable=True).indices
    return order[:count], order[count:]


def exclusive_sum(values: Tensor, samples: Samples) -> Tensor:
    """(n,) float64: for each sample the sum of `values` (n,) before it on the same ray; differentiable.

    The sum runs over all packed samples, and each ray's start is subtracted: in float64 that is exact enough for
    millions of samples, and needs no loop over rays.
    """
    if len(values) == 0:
        return values.double()
    before = values.double().cumsum(0) - values
    return before - before[samples.first.clamp(max=len(values) - 1)][samples.ray]


def ray_sum(values: Tensor, samples: Samples) -> Tensor:
    """(rays,) sums of `values` (n,), in their own type; differentiable."""
    return torch.zeros(samples.rays, dtype=values.dtype, device=values.device).index_add(0, samples.ray, values)
