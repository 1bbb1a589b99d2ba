"""What training adds to the photometric error."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.field import Field
from tensorf.occupancy import Samples
from tensorf.packed import exclusive_sum, ray_sum
from tensorf.render import march, weights_of
from tensorf.space import Rays


def distortion(weights: Tensor, samples: Samples, span: float) -> Tensor:
    """Mean over rays of the sum over i and j of w_i w_j |t_i - t_j| / span; 0 if all weight is at one place.

    Mip-NeRF 360 (Barron et al. 2022, equation 15), without its term within a sample's own interval. Fewer samples
    matter afterwards, which is what rendering pays for. weights: (n,). span: the length that distances are shares of.
    """
    if len(weights) == 0:
        return weights.sum()
    with torch.no_grad():
        w, t = weights.double(), samples.t.double() / span
        w_before, wt_before = exclusive_sum(w, samples), exclusive_sum(w * t, samples)
        w_all, wt_all = ray_sum(w, samples)[samples.ray], ray_sum(w * t, samples)[samples.ray]
        w_after, wt_after = w_all - w_before - w, wt_all - wt_before - w * t
        # What a sample's weight is multiplied with: its weighted distances to all others, once from either side.
        distances = (t * w_before - wt_before) + (wt_after - t * w_after)
    # The loss is quadratic in the weights: its gradient has a factor 2 that the distances, held fixed, do not give.
    value = (weights * distances.float()).sum() / samples.rays
    return value + (value - value.detach())


def away_from_points(field: Field, rays: Rays, points: Tensor, jitter: Tensor, margin: float) -> Tensor:
    """Mean over rays of the weight that is not where a matched point is, in [0, 1].

    rays: through `points` (rays, 3), world units, each triangulated from two photos. jitter (rays,) in [0, 1).
    margin: steps around a point within which weight counts as there. Without this loss, fog right before each camera
    explains its photo. After DS-NeRF (Deng et al., CVPR 2022) and the line-of-sight loss of Urban Radiance Fields
    (Rematas et al., CVPR 2022).
    """
    place = field.space.parameter(points, rays)
    samples = march(field, rays, jitter)
    weights = weights_of(field.density(samples.x) * samples.step, samples)
    there = (samples.t - place[samples.ray]).abs() < margin * field.step
    return 1 - weights[there].sum() / len(rays)
