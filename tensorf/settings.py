"""The settings of a training run, and the grids and samples that they mean in a given space."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tensorf.space import Space

# Around a cut-out object, training soon knows which space is empty. With a whole background to find, fog stays for
# long, and a surface that is pruned too early never comes back.
PRUNE_AT = {"box": (0.2, 0.3, 0.5, 0.75), "ndc": (0.6, 0.8), "unbounded": (0.6, 0.8)}


@dataclass(frozen=True)
class TrainConfig:
    """iterations; batch: rays a step; early_batch: the share of it before the last stage.

    lr_grid, lr_network: Adam's rates, falling to `lr_decay` of them over the run.

    resolution: the most grid points along the longest axis at the end. points_per_pixel: the most grid points for
    each pixel of the photos, at the distance where the cameras look; unbounded_points_per_pixel: the same in unbounded
    space. depth_resolution: grid points along NDC's depth, as a share of those across. stages: shares of the
    resolution, coarse to fine; upsample_at: when the next stage begins, as shares of the run. samples_per_voxel:
    samples on the longest ray for each grid point along the longest axis; ndc_samples: the same in NDC.

    prune_at: when occupancy is measured, as shares of the run; () for never, None for the space's `PRUNE_AT`.
    prune_thresholds: the weight below which a cell is empty, before and after a quarter of the run. tv_density,
    tv_color, l1, distortion: weights of the regularisers. sightings: weight of the loss that keeps rays to matched
    points clear (`losses.away_from_points`); it fades out by `sightings_until`, a share of the run.

    Raises ValueError, which names the setting, for what cannot be trained with.
    """

    iterations: int = 1200
    batch: int = 2048
    early_batch: float = 0.5
    lr_grid: float = 0.02
    lr_network: float = 1.5e-3
    lr_decay: float = 0.1
    resolution: int = 400
    points_per_pixel: float = 0.8
    unbounded_points_per_pixel: float = 0.5
    depth_resolution: float = 0.33
    stages: tuple[float, ...] = (0.3, 0.6, 1.0)
    upsample_at: tuple[float, ...] = (0.12, 0.35)
    samples_per_voxel: float = 1.0
    ndc_samples: float = 0.45
    prune_at: tuple[float, ...] | None = None
    prune_thresholds: tuple[float, float] = (3e-3, 1e-2)
    tv_density: float = 0.003
    tv_color: float = 0.02
    l1: float = 0.0
    distortion: float = 0.0
    sightings: float = 0.03
    sightings_until: float = 0.6
    seed: int = 0

    def __post_init__(self):
        for name, least in (("iterations", 1), ("batch", 2), ("resolution", 8), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least {least}")
        for name in (
            "lr_grid",
            "lr_network",
            "points_per_pixel",
            "unbounded_points_per_pixel",
            "samples_per_voxel",
            "ndc_samples",
        ):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a number above 0")
        for name in ("tv_density", "tv_color", "l1", "distortion", "sightings"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a number, 0 or more")
        for name in ("early_batch", "lr_decay", "depth_resolution", "sightings_until"):
            _require(name, getattr(self, name), 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        ascending = all(a < b for a, b in zip(self.stages, self.stages[1:]))
        fine = ascending and self.stages and self.stages[0] > 0 and self.stages[-1] == 1
        _require("stages", list(self.stages), fine, "shares that rise to 1, such as [0.3,0.6,1.0]")
        for name in ("upsample_at", "prune_at"):
            shares = getattr(self, name) or ()
            fine = all(0 < a < 1 for a in shares) and all(a < b for a, b in zip(shares, shares[1:]))
            _require(name, list(shares), fine, "shares of the run between 0 and 1 that rise, or []")
        if len(self.upsample_at) != len(self.stages) - 1:
            raise ValueError(
                f"upsample_at={list(self.upsample_at)} has to have one number fewer than stages={list(self.stages)}"
            )
        fine = len(self.prune_thresholds) == 2 and all(0 < a < 1 for a in self.prune_thresholds)
        _require("prune_thresholds", list(self.prune_thresholds), fine, "two numbers between 0 and 1")


def _require(name: str, value, fine, what: str) -> None:
    if not fine:
        raise ValueError(f"{name}={value} has to be {what}")


def grid_resolution(space: Space, longest: int, depth: float = 0.33) -> tuple[int, int, int]:
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
