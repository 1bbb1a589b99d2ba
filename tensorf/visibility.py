"""Views that are rendered again and again: the samples that matter, found once a camera.

During an edit the same cameras come back every few steps and surfaces stay close to where they are. So the samples of
a full march that carry weight in the source field, and their neighbours along the ray, are kept (two bytes each), and
both fields are rendered with those alone: same positions, same steps, a tenth of the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.render import Samples, _packed, march, render_rays, weights_of
from tensorf.space import Rays

WEIGHT = 3e-3  # a sample is kept if it, or a neighbour within MARGIN steps, has at least this weight
MARGIN = 1


class View:
    """A camera's rays and the samples that matter on them; made from a field, rendered with any copy of it."""

    @torch.no_grad()
    def __init__(self, field: Field, camera: Camera, *, chunk: int = 4096):
        self.camera, self.space, self.steps = camera, field.space, field.steps
        self.rays: Rays = field.space.rays(camera).to(field.device)
        counts, steps = [], []
        for start in range(0, len(self.rays), chunk):
            rays = self.rays[start : start + chunk]
            samples = march(field, rays)
            weights = weights_of(field.opacity_rate(samples.x), samples)
            dt = self.space.t_span / self.steps
            step = ((samples.t - rays.t_near[samples.ray]) / dt).long()
            wanted = torch.zeros(len(rays), self.steps + 2 * MARGIN, dtype=torch.bool, device=field.device)
            seen = (weights > WEIGHT).nonzero()[:, 0]
            for shift in range(2 * MARGIN + 1):
                wanted[samples.ray[seen], step[seen] + shift] = True
            wanted = wanted[:, MARGIN : MARGIN + self.steps]
            # Neighbours outside the occupied cells stay out: a full march would not see them either.
            marched = torch.zeros_like(wanted)
            marched[samples.ray, step] = True
            wanted &= marched
            counts.append(wanted.sum(1))
            steps.append(wanted.nonzero()[:, 1].to(torch.int16))
        self.step = torch.cat(steps)
        self.count = torch.cat(counts)
        self.begin = self.count.cumsum(0) - self.count  # where each ray's samples start in `step`

    def __len__(self) -> int:
        """The number of rays."""
        return len(self.rays)

    def samples(self, index: Tensor) -> Samples:
        """Packed samples of the rays (n,) int64."""
        count = self.count[index]
        ray = torch.repeat_interleave(count)
        place = torch.arange(len(ray), device=ray.device) - (count.cumsum(0) - count)[ray]
        step = self.step[self.begin[index][ray] + place]
        rays = self.rays[index]
        t = rays.t_near[ray] + (step.float() + 0.5) * (self.space.t_span / self.steps)
        x = self.space.normalise(rays.origins[ray] + t[:, None] * rays.directions[ray])
        return _packed(x, ray, t, len(index))

    def _color(self, field: Field, index: Tensor) -> Tensor:
        return render_rays(field, self.rays[index], samples=self.samples(index)).color

    @torch.no_grad()
    def render(self, field: Field, chunk: int = 8192) -> Tensor:
        """(H, W, 3) colours in [0, 1], without gradients."""
        everything = torch.arange(len(self), device=self.step.device)
        parts = [self._color(field, index) for index in everything.split(chunk)]
        return torch.cat(parts).view(self.camera.height, self.camera.width, 3)

    def backward(self, field: Field, gradient: Tensor, chunk: int = 8192, gate: float = 0.0) -> None:
        """Add to the field's `.grad` what `gradient` (H, W, 3), dLoss/dcolour, means for its parameters.

        The deferred backward (ARF, Zhang et al. 2022, section 4.3): chunks of rays are rendered again, with a graph,
        and back-propagated at once, so that memory stays flat. Rays whose gradient is zero are left out, and so are
        those whose gradient's norm is below `gate` times the root mean square over the view's rays.
        """
        gradient = gradient.reshape(-1, 3)
        norm = gradient.norm(dim=1)
        wanted = (norm > gate * norm.square().mean().sqrt()).nonzero()[:, 0]
        for index in wanted.split(chunk):
            self._color(field, index).backward(gradient[index])
