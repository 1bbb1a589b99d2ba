"""Sample caches: the few samples per ray that represent all of them, found once per camera, rendered often.

During an edit the same cameras come back every few steps, and surfaces stay close to where they are. So a full march
through the source field is made once, and only representative samples of it are kept (`quadrature`). Both fields are
rendered with these. The difference to the source's full render is kept as an image and added to every render, so that
the source looks exactly as it does in full.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.local import LocalField
from tensorf.occupancy import Samples, cell_index, count_by_ray
from tensorf.packed import ray_sum, split_indices
from tensorf.precision import full_precision
from tensorf.quadrature import representatives
from tensorf.render import COLORS, composite, march, render_rays, shade, weights_of
from tensorf.space import Rays

KEPT = 3  # groups of thin samples on a ray, of which one is kept
MAX_OPACITY = 1.02  # of a ray: more, of fog that an edit has thickened, is scaled down to it
FAINT = 1e-2  # weight outside a region below which a sample is left out: `LocalView`'s residue makes up for it
THIN = 1e-5  # samples with less weight are left out, in the knowledge that `residue` makes up for them


class View:
    """A camera's rays and the samples that stand for all; made from a field, rendered with any copy of it.

    x, step, scale: (n, 3), (n,), (n,) each kept sample's position in [-1, 1], the length of its interval, and the
    factor on its weight that makes it stand for the others; count (rays,): how many each ray has. viewdirs: (rays, 3).
    full: (H, W, 3) the render of the field it was made from with all samples.
    residue: (rays, 3) that less the render by the kept samples; not differentiable.
    """

    @full_precision
    @torch.no_grad()
    def __init__(self, field: Field, camera: Camera, *, chunk: int = 4096):
        self.camera = camera
        rays = field.space.rays(camera).to(field.device)
        parts = [self._kept(field, rays[i : i + chunk]) for i in range(0, len(rays), chunk)]
        self.x, self.step, self.scale, self.count, full, self.residue = (
            torch.cat(tensors) for tensors in zip(*parts, strict=True)
        )
        self.viewdirs = rays.viewdirs
        self.full = full.view(camera.height, camera.width, 3)

    @staticmethod
    def _kept(field: Field, rays: Rays) -> tuple[Tensor, ...]:
        """(x, step, scale, count, full render, residue) of some of the camera's rays."""
        samples = march(field, rays)
        rate = field.density(samples.x) * samples.step
        weights = weights_of(rate, samples)
        full, _ = shade(field, samples, weights, rays.viewdirs)
        seen = (weights > THIN).nonzero()[:, 0]
        samples, rate, weights = samples.subset(seen), rate[seen], weights[seen]
        stands_for = torch.zeros_like(weights).index_add(0, representatives(weights, samples, KEPT), weights)
        kept = (stands_for > 0).nonzero()[:, 0]
        few = samples.subset(kept)
        scale = stands_for[kept] / weights_of(rate[kept], few).clamp(min=torch.finfo(torch.float32).tiny)
        residue = full - View._color(field, few, scale, rays.viewdirs)
        return few.x, few.step, scale, count_by_ray(few.ray, len(rays)), full, residue

    def __len__(self) -> int:
        """The number of rays."""
        return len(self.viewdirs)

    def samples(self, index: Tensor | None = None) -> tuple[Samples, Tensor]:
        """Packed samples of all rays or of those in `index` (n,) int64, and the factor on each one's weight."""
        if index is None:
            count, x, step, scale, total = self.count, self.x, self.step, self.scale, len(self.x)
        else:
            count, begin, total = self.count[index], (self.count.cumsum(0) - self.count)[index], None
        ray, first = torch.repeat_interleave(count, output_size=total), count.cumsum(0) - count
        if index is not None:
            at = torch.arange(len(ray), device=ray.device) + (begin - first)[ray]
            x, step, scale = self.x[at], self.step[at], self.scale[at]
        return Samples(x, ray, x.new_zeros(len(x)), step, first, len(count)), scale

    @full_precision
    def color(self, field: Field, index: Tensor | None = None) -> Tensor:
        """(n, 3) colours of all rays or of those in `index` (n,) int64, differentiable in the field's parameters.

        The residue can take an edited one a little out of [0, 1].
        """
        samples, scale = self.samples(index)
        viewdirs, residue = (a if index is None else a[index] for a in (self.viewdirs, self.residue))
        return self._color(field, samples, scale, viewdirs) + residue

    def exact_color(self, field: Field, index: Tensor | None = None, *, chunk: int = 4096) -> Tensor:
        """As `color`, by all samples of the field as it is now: right also where surfaces have moved, and much slower.

        A chunk of rays is in memory at a time. The backward pass renders it again.
        """
        rays = field.space.rays(self.camera).to(field.device)
        rays = rays if index is None else rays[index]
        parts = [rays[i : i + chunk] for i in range(0, max(len(rays), 1), chunk)]
        kept = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here is drawn at random
        return torch.cat([checkpoint(lambda part: render_rays(field, part).color, part, **kept) for part in parts])

    @staticmethod
    def _color(field: Field, samples: Samples, scale: Tensor, viewdirs: Tensor) -> Tensor:
        """(rays, 3) colours by kept samples, without the residue."""
        weights = weights_of(field.density(samples.x) * samples.step, samples) * scale
        # Where an edit thickens fog, what stands for it may come to more than everything: that is scaled down to
        # MAX_OPACITY, which rounding does not reach.
        opacity = ray_sum(weights, samples)
        weights = weights / (opacity / MAX_OPACITY).clamp(min=1)[samples.ray]
        return composite(field, samples, weights, viewdirs)[0]

    @full_precision
    @torch.no_grad()
    def surfaces(self, field: Field) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen: positions (n, 3) in [-1, 1], their weights (n,) in the picture, and their rays (n,)."""
        samples, scale = self.samples()
        return samples.x, weights_of(field.density(samples.x) * samples.step, samples) * scale, samples.ray

    @torch.no_grad()
    def render(self, field: Field) -> Tensor:
        """(H, W, 3) colours, without gradients."""
        return self.color(field).view(self.camera.height, self.camera.width, 3)


class LocalView:
    """A camera's rays through the region of a `LocalField`, for rendering it again and again while its shape changes.

    Inside the region samples are evaluated each time, those in occupied cells (`LocalField.settle`). Outside nothing
    changes: rates and colours of the samples with weight are computed once, also behind the region, where an edit may
    reveal them. What that leaves of the source's picture is added to every render.

    index (rays,): the pixels, row by row, whose rays pass through the region.
    """

    @full_precision
    @torch.no_grad()
    def __init__(self, local: LocalField, camera: Camera, *, chunk: int = 4096):
        rays = local.space.rays(camera).to(local.device)
        parts = [self._kept(local, rays[i : i + chunk]) for i in range(0, len(rays), chunk)]
        crossing, count, self._x, self._step, self._inside, self._rate, self._outer, full = (
            torch.cat(tensors) for tensors in zip(*parts, strict=True)
        )
        self.index = crossing.nonzero()[:, 0]
        self._viewdirs, self._count = rays.viewdirs[self.index], count[self.index]
        self._residue = torch.zeros_like(full)
        every = torch.arange(len(self._x), device=local.device)
        self._residue = full - self._render(local.source, local.space.background, every)
        self._occupancy, self._live = None, every  # which of the inner samples the occupancy has, when last looked

    @staticmethod
    def _kept(local: LocalField, rays: Rays) -> tuple[Tensor, ...]:
        """For some of the camera's rays: crossing (rays,) bool; count (rays,) of kept samples; x and step of samples
        inside the region; inside (samples,) bool; rate and color of samples outside; full render of crossing rays.
        """
        samples = march(local, rays, occupancy=local.source.occupancy | local.region)  # settled cells may fill again
        inside = local.inside(samples.x)
        crossing = torch.zeros(len(rays), dtype=torch.bool, device=inside.device)
        crossing[samples.ray[inside]] = True
        chosen = crossing[samples.ray].nonzero()[:, 0]
        samples, inside = samples.subset(chosen), inside[chosen]
        rate = local.source.density(samples.x) * samples.step
        full = shade(local.source, samples, weights_of(rate, samples), rays.viewdirs)[0][crossing]
        rate[inside] = 0
        kept = (inside | (weights_of(rate, samples) > FAINT)).nonzero()[:, 0]
        samples, rate, inside = samples.subset(kept), rate[kept], inside[kept]
        inner, outside = split_indices(inside)
        outer = local.source.color(samples.x[outside], rays.viewdirs[samples.ray[outside]])
        count = count_by_ray(samples.ray, len(rays))
        return crossing, count, samples.x[inner], samples.step[inner], inside, rate[outside], outer, full

    @full_precision
    def color(self, local: LocalField) -> Tensor:
        """(rays, 3) colours, differentiable in the target's parameters.

        The residue can take an edited one a little out of [0, 1].
        """
        if self._occupancy is not local.occupancy:
            self._occupancy = local.occupancy
            occupied = local.occupancy.view(-1)[cell_index(local.occupancy.shape, self._x)]
            self._live = occupied.nonzero()[:, 0]
        return self._render(local.target, local.space.background, self._live)

    def _render(self, field: Field | LocalField, background: float, live: Tensor) -> Tensor:
        """Render with `field` inside the region: samples in `live` are evaluated there, the others count as empty."""
        ray = torch.repeat_interleave(self._count, output_size=len(self._inside))
        within, rest = split_indices(self._inside, len(self._x))
        within = within[live]
        none = self._viewdirs.new_zeros(len(ray))
        first = self._count.cumsum(0) - self._count
        samples = Samples(none, ray, none, none, first, len(self.index))
        of_inner = count_by_ray(ray[within], len(self.index))
        first, step = of_inner.cumsum(0) - of_inner, self._step[live]
        inner = Samples(self._x[live], ray[within], step, step, first, len(self.index))
        rate = none.index_copy(0, rest, self._rate).index_copy(0, within, field.density(inner.x) * step)
        weights = weights_of(rate, samples)
        own = weights[within]
        gathered = torch.zeros_like(own).index_add(0, representatives(own, inner, COLORS), own)
        seen = (gathered.detach() > 0).nonzero()[:, 0]
        color = field.color(inner.x[seen], self._viewdirs[inner.ray[seen]])
        total = torch.zeros_like(self._viewdirs).index_add(0, inner.ray[seen], gathered[seen, None] * color)
        total = total.index_add(0, ray[rest], weights[rest, None] * self._outer)
        return total + (1 - ray_sum(weights, samples))[:, None] * background + self._residue
