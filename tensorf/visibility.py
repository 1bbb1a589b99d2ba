"""Views that are rendered again and again: the samples that matter, found once a camera.

During an edit the same cameras come back every few steps and surfaces stay close to where they are. So of a full march
through the source field only the samples that carry weight are kept (two bytes each), and both fields are rendered with
those alone: same positions, same steps, a tenth of the work. What the others add to the source's picture, a thin haze,
is kept as an image and added to every render, so that the source looks exactly as it does in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.occupancy import Samples
from tensorf.render import march, render_rays, shade, weights_of
from tensorf.space import Rays

WEIGHT = 3e-2  # a sample is kept if it has this weight,
SHARE = 0.5  # or this share of the largest weight on its ray


class View:
    """A camera's rays and the samples that matter on them; made from a field, rendered with any copy of it.

    haze: (rays, 3) the source's full render less its render by the kept samples; not differentiable.
    """

    @torch.no_grad()
    def __init__(self, field: Field, camera: Camera, *, chunk: int = 4096):
        self.camera, self.space, self.steps = camera, field.space, field.steps
        self.rays: Rays = field.space.rays(camera).to(field.device)
        counts, steps, full = [], [], []
        dt = self.space.t_span / self.steps
        for start in range(0, len(self.rays), chunk):
            rays = self.rays[start : start + chunk]
            samples = march(field, rays)
            weights = weights_of(field.opacity_rate(samples.x), samples)
            full.append(shade(field, samples, weights, rays.viewdirs)[0])
            largest = torch.zeros(len(rays), device=field.device).scatter_reduce(0, samples.ray, weights, "amax")
            kept = (weights > torch.minimum(SHARE * largest, torch.full_like(largest, WEIGHT))[samples.ray]).nonzero()
            ray = samples.ray[kept[:, 0]]
            steps.append(((samples.t[kept[:, 0]] - rays.t_near[ray]) / dt).to(torch.int16))
            counts.append(torch.bincount(ray, minlength=len(rays)))
        self.step = torch.cat(steps)
        self.count = torch.cat(counts)
        self.begin = self.count.cumsum(0) - self.count  # where each ray's samples start in `step`
        self.haze = torch.zeros(len(self), 3, device=field.device)
        self.haze = torch.cat(full) - self.render(field).view(-1, 3)

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
        return Samples(x, ray, t, count.cumsum(0) - count, len(index))

    def _color(self, field: Field, index: Tensor) -> Tensor:
        return render_rays(field, self.rays[index], samples=self.samples(index)).color + self.haze[index]

    @torch.no_grad()
    def render(self, field: Field, chunk: int = 8192) -> Tensor:
        """(H, W, 3) colours, without gradients; the haze can take an edited one a little out of [0, 1]."""
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
