"""Measuring occupancy: what rays see is kept, and the box shrinks around it.

A cell counts if some ray gives it weight, so that empty space *and* space hidden behind surfaces are skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensorf.field import Field
from tensorf.occupancy import cell_index, grown
from tensorf.render import march, weights_of
from tensorf.space import Rays


@torch.no_grad()
def measure(
    field: Field, rays: Rays, threshold: float, *, cells: int, most: float, dilate: int = 1, chunk: int = 4096
) -> Tensor:
    """(z, y, x) bool: cells where one of `rays` has a weight above `threshold`, grown by `dilate` cells.

    Where that would take away more than the share `most` of all weight, the threshold is lowered: fog has small weights
    everywhere, and to prune it tears holes into what later views see.

    cells: along the longest grid axis; the others in proportion to the field's resolution.
    """
    longest = max(field.resolution)
    shape = [max(4, round(cells * n / longest)) for n in reversed(field.resolution)]
    peak, total = torch.zeros(2, shape[0] * shape[1] * shape[2], device=field.device, dtype=torch.float32)
    for start in range(0, len(rays), chunk):
        samples = march(field, rays[start : start + chunk])
        if len(samples.x) == 0:
            continue
        weights = weights_of(field.density(samples.x) * samples.step, samples)
        cell = cell_index(shape, samples.x)
        peak.scatter_reduce_(0, cell, weights, "amax")
        total.index_add_(0, cell, weights)
    peak = grown(peak.view(shape), dilate)
    ordered, order = peak.flatten().sort()
    lost = total[order].cumsum(0)
    dispensable = int((lost <= most * lost[-1]).sum())  # cells that may go, the faintest first
    least = ordered[min(dispensable, len(ordered) - 1)].item()
    return (peak > threshold) | (peak >= max(least, torch.finfo(peak.dtype).tiny))


def occupied_box(field: Field) -> Tensor:
    """(2, 3) field coordinates: the box around all occupied cells; the field's own box if there are none."""
    cells = field.occupancy.nonzero().flip(1)  # (n, 3): x, y, z
    if len(cells) == 0:
        return field.space.box
    low, high = field.space.box
    size = torch.tensor(field.occupancy.shape[::-1], device=cells.device)
    return low + (high - low) * torch.stack([cells.amin(0), cells.amax(0) + 1]) / size
