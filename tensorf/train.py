"""Photometric training of a source field: random rays of the photos, coarse to fine.

After TensoRF (Chen et al., ECCV 2022, section 5.1 and appendix), with three changes that a CPU needs: occupancy is
measured by what rays see, a loss gathers the weights along each ray, and grids are only as fine as the photos. Two more
are for photographs: each photo has an exposure of its own, and view directions are noisy.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.adam import Adam
from tensorf.captures import Capture
from tensorf.devices import usable_device
from tensorf.errors import UserError
from tensorf.exposure import LEARNT, UNEVEN, Exposure, exposure_difference
from tensorf.field import Field, FieldConfig
from tensorf.losses import away_from_points, distortion
from tensorf.occupancy import grown
from tensorf.packed import ray_sum
from tensorf.precision import full_precision, rotated
from tensorf.pruning import measure, occupied_box
from tensorf.render import render_rays
from tensorf.seeds import seed_of_step, seeded
from tensorf.settings import TrainConfig, finest_resolution, grid_resolution, step_count
from tensorf.space import Space, space_of

_FILM = 0.02  # thickness, as a share of a ray's length in NDC
_SEEN = 0.3  # of a ray's weight


class PixelBatches:
    """Random pixels of some of a capture's views, with their rays; nothing is stored but photos and cameras.

    UserError if NDC cannot hold all of their rays.
    """

    def __init__(self, capture: Capture, views: list[int], space: Space, device: torch.device):
        cameras = [capture.cameras[i] for i in views]
        self.images = capture.images[views].to(device)
        self.valid_pixels = None if capture.masks is None else _true_places(capture.masks[views]).to(device)
        self.poses = torch.stack([c.pose for c in cameras]).to(device)
        self.intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras], device=device, dtype=torch.float32)
        self.space, self.device = space, device
        height, width = self.images.shape[1:3]
        for v, u in ((0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)):  # all others lie in between
            space.cast(self.poses[:, :, 3], self._directions(torch.arange(len(views), device=device), v, u))

    def draw(self, count: int, generator: torch.Generator):
        """(rays, colors (count, 3) in [0, 1], photos (count,)) of pixels drawn uniformly, with replacement.

        Of photos with masks only the pixels that count are drawn.
        """
        n, height, width, _ = self.images.shape
        among = n * height * width if self.valid_pixels is None else len(self.valid_pixels)
        pixel = torch.randint(among, (count,), generator=generator, device=self.device)
        pixel = pixel if self.valid_pixels is None else self.valid_pixels[pixel].long()
        view, v, u = pixel // (height * width), pixel // width % height, pixel % width
        directions = self._directions(view, v.float(), u.float())
        rays = self.space.cast(self.poses[view, :, 3].contiguous(), directions, checked=True)
        return rays, self.images[view, v, u].float() / 255, view

    def _directions(self, view: Tensor, v: Tensor | int, u: Tensor | int) -> Tensor:
        """(n, 3) of unit depth, in the world, through pixels in row v and column u, float32 if they are tensors."""
        fx, fy, cx, cy = self.intrinsics[view].T
        local = torch.stack([(u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, torch.ones_like(fx)], -1)
        return rotated(self.poses[view, :, :3], local)


def _true_places(masks: Tensor) -> Tensor:
    """(m,): the places of the true elements of (n, height, width), laid out flat; photo by photo, for memory.

    int32 where that can count so far, for memory too.
    """
    size, kind = masks[0].numel(), torch.int32 if masks.numel() < 2**31 else torch.int64
    return torch.cat([mask.flatten().nonzero()[:, 0].to(kind) + i * size for i, mask in enumerate(masks)])


def _seeded_field(config: FieldConfig, space: Space, resolution: tuple[int, int, int], steps: int, seed: int) -> Field:
    """A new field on the CPU whose numbers follow from the seed; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPUs too
        return Field(config, space, resolution, steps)


