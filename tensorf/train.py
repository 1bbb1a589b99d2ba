"""Photometric training of a source field: random rays of the photos, coarse to fine.

After TensoRF (Chen et al., ECCV 2022, section 5.1 and appendix), with three changes that a CPU needs: occupancy is
measured by what rays see, a loss gathers the weights along each ray, and grids are only as fine as the photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.field import Field, FieldConfig
from tensorf.occupancy import Samples
from tensorf.pruning import measure, occupied_box
from tensorf.render import COLORS, march, render_rays, weights_of
from tensorf.space import Space, space_of


@dataclass(frozen=True)
class TrainConfig:
    """iterations; batch: rays a step, half as many before the last stage.

    lr_grid, lr_network: Adam's rates, falling to `lr_decay` of them over the run.

    resolution: grid points along the longest axis at the end (NDC depth gets a third); stages: shares of it;
    upsample_at: when the next stage begins, as shares of the run. tv_density, tv_color, l1, distortion: weights of the
    regularisers. prune_at: when occupancy is measured, as shares of the run.
    """

    iterations: int = 1200
    batch: int = 3072
    lr_grid: float = 0.02
    lr_network: float = 1.5e-3
    lr_decay: float = 0.1
    resolution: int = 400
    pixel_resolution: float = 0.8
    depth_resolution: float = 0.33
    sampling: float = 1.0
    ndc_sampling: float = 0.45
    fog_colors: int = 4
    sightings: float = 0.0
    sightings_until: float = 0.6
    sightings_margin: float = 2.5
    near_scale: float = 1.0
    prune_thresholds: tuple[float, float] = (3e-3, 1e-2)
    stages: tuple[float, ...] = (0.3, 0.6, 1.0)
    upsample_at: tuple[float, ...] = (0.12, 0.35)
    prune_at: tuple[float, ...] = (0.2, 0.3, 0.4, 0.55, 0.75)
    tv_density: float = 0.004
    tv_color: float = 0.02
    l1: float = 0.0
    distortion: float = 0.01
    seed: int = 0


class PixelBatches:
    """Random pixels of a capture's training views, with their rays; nothing is stored but photos and cameras."""

    def __init__(self, capture: Capture, space: Space, device: torch.device):
        views = capture.train
        cameras = [capture.cameras[i] for i in views]
        self.images = capture.images[views].to(device)
        self.poses = torch.stack([c.pose for c in cameras]).to(device)
        self.intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras], device=device)
        self.space, self.device = space, device

    def draw(self, count: int, generator: torch.Generator):
        """(rays, colors (count, 3) in [0, 1]) of pixels drawn uniformly, with replacement."""
        n, height, width, _ = self.images.shape
        pixel = torch.randint(n * height * width, (count,), generator=generator, device=self.device)
        view, v, u = pixel // (height * width), pixel // width % height, pixel % width
        fx, fy, cx, cy = self.intrinsics[view].T
        local = torch.stack([(u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, torch.ones_like(fx)], -1)
        poses = self.poses[view]
        directions = torch.einsum("nij,nj->ni", poses[:, :, :3], local)
        return self.space.cast(poses[:, :, 3].contiguous(), directions), self.images[view, v, u].float() / 255


def grid_resolution(space: Space, longest: int, depth: float) -> tuple[int, int, int]:
    """Grid points along x, y, z: cubic voxels in a box; in NDC square ones on the image and a third in depth."""
    extent = space.extent.tolist()
    if space.kind == "ndc":
        widest = max(extent[:2])
        return (*(max(8, round(longest * e / widest)) for e in extent[:2]), max(8, round(longest * depth)))
    return tuple(max(8, round(longest * e / max(extent))) for e in extent)


def step_count(space: Space, longest: int, config) -> int:
    """Samples on the longest ray: about one a voxel in a box; 0.45 of the image's grid points in NDC."""
    if space.kind == "ndc":
        return max(16, round(config.ndc_sampling * longest))
    if space.kind == "unbounded":
        return max(16, round(config.sampling * longest))
    return max(16, round(config.sampling * space.t_span / float(space.extent.max()) * longest))


def finest(capture, space, share):
    cameras = [capture.cameras[i] for i in capture.train]
    if space.kind == "ndc":
        near = max(c.fx for c in cameras) * float(space.extent[:2].max())
        return round(share * near)
    if space.kind == "unbounded":
        half = float((space.box[1] - space.box[0]).max()) / 2
        return round(share * max(c.fx for c in cameras) * 4 * half)
    return round(share * max(c.fx for c in cameras) * float(space.extent.max()))


class Trainer:
    """One training run: `step()` until `iteration == config.iterations`. `state_dict` holds all that a resume needs."""

    def __init__(self, capture: Capture, field_config: FieldConfig, config: TrainConfig, device: torch.device):
        self.capture, self.config, self.device, self.iteration = capture, config, device, 0
        space = space_of(capture)
        torch.manual_seed(config.seed)
        self.resolution = min(config.resolution, finest(capture, space, config.pixel_resolution))
        longest = round(self.resolution * config.stages[0])
        self.field = Field(
            field_config, space, grid_resolution(space, longest, config.depth_resolution), step_count(space, longest, config)
        ).to(device)
        self.pixels = PixelBatches(capture, self.field.space, device)
        # In a box, cameras stand inside or close by; in NDC nothing lies before the near plane.
        self._near = {"box": float(space.extent.max()) / 3, "unbounded": config.near_scale, "ndc": 0.0}[space.kind]
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Adam:
        groups = self.field.parameter_groups()
        rates = {"density": self.config.lr_grid, "color": self.config.lr_grid, "network": self.config.lr_network}
        self._base_rates = list(rates.values())
        return torch.optim.Adam(
            [{"params": groups[k] + groups.get(k + "_lines", []), "lr": rate} for k, rate in rates.items()],
            betas=(0.9, 0.99),
            fused=True,
        )

    def _generator(self) -> torch.Generator:
        # A stream a step: a resumed run draws what an unbroken one would have drawn.
        return torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + self.iteration)

    def _at(self, shares: tuple[float, ...]) -> list[int]:
        """Which of `shares` of the run begin at this iteration; in a short run several may begin at once."""
        if self.iteration == 0:
            return []
        return [i for i, share in enumerate(shares) if round(share * self.config.iterations) == self.iteration]

    def step(self) -> float:
        """One optimisation step; returns the batch's PSNR in dB. UserError if the loss is no longer finite."""
        config, field = self.config, self.field
        generator = self._generator()
        if stages := self._at(config.upsample_at):
            self._upsample(stages[-1] + 1)
        if turns := self._at(config.prune_at):
            self._prune(turns, generator)
        progress = self.iteration / config.iterations
        for group, base in zip(self.optimizer.param_groups, self._base_rates):
            group["lr"] = base * config.lr_decay**progress
        batch = config.batch if progress >= config.upsample_at[-1] else config.batch // 2
        rays, target = self.pixels.draw(batch, generator)
        jitter = torch.rand(batch, generator=generator, device=self.device)
        colors = config.fog_colors if progress < config.prune_at[0] else COLORS
        rendering = render_rays(field, rays, jitter, near=self._near, colors=colors)
        error = (rendering.color - target).square().mean()
        loss = error + self._regulariser(rendering, progress)
        if config.sightings and self.capture.sightings is not None and progress < config.sightings_until:
            loss = loss + config.sightings * (1 - progress / config.sightings_until) * self._unseen(generator)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad.sum() for p in field.parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack([loss.detach(), *gradients])).all():
            raise UserError(
                f"the loss is no longer finite at iteration {self.iteration}: lower field.lr_grid "
                f"(now {config.lr_grid}) or check the capture's poses"
            )
        self.optimizer.step()
        self.iteration += 1
        return -10 * math.log10(max(error.item(), 1e-10))

    def _unseen(self, generator):
        """Mean over rays to known points of the weight that is not where the point is."""
        views, points = self.capture.sightings
        chosen = torch.randint(len(views), (self.config.batch // 4,), generator=generator, device=self.device)
        view, point = views[chosen], points[chosen]
        position = torch.stack([c.position for c in self.capture.cameras])[view]
        axis = torch.stack([c.forward for c in self.capture.cameras])[view]
        direction = point - position
        direction = direction / (direction * axis).sum(1, keepdim=True).clamp(min=1e-3)
        rays = self.pixels.space.cast(position, direction)
        target = self.pixels.space.parameter(point, rays)
        jitter = torch.rand(len(view), generator=generator, device=self.device)
        samples = march(self.field, rays, jitter)
        weights = weights_of(self.field.density(samples.x) * samples.step, samples)
        there = (samples.t - target[samples.ray]).abs() < self.config.sightings_margin * self.field.step
        return 1 - weights[there].sum() / len(view)

    def _regulariser(self, rendering, progress: float) -> Tensor:
        config, field = self.config, self.field
        total = torch.zeros((), device=self.device)
        if progress > config.prune_at[0]:
            # Weak while surfaces are still being found, full at the end.
            scattered = distortion(rendering.weights, rendering.samples, field.space.t_span)
            total = total + progress**2 * config.distortion * scattered
        if self.iteration % 4 == 0:  # the whole grids are touched: every fourth step, four times as strong
            total = total + config.tv_density * field.density_grid.total_variation()
            total = total + config.tv_color * field.color_grid.total_variation()
            if config.l1:
                total = total + 4 * config.l1 * field.density_grid.l1()
        return total

    def _upsample(self, stage: int) -> None:
        field = self.field
        longest = round(self.resolution * self.config.stages[stage])
        field.resample(
            grid_resolution(field.space, longest, self.config.depth_resolution), step_count(field.space, longest, self.config)
        )
        self.optimizer = self._new_optimizer()

    def _prune(self, turns: list[int], generator: torch.Generator) -> None:
        """Measure occupancy, tolerantly at first: early surfaces are blurred and culling them cannot be undone."""
        progress = self.iteration / self.config.iterations
        threshold = self.config.prune_thresholds[0 if progress < 0.25 else 1]
        rays, _ = self.pixels.draw(60_000, generator)
        self.field.occupancy = measure(self.field, rays, threshold, cells=_cells(self.field))
        if 1 in turns and self.field.space.kind == "box":
            self._shrink()

    def _shrink(self) -> None:
        self.field.shrink(occupied_box(self.field))
        self.pixels.space = self.field.space
        self.optimizer = self._new_optimizer()

    @torch.no_grad()
    def finish(self) -> None:
        """Leave a final occupancy, from many more rays, for whoever renders the field."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        rays, _ = self.pixels.draw(300_000, generator)
        self.field.occupancy = measure(self.field, rays, 3e-3, cells=_cells(self.field))

    def state_dict(self) -> dict:
        return {
            "iteration": self.iteration,
            "resolution": list(self.field.resolution),
            "steps": self.field.steps,
            "box": self.field.space.box,
            "field": self.field.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`, on a trainer made with the same capture and configurations."""
        field = self.field
        field.space = field.space.with_box(state["box"].to(self.device))
        self.pixels.space = field.space
        field.resample(tuple(state["resolution"]), state["steps"])
        field.occupancy = state["field"]["occupancy"].to(self.device)
        field.load_state_dict(state["field"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]


def _cells(field: Field) -> int:
    """Occupancy cells along the longest axis: on a coarse grid fewer, or the gaps between samples count as empty."""
    return min(160, round(1.5 * max(field.resolution)))


def distortion(weights: Tensor, samples: Samples, span: float) -> Tensor:
    """Mean over rays of the sum over i and j of w_i w_j |t_i - t_j| / span; 0 if all weight is at one place.

    Mip-NeRF 360 (Barron et al. 2022, equation 15), without its term within a sample's own interval. Fewer samples
    matter afterwards, which is what rendering pays for. weights: (n,). span: the length that distances are shares of.
    """
    if len(weights) == 0:
        return weights.sum()
    with torch.no_grad():
        w, t = weights.double(), samples.t.double() / span
        last = torch.searchsorted(samples.ray, torch.arange(samples.rays, device=w.device), right=True) - 1
        empty = last < samples.first
        sums = []
        for values in (w, w * t):
            total = values.cumsum(0)
            before = total - values
            begin = before[samples.first.clamp(max=len(w) - 1)]
            whole = torch.where(empty, 0.0, total[last.clamp(min=0)] - begin)[samples.ray]
            sums.append((before - begin[samples.ray], whole))
        (w_before, w_all), (wt_before, wt_all) = sums
        w_after, wt_after = w_all - w_before - w, wt_all - wt_before - w * t
        # What a sample's weight is multiplied with: its weighted distances to all others, once from either side.
        distances = (t * w_before - wt_before) + (wt_after - t * w_after)
    # The loss is quadratic in the weights: its gradient has a factor 2 that the distances, held fixed, do not give.
    value = (weights * distances.float()).sum() / samples.rays
    return value + (value - value.detach())
