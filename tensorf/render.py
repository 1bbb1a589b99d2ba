"""Rays -> colour, opacity, depth; and whole views in chunks.

Samples are *packed*: only those in occupied cells exist, sorted by ray, with the index of their ray beside them. All
functions are differentiable in the field's parameters; positions and the choice of samples are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.occupancy import Samples, occupied_samples
from tensorf.packed import exclusive_sum, ray_sum
from tensorf.precision import full_precision
from tensorf.quadrature import representatives
from tensorf.space import Rays

COLORS = 4  # groups of thin samples on a ray that are given one colour each


def march(field: Field, rays: Rays, jitter: Tensor | None = None, occupancy: Tensor | None = None) -> Samples:
    """Samples at equal steps along each ray, those in occupied cells only.

    jitter (rays,) in [0, 1): where in its interval every sample of a ray lies; None is the middle. occupancy: (z, y, x)
    bool; None is the field's.
    """
    begin = rays.t_near + (0.5 if jitter is None else jitter) * field.step
    origin, direction, warp = field.space.lines(rays)
    occupancy = field.occupancy if occupancy is None else occupancy
    samples = occupied_samples(occupancy, origin, direction, begin, rays.t_far, field.step, field.steps, warp)
    pace = field.space.pace(rays)
    return samples if pace is None else replace(samples, step=samples.step * pace[samples.ray])


def weights_of(rate: Tensor, samples: Samples) -> Tensor:
    """Compositing weights (n,) from rates (n,): w_i = (1 - exp(-r_i)) exp(-sum of r_j before i on the same ray).

    NeRF (Mildenhall et al. 2020), equation 3.
    """
    optical_depth = exclusive_sum(rate, samples).float()
    return torch.exp(-optical_depth) * -torch.expm1(-rate)


@dataclass(frozen=True, eq=False)
class Rendering:
    """color (rays, 3) in [0, 1]; opacity (rays,); depth (rays,) in world units (`Space.depth`).

    weights (n,): of the packed samples that it was made from.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor
    samples: Samples


@full_precision
def render_rays(field: Field, rays: Rays, jitter: Tensor | None = None, near: float = 0.0) -> Rendering:
    """Render a batch of rays at once; jitter as in `march`.

    near: density gradients of samples nearer than this to the camera, in world units, are scaled by (distance / near)^2
    (Philip and Deschaintre, "Floaters No More", 2023): the space before a camera is densely sampled by it and seen by
    no other, and fills with floaters.
    """
    samples = march(field, rays, jitter)
    rate = field.density(samples.x) * samples.step
    if near > 0 and rate.requires_grad:
        share = (field.space.distance(samples.t, rays, samples.ray) / near).clamp(max=1).square()
        rate = rate.detach() + share * (rate - rate.detach())  # the value is the same
    weights = weights_of(rate, samples)
    # The jitter, turned around, also moves the colours' places, so that thin samples all get their turn.
    color, opacity = shade(field, samples, weights, rays.viewdirs, 0.5 if jitter is None else 1 - jitter)
    with torch.no_grad():
        t = ray_sum(weights * samples.t, samples) / opacity.clamp(min=1e-6)
    return Rendering(color, opacity, field.space.depth(t, rays), weights, samples)


def shade(
    field: Field, samples: Samples, weights: Tensor, viewdirs: Tensor, place: Tensor | float = 0.5
) -> tuple[Tensor, Tensor]:
    """(color (rays, 3), opacity (rays,)): the weighted sum of colours over the background.

    About COLORS samples per ray, at most twice as many, get a colour and stand for the others (`quadrature`). In a
    space with a `least_weight` all samples of more weight get one.
    """
    if field.space.least_weight is not None:
        return composite(field, samples, weights, viewdirs, field.space.least_weight)
    which = representatives(weights, samples, COLORS, place)
    return composite(field, samples, torch.zeros_like(weights).index_add(0, which, weights), viewdirs)


def composite(
    field: Field, samples: Samples, weights: Tensor, viewdirs: Tensor, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(color (rays, 3), opacity (rays,)). Samples of no more weight than `least` contribute black."""
    seen = (weights.detach() > least).nonzero()[:, 0]
    ray = samples.ray[seen]
    color = field.color(samples.x[seen], viewdirs[ray])
    total = weights.new_zeros(samples.rays, 3).index_add(0, ray, weights[seen, None] * color)
    opacity = ray_sum(weights, samples)
    return total + (1 - opacity)[:, None] * field.space.background, opacity


@full_precision
@torch.no_grad()
def render_view(field: Field, camera: Camera, chunk: int = 4096) -> dict[str, Tensor]:
    """A whole view without gradients: color (H, W, 3), opacity (H, W), depth (H, W). Memory grows with `chunk` only."""
    rays = field.space.rays(camera).to(field.device)
    parts = [_picture(field, rays[i : i + chunk]) for i in range(0, len(rays), chunk)]
    color, opacity, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = (camera.height, camera.width)
    return {"color": color.view(*shape, 3), "opacity": opacity.view(shape), "depth": depth.view(shape)}


def _picture(field: Field, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
    """(color, opacity, depth) of a `Rendering`, without its samples, which would add up to a view's."""
    rendering = render_rays(field, rays)
    return rendering.color, rendering.opacity, rendering.depth