class Trainer:
    """One training run: `step()` until `iteration == config.iterations`, then `finish()`, then `field` is done.

    Without `finish` the field keeps the coarse occupancy of its last pruning, and renders are slower or have holes.
    `state_dict` is a snapshot that holds all that a resume needs. torch's global random state stays as it is.
    """

    @full_precision
    def __init__(
        self,
        capture: Capture,
        field_config: FieldConfig,
        config: TrainConfig,
        device: torch.device | str,
        start: Field | None = None,
    ):
        """device: "auto" is the first GPU if there is one, else the CPU; UserError if there is no such device.

        start: a field of this capture and configuration to go on from; a copy of it is trained, at its own size.

        The configuration's stages are for fields that begin coarse, and are left out then.
        """
        device = usable_device(device)
        if start is not None:
            config = replace(config, stages=(1.0,), upsample_at=())
        self.capture, self.config, self.device, self.iteration = capture, config, device, 0
        space = space_of(capture) if start is None else start.space
        if start is None:
            self.resolution = min(config.resolution, finest_resolution(capture, space, config))
            self.field = _seeded_field(field_config, space, *self._size(space, 0), seed=config.seed).to(device)
        else:
            self.resolution = max(start.resolution)
            self.field = copy.deepcopy(start).requires_grad_(True).to(device)
        self.pixels = PixelBatches(capture, capture.train, self.field.space, device)
        self.held_out = PixelBatches(capture, capture.test, self.field.space, device) if capture.test else None
        self._poses = torch.stack([c.pose for c in capture.cameras]).to(device)
        sightings = capture.sightings if config.sightings else None
        self._sightings = tuple(t.to(device) for t in sightings) if sightings and len(sightings[0]) else None
        self._near = space.damped_near
        self._exposure_weight = config.exposure
        if config.exposure is None:
            self._exposure_weight = LEARNT if (exposure_difference(capture) or 0.0) >= UNEVEN else 0.0
        self.exposure = Exposure(len(capture.train)).to(device) if self._exposure_weight else None
        self.optimizer = self._new_optimizer()

    def _size(self, space: Space, stage: int) -> tuple[tuple[int, int, int], int]:
        """(grid resolution, samples on the longest ray) of a stage."""
        longest = round(self.resolution * self.config.stages[stage])
        resolution = grid_resolution(space, longest, self.config.depth_resolution)
        return resolution, step_count(space, longest, self.config)

    def final_size(self) -> tuple[tuple[int, int, int], int]:
        """(grid resolution, samples on the longest ray) of the last stage."""
        return self._size(self.field.space, len(self.config.stages) - 1)

    def _new_optimizer(self) -> Adam:
        groups = self.field.parameter_groups()
        rates = {"density": self.config.lr_grid, "color": self.config.lr_grid, "network": self.config.lr_network}
        if self.exposure is not None:
            groups["exposure"], rates["exposure"] = list(self.exposure.parameters()), self.config.lr_exposure
        self._base_rates = list(rates.values())
        return Adam(
            [{"params": groups[k] + groups.get(k + "_lines", []), "lr": rate} for k, rate in rates.items()],
            betas=(0.9, 0.99),
        )

    def _generator(self) -> torch.Generator:
        return seeded(self.device, seed_of_step(self.config.seed, self.iteration))

    def _due(self, shares: tuple[float, ...]) -> list[int]:
        """Which of `shares` of the run begin at this iteration; in a short run several may begin at once."""
        if self.iteration == 0:
            return []
        return [i for i, share in enumerate(shares) if round(share * self.config.iterations) == self.iteration]

    @full_precision
    def step(self) -> float:
        """One optimisation step; returns the batch's PSNR in dB, without the correction of exposures.

        UserError if the loss is no longer finite.
        """
        config, field = self.config, self.field
        generator = self._generator()
        if stages := self._due(config.upsample_at):
            self._upsample(stages[-1] + 1)
        if turns := self._due(config.prune_at):
            self._prune(turns, generator)
        progress = self.iteration / config.iterations
        for group, base in zip(self.optimizer.param_groups, self._base_rates):
            group["lr"] = base * config.lr_decay**progress
        last = not config.upsample_at or progress >= config.upsample_at[-1]
        batch = config.batch if last else max(2, round(config.batch * config.early_batch))
        rays, target, photo = self.pixels.draw(batch, generator)
        jitter = torch.rand(batch, generator=generator, device=self.device, dtype=torch.float32)
        if config.view_noise:
            noise = config.view_noise * torch.randn(
                batch, 3, generator=generator, device=self.device, dtype=torch.float32
            )
            rays = replace(rays, viewdirs=F.normalize(rays.viewdirs + noise, dim=1))
        rendering = render_rays(field, rays, jitter, near=self._near)
        error = (rendering.color - target).square().mean()
        loss = self._regulariser(rendering, progress)
        if self.exposure is None:
            loss = loss + error
        else:
            shown = self.exposure(rendering.color, rendering.opacity, field.space.background, photo)
            loss = loss + (shown - target).square().mean()
            loss = loss + self._exposure_weight * self.exposure.penalty()
        if self._sightings is not None and progress < config.sightings_until and self.iteration % 2 == 0:
            # In every second step, twice as strong: the rays cost as much as a quarter of the batch.
            weight = 2 * config.sightings * (1 - progress / config.sightings_until)
            loss = loss + weight * self._line_of_sight_loss(generator)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad.sum() for p in field.parameters() if p.grad is not None]
        squares, *figures = torch.stack([error.detach(), loss.detach(), *gradients]).tolist()  # a GPU is asked once
        if not all(map(math.isfinite, figures)):
            raise UserError(
                f"the loss is no longer finite at iteration {self.iteration}: lower lr_grid "
                f"(now {config.lr_grid}) or check the capture's poses"
            )
        self.optimizer.step()
        self.iteration += 1
        return -10 * math.log10(max(squares, 1e-10))

    def _line_of_sight_loss(self, generator: torch.Generator) -> Tensor:
        """`losses.away_from_points` for random matched points of the training photos."""
        views, points = self._sightings
        chosen = torch.randint(
            len(views),
            (max(1, round(self.config.batch * self.config.sightings_batch)),),
            generator=generator,
            device=self.device,
        )
        point, pose = points[chosen], self._poses[views[chosen]]
        away = point - pose[:, :, 3]
        depth = (away * pose[:, :, 2]).sum(1, keepdim=True)
        rays = self.pixels.space.cast(pose[:, :, 3].contiguous(), away / depth.clamp(min=1e-3))
        jitter = torch.rand(len(point), generator=generator, device=self.device, dtype=torch.float32)
        return away_from_points(self.field, rays, point, jitter, self.config.sightings_margin)

    def _regulariser(self, rendering, progress: float) -> Tensor:
        config, field = self.config, self.field
        total = torch.zeros((), device=self.device, dtype=torch.float32)
        if config.distortion and progress > (config.prune_at or (0.2,))[0]:
            # Weak while surfaces are still being found, full at the end.
            scattered = distortion(rendering.weights, rendering.samples, field.t_span)
            total = total + progress**2 * config.distortion * scattered
        if self.iteration % 4 == 0:  # the whole grids are touched; the weights of the variations are for this
            total = total + config.tv_density * field.density_grid.total_variation()
            total = total + config.tv_color * field.color_grid.total_variation()
            if config.l1:
                total = total + 4 * config.l1 * field.density_grid.l1()
        return total

    def _upsample(self, stage: int) -> None:
        self.field.resample(*self._size(self.field.space, stage))
        self.optimizer = self._new_optimizer()

    def _prune(self, turns: list[int], generator: torch.Generator) -> None:
        """Measure occupancy, tolerantly at first: early surfaces are blurred and culling them cannot be undone."""
        config, progress = self.config, self.iteration / self.config.iterations
        threshold = config.prune_thresholds[0 if progress < config.prune_tolerant else 1]
        self._measure(threshold, config.prune_rays, generator)
        if 1 in turns and self.field.space.shrinks:
            self._shrink()
            self._measure(threshold, config.prune_rays, generator)

    def _measure(self, threshold: float, count: int, generator: torch.Generator) -> None:
        """Measure occupancy by `count` rays. Coarse grids get few cells: gaps between samples would count as empty."""
        config, field = self.config, self.field
        rays, _, _ = self.pixels.draw(count, generator)
        cells = min(config.occupancy_cells, round(config.cells_per_point * max(field.resolution)))
        field.occupancy = measure(field, rays, threshold, cells=cells, most=config.prune_most)

    @torch.no_grad()
    def open_occupancy(self, share: float) -> None:
        """Open the cells around occupied ones, as far as `share` of the longest side, for new surfaces to appear in."""
        occupancy = self.field.occupancy
        self.field.occupancy = grown(occupancy, round(share * max(occupancy.shape)))

    def _shrink(self) -> None:
        self.field.shrink(occupied_box(self.field))
        self._update_ray_box()
        self.optimizer = self._new_optimizer()

    def _update_ray_box(self) -> None:
        """Let the batches' rays enter the field's box as it is now."""
        for pixels in (self.pixels, self.held_out):
            if pixels is not None:
                pixels.space = self.field.space

    @full_precision
    @torch.no_grad()
    def held_out_psnr(self, rays: int = 4096) -> float | None:
        """PSNR in dB of random pixels of the held-out views; None where none is held out. Changes nothing."""
        if self.held_out is None:
            return None
        batch, target, _ = self.held_out.draw(rays, seeded(self.device, self.config.seed))
        error = (render_rays(self.field, batch).color.clamp(0, 1) - target).square().mean()
        return -10 * math.log10(max(error.item(), 1e-10))

    @full_precision
    @torch.no_grad()
    def share_at_near_plane(self, rays: int = 4096) -> float:
        """The share in [0, 1] of the photos' pixels that show something right behind NDC's near plane; else 0.

        What stands before the plane is learnt as a film on it.
        """
        if self.field.space.kind != "ndc":
            return 0.0
        rendering = render_rays(self.field, self.pixels.draw(rays, seeded(self.device, self.config.seed))[0])
        film = rendering.weights * (rendering.samples.t < _FILM * self.field.t_span)
        return float((ray_sum(film, rendering.samples) > _SEEN).float().mean())

    @full_precision
    @torch.no_grad()
    def finish(self) -> None:
        """Leave a final occupancy, from many more rays, for whoever renders the field."""
        generator = seeded(self.device, self.config.seed)
        self._measure(self.config.final_threshold, self.config.final_rays, generator)

    def state_dict(self) -> dict:
        """All that a resume needs, copied: further steps leave it as it is."""
        exposure = {} if self.exposure is None else {"exposure": self.exposure.state_dict()}
        state = exposure | {
            "iteration": self.iteration,
            "resolution": list(self.field.resolution),
            "steps": self.field.steps,
            "box": self.field.space.box,
            "field": self.field.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`, on a trainer made with the same capture and configurations."""
        field = self.field
        field.space = field.space.with_box(state["box"].to(self.device))
        self._update_ray_box()
        field.resample(tuple(state["resolution"]), state["steps"])
        field.occupancy = state["field"]["occupancy"].to(self.device)
        field.load_state_dict(state["field"])
        self.exposure = None  # as the run was begun, whatever is found in the photos now
        if "exposure" in state:
            self._exposure_weight = self._exposure_weight or LEARNT
            self.exposure = Exposure(len(self.capture.train)).to(self.device)
            self.exposure.load_state_dict(state["exposure"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # Adam would go on in `state`
        self.iteration = state["iteration"]
