"""Representative samples: a few samples of a ray carry the weights of all.

Colours cost most, and along a ray they change slowly where weights are small. So samples with much weight represent
themselves. The others, mostly fog, are cut along the ray into groups of equal weight, and each group has the colour of
one of its samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.lookup import compiled_for, in_parallel, kernels, spans
from tensorf.occupancy import Samples
from tensorf.packed import exclusive_sum, ray_sum

_RAYS = 1024  # a task


@torch.no_grad()
def representatives(weights: Tensor, samples: Samples, groups: int, place: Tensor | float = 0.5) -> Tensor:
    """(n,) int64: for each sample the index of its representative on the same ray. Not differentiable.

    weights: (n,). Samples with at least 1/`groups` of their ray's weight represent themselves. The others are cut along
    the ray into `groups` parts of equal weight; the sample at `place`, (rays,) or a number in [0, 1], of a part
    represents it.
    """
    n = len(weights)
    if n == 0:
        return torch.zeros(0, dtype=torch.int64, device=weights.device)
    if compiled_for(weights):
        return _compiled(weights, samples, groups, place)
    ray = samples.ray
    total = ray_sum(weights, samples)
    heavy = weights * groups >= total[ray]
    light = torch.where(heavy, 0.0, weights)
    rest = ray_sum(light, samples)
    share = light.double() / rest.double().clamp(min=1e-300)[ray]
    # One growing number for the whole batch: the ray's index plus the share of its thin weight so far, below 1.
    until = (exclusive_sum(share, samples) + share).clamp(0, 1 - 1e-7)
    group = ((until - share / 2).clamp(min=0) * groups).floor()
    offset = place[ray] if isinstance(place, Tensor) else place
    wanted = ray + ((group + offset) / groups).clamp(max=1 - 2e-7)
    found = torch.searchsorted(ray + until, wanted, right=True).clamp(max=n - 1)
    itself = torch.arange(n, device=weights.device)
    # Rounding may point at the ray's neighbour; heavy samples do not take part.
    return torch.where(heavy | (ray[found] != ray) | heavy[found], itself, found)


def _compiled(weights: Tensor, samples: Samples, groups: int, place: Tensor | float) -> Tensor:
    out = torch.empty(len(weights), dtype=torch.int64)
    places = place if isinstance(place, Tensor) else torch.full((samples.rays,), float(place), dtype=torch.float32)
    arrays = [a.contiguous().numpy() for a in (weights, samples.first, places.float())]
    run = lambda span: kernels().representatives(*arrays, groups, out.numpy(), *span)  # noqa: E731
    in_parallel([lambda s=span: run(s) for span in spans(samples.rays, _RAYS)])
    return out
