"""Rays -> colour, opacity, depth; whole views in chunks; and the deferred backward of a view.

Samples are *packed*: only those in occupied cells exist, sorted by ray, with the index of their ray beside them. All
functions are differentiable in the field's parameters; positions and the choice of samples are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.occupancy import Samples, occupied_samples
from tensorf.space import Rays

COLOR_WEIGHT = 2e-3  # samples below this weight get no colour query,
COLOR_SHARE = 0.25  # unless they have this share of the largest weight on their ray


def march(field: Field, rays: Rays, jitter: Tensor | None = None) -> Samples:
    """Samples at equal steps along each ray, those in occupied cells only.

    jitter (rays,) in [0, 1): where in its interval every sample of a ray lies; None is the middle.
    """
    dt = field.space.t_span / field.steps
    begin = rays.t_near + (0.5 if jitter is None else jitter) * dt
    origin = field.space.normalise(rays.origins)
    direction = field.space.normalise(rays.origins + rays.directions) - origin
    return occupied_samples(field.occupancy, origin, direction, begin, rays.t_far, dt, field.steps)


def weights_of(rate: Tensor, samples: Samples) -> Tensor:
    """Compositing weights (n,) from rates (n,): w_i = (1 - exp(-r_i)) exp(-sum of r_j before i on the same ray).

    NeRF (Mildenhall et al. 2020), equation 3. The sum runs over all packed samples in float64 and each ray's start is
    subtracted, which is exact enough for millions of samples and needs no loop over rays.
    """
    total = rate.double().cumsum(0)
    before = total - rate
    start = before[samples.first.clamp(max=max(len(rate) - 1, 0))] if len(rate) else before
    depth = (before - start[samples.ray]).float()
    return torch.exp(-depth) * -torch.expm1(-rate)


@dataclass(frozen=True)
class Rendering:
    """color (rays, 3) in [0, 1]; opacity (rays,); depth (rays,) in world units (`Space.depth`).

    weights (n,): of the packed samples that it was made from.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor
    samples: Samples


def render_rays(field: Field, rays: Rays, jitter: Tensor | None = None, samples: Samples | None = None) -> Rendering:
    """Render a batch of rays at once; `samples` takes the place of marching (see `visibility.View`)."""
    samples = samples or march(field, rays, jitter)
    weights = weights_of(field.opacity_rate(samples.x), samples)
    color, opacity = shade(field, samples, weights, rays.viewdirs)
    with torch.no_grad():
        zeros = torch.zeros(samples.rays, device=weights.device)
        t = zeros.index_add(0, samples.ray, weights * samples.t) / opacity.clamp(min=1e-6)
    return Rendering(color, opacity, field.space.depth(t, rays), weights, samples)


def shade(field: Field, samples: Samples, weights: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
    """(color (rays, 3), opacity (rays,)): the weighted sum of colours over the background.

    Samples below both `COLOR_WEIGHT` and `COLOR_SHARE` of the largest weight on their ray get no colour of their own
    but the mean colour of the others.
    """
    zeros = torch.zeros(samples.rays, device=weights.device)
    fixed = weights.detach()
    largest = zeros.scatter_reduce(0, samples.ray, fixed, "amax")
    seen = (fixed > torch.clamp(COLOR_SHARE * largest, max=COLOR_WEIGHT)[samples.ray]).nonzero()[:, 0]
    ray, w = samples.ray[seen], weights[seen]
    color = field.color(samples.x[seen], viewdirs[ray])
    total = torch.zeros(samples.rays, 3, device=w.device).index_add(0, ray, w[:, None] * color)
    colored, opacity = zeros.index_add(0, ray, w), zeros.index_add(0, samples.ray, weights)
    total = total * (opacity / colored.clamp(min=1e-9))[:, None]
    return total + (1 - opacity)[:, None] * field.space.background, opacity


@torch.no_grad()
def render_view(field: Field, camera: Camera, chunk: int = 4096) -> dict[str, Tensor]:
    """A whole view without gradients: color (H, W, 3), opacity (H, W), depth (H, W). Memory grows with `chunk` only."""
    rays = field.space.rays(camera).to(field.device)
    parts = [render_rays(field, rays[i : i + chunk]) for i in range(0, len(rays), chunk)]
    shape = (camera.height, camera.width)
    return {
        "color": torch.cat([p.color for p in parts]).view(*shape, 3),
        "opacity": torch.cat([p.opacity for p in parts]).view(shape),
        "depth": torch.cat([p.depth for p in parts]).view(shape),
    }
