"""The settings of a training run, and the grids and samples that they mean in a given space."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tensorf.space import Space


@dataclass(frozen=True)
class TrainConfig:
    """How a field is trained. Shares of the run are of `iterations`; resolutions are grid points of the longest axis.

    Raises ValueError, which names the setting, for what cannot be trained with.
    """

    iterations: int
    batch: int  # rays a step
    early_batch: float  # share of `batch` before the last stage
    lr_grid: float  # Adam's rate of the grids
    lr_network: float  # the same of the colour network
    lr_decay: float  # what is left of all rates at the end of the run

    view_noise: float  # added to unit view directions, standard deviation an axis: colours hold for directions around
    exposure: float | None  # pull of photos' gains and offsets (`Exposure`) to none; 0: none are learnt; None: decide
    lr_exposure: float  # their rate

    resolution: int  # at the end, at most
    points_per_pixel: float  # grid points for each pixel of the photos where the cameras look, at most
    unbounded_points_per_pixel: float  # the same in unbounded space
    depth_resolution: float  # grid points along NDC's depth, as a share of those across
    stages: tuple[float, ...]  # shares of the resolution, coarse to fine, the last is 1
    upsample_at: tuple[float, ...]  # when the next stage begins, shares of the run
    samples_per_voxel: float  # samples on the longest ray for each grid point along the longest axis
    ndc_samples: float  # the same in NDC

    prune_at: tuple[float, ...]  # when occupancy is measured, shares of the run; () is never
    prune_thresholds: tuple[float, float]  # weight below which a cell is empty, before and after `prune_tolerant`
    prune_tolerant: float  # share of the run
    final_threshold: float  # the same weight at the end
    prune_most: float  # share of all weight that pruning may take away
    prune_rays: int  # rays that measure occupancy
    final_rays: int  # the same at the end
    occupancy_cells: int  # along the longest axis, at most
    cells_per_point: float  # the same for each grid point

    tv_density: float  # weights of the regularisers
    tv_color: float
    l1: float
    distortion: float
    sightings: float  # weight of `losses.away_from_points`, which keeps rays to matched points clear
    sightings_until: float  # share of the run by which that has faded out
    sightings_batch: float  # rays of it, as a share of `batch`
    sightings_margin: float  # steps around a point that need not be clear
    seed: int

    def __post_init__(self):
        for name, least in (
            ("iterations", 1),
            ("batch", 2),
            ("resolution", 8),
            ("seed", 0),
            ("prune_rays", 1),
            ("final_rays", 1),
            ("occupancy_cells", 4),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least {least}")
        for name in (
            "lr_grid",
            "lr_network",
            "lr_exposure",
            "points_per_pixel",
            "unbounded_points_per_pixel",
            "samples_per_voxel",
            "ndc_samples",
            "cells_per_point",
            "sightings_margin",
        ):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a number above 0")
        _require(
            "exposure", self.exposure, self.exposure is None or 0 <= self.exposure < math.inf, "0 or more, or null"
        )
        for name in ("view_noise", "tv_density", "tv_color", "l1", "distortion", "sightings"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a number, 0 or more")
        for name in ("early_batch", "lr_decay", "depth_resolution", "sightings_until", "sightings_batch"):
            _require(name, getattr(self, name), 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        ascending = all(a < b for a, b in zip(self.stages, self.stages[1:]))
        fine = ascending and self.stages and self.stages[0] > 0 and self.stages[-1] == 1
        _require("stages", list(self.stages), fine, "shares that rise to 1, such as [0.3,0.6,1.0]")
        for name in ("upsample_at", "prune_at"):
            shares = getattr(self, name)
            fine = all(0 < a < 1 for a in shares) and all(a < b for a, b in zip(shares, shares[1:]))
            _require(name, list(shares), fine, "shares of the run between 0 and 1 that rise, or []")
        if len(self.upsample_at) != len(self.stages) - 1:
            raise ValueError(
                f"upsample_at={list(self.upsample_at)} has to have one number fewer than stages={list(self.stages)}"
            )
        fine = len(self.prune_thresholds) == 2 and all(0 < a < 1 for a in self.prune_thresholds)
        _require("prune_thresholds", list(self.prune_thresholds), fine, "two numbers between 0 and 1")
        for name in ("final_threshold", "prune_most", "prune_tolerant"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")


def _require(name: str, value, fine, what: str) -> None:
    if not fine:
        raise ValueError(f"{name}={value} has to be {what}")


def grid_resolution(space: Space, longest: int, depth: float) -> tuple[int, int, int]:
    """Grid points along x, y, z, `longest` along the longest axis.

    Cubic voxels; in NDC square ones on the image, and `depth` as many points along the depth.
    """
    extent = space.extent.tolist()
    if space.kind == "ndc":
        widest = max(extent[:2])
        return (*(max(8, round(longest * e / widest)) for e in extent[:2]), max(8, round(longest * depth)))
    return tuple(max(8, round(longest * e / max(extent))) for e in extent)


def step_count(space: Space, longest: int, config: TrainConfig) -> int:
    """Samples on the longest ray."""
    if space.kind == "ndc":
        return max(16, round(config.ndc_samples * longest))
    # Of the longest axis: a box's diagonal is longer; all of t is as long as contracted space is wide.
    span = 1.0 if space.kind == "unbounded" else space.t_span / float(space.extent.max())
    return max(16, round(config.samples_per_voxel * span * longest))


def finest_resolution(capture, space: Space, config: TrainConfig) -> int:
    """Grid points along the longest axis that are worth having for the training photos' pixels.

    A grid much finer than the photos explains each of them by itself. A pixel's footprint is taken where the cameras
    look: at distance 1 in a box and in unbounded space, on the image plane in NDC.
    """
    focal = max(capture.cameras[i].fx for i in capture.train)
    if space.kind == "unbounded":  # the inner box is half as wide as contracted space
        across = 2 * float((space.box[1] - space.box[0]).max())
        return max(8, round(config.unbounded_points_per_pixel * focal * across))
    across = float(space.extent[:2].max() if space.kind == "ndc" else space.extent.max())
    return max(8, round(config.points_per_pixel * focal * across))
