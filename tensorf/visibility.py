"""Views that are rendered again and again: a few samples a ray that stand for all, found once a camera.

During an edit the same cameras come back every few steps and surfaces stay close to where they are. So of a full march
through the source field the few samples that can stand for the others are kept (`quadrature`), and both fields are
rendered with those alone. What that leaves of the source's picture is kept as an image and added to every render, so
that the source looks exactly as it does in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.occupancy import Samples
from tensorf.quadrature import representatives
from tensorf.render import march, shade, weights_of
from tensorf.space import Rays

KEPT = 3  # groups of thin samples on a ray, of which one is kept
MOST = 1.02  # opacity


class View:
    """A camera's rays and the samples that stand for all; made from a field, rendered with any copy of it.

    step, scale (n,): of each kept sample its step along the ray, and the factor on its weight that makes it stand for
    the others; count, begin (rays,): how many each ray has, and where they start.
    residue: (rays, 3) the source's full render less its render by the kept samples; not differentiable.
    """

    @torch.no_grad()
    def __init__(self, field: Field, camera: Camera, *, chunk: int = 4096):
        self.camera, self.space, self.steps = camera, field.space, field.steps
        self.rays: Rays = field.space.rays(camera).to(field.device)
        counts, steps, scales, full = [], [], [], []
        dt = self.space.t_span / self.steps
        for start in range(0, len(self.rays), chunk):
            rays = self.rays[start : start + chunk]
            samples = march(field, rays)
            rate = field.opacity_rate(samples.x)
            weights = weights_of(rate, samples)
            full.append(shade(field, samples, weights, rays.viewdirs)[0])
            stands_for = torch.zeros_like(weights).index_add(0, representatives(weights, samples, KEPT), weights)
            kept = (stands_for > 0).nonzero()[:, 0]
            ray = samples.ray[kept]
            count = torch.bincount(ray, minlength=len(rays))
            few = Samples(samples.x[kept], ray, samples.t[kept], count.cumsum(0) - count, len(rays))
            scales.append(stands_for[kept] / weights_of(rate[kept], few).clamp(min=torch.finfo(torch.float32).tiny))
            steps.append(((few.t - rays.t_near[ray]) / dt).to(torch.int16))
            counts.append(count)
        self.step, self.scale, self.count = torch.cat(steps), torch.cat(scales), torch.cat(counts)
        self.begin = self.count.cumsum(0) - self.count  # where each ray's samples start in `step` and `scale`
        self.residue = torch.zeros(len(self), 3, device=field.device)
        self.residue = torch.cat(full) - self.render(field).view(-1, 3)

    def __len__(self) -> int:
        """The number of rays."""
        return len(self.rays)

    def samples(self, index: Tensor) -> tuple[Samples, Tensor]:
        """Packed samples of the rays (n,) int64, and the factor on each one's weight."""
        count = self.count[index]
        ray = torch.repeat_interleave(count)
        place = torch.arange(len(ray), device=ray.device) - (count.cumsum(0) - count)[ray]
        at = self.begin[index][ray] + place
        rays = self.rays[index]
        t = rays.t_near[ray] + (self.step[at].float() + 0.5) * (self.space.t_span / self.steps)
        x = self.space.normalise(rays.origins[ray] + t[:, None] * rays.directions[ray])
        return Samples(x, ray, t, count.cumsum(0) - count, len(index)), self.scale[at]

    def _color(self, field: Field, index: Tensor) -> Tensor:
        samples, scale = self.samples(index)
        weights = weights_of(field.opacity_rate(samples.x), samples) * scale
        # Where an edit thickens fog, what stands for it may come to more than everything: cut off above MOST, which
        # rounding does not reach.
        opacity = torch.zeros(samples.rays, device=weights.device).index_add(0, samples.ray, weights)
        weights = weights / (opacity / MOST).clamp(min=1)[samples.ray]
        return shade(field, samples, weights, self.rays.viewdirs[index])[0] + self.residue[index]

    @torch.no_grad()
    def render(self, field: Field, chunk: int = 8192) -> Tensor:
        """(H, W, 3) colours, without gradients; the residue can take an edited one a little out of [0, 1]."""
        everything = torch.arange(len(self), device=self.step.device)
        parts = [self._color(field, index) for index in everything.split(chunk)]
        return torch.cat(parts).view(self.camera.height, self.camera.width, 3)

    def backward(self, field: Field, gradient: Tensor, chunk: int = 8192, least: float = 0.0) -> None:
        """Add to the field's `.grad` what `gradient` (H, W, 3), dLoss/dcolour, means for its parameters.

        The deferred backward (ARF, Zhang et al. 2022, section 4.3): chunks of rays are rendered again, with a graph,
        and back-propagated at once, so that memory stays flat. Rays are left out whose gradient's norm is not above
        `least`.
        """
        gradient = gradient.reshape(-1, 3)
        # What is not a number is passed on, for the editor to notice.
        wanted = (~(gradient.norm(dim=1) <= least)).nonzero()[:, 0]
        for index in wanted.split(chunk):
            self._color(field, index).backward(gradient[index])
