"""The region of an edit in space: what the masks of all views agree on, grown by what an edit may add.

The masks of `region.py` say which pixels show what is to be edited. Every surface point is seen by many views; those
that most views count as foreground are the subject. A shape cannot grow where nothing may change, so all space near
the subject belongs to the region too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorf.errors import UserError
from tensorf.local import cell_centers
from tensorf.occupancy import cell_index
from tensorf.renderable import FastView, LocallyEditable

# Subject sizes from its middle, beyond which a cell is no part of it. Even the ends of a rod lie at 0.87 of them.
_STRAY = 1.5
_ROUNDS = 10  # of finding the subject among far spots, at most; two or three are usual
_SEEN = 0.3  # compositing weight, added up over all views, from which a cell holds a surface and not haze
_PAIRS = 2**22  # of cells and points, whose distances are in memory at a time: 16 MB


@dataclass(frozen=True)
class VolumeConfig:
    """The region in space of `edit=shape`, and what keeps it clean. Raises ValueError for what makes no sense."""

    look: float  # share of the iterations in which nothing moves and gradients are gathered for the masks
    agreement: float  # of the weight with which views see a cell, the share that has to be foreground
    grow: float  # how far around the subject the region reaches, as a share of the subject's size
    smoothness: float  # of the density grids: total variation, in RMS gradients of a pixel times the number of pixels
    haze: float  # pull to the source of pixels that differ little from it, in RMS gradients of a pixel (`LocalPair`)
    haze_color: float  # difference of colours in [0, 1] where "little" ends
    haze_from: float  # share of the iterations after which the pull begins

    def __post_init__(self):
        if not 0 < self.look < 1:
            raise ValueError(f"look={self.look} has to be between 0 and 1")
        check_volume(self.agreement, self.grow)
        if not 0 <= self.smoothness < math.inf:
            raise ValueError(f"smoothness={self.smoothness} has to be 0 or more")
        if not 0 <= self.haze < math.inf:
            raise ValueError(f"haze={self.haze} has to be 0 or more")
        if not 0 < self.haze_color < math.inf:
            raise ValueError(f"haze_color={self.haze_color} has to be above 0")
        if not 0 <= self.haze_from <= 1:
            raise ValueError(f"haze_from={self.haze_from} has to be between 0 and 1")


def check_volume(agreement: float, grow: float) -> None:
    """ValueError for options of `edited_volume` that make no sense."""
    if not 0 < agreement <= 1:
        raise ValueError(f"agreement={agreement} has to be above 0 and at most 1")
    if not 0 <= grow < math.inf:
        raise ValueError(f"grow={grow} has to be 0 or more")


@torch.no_grad()
def edited_volume(
    field: LocallyEditable,
    views: Iterable[tuple[FastView, Tensor]],
    agreement: float,
    grow: float,
    one_subject: bool = True,
) -> Tensor:
    """(z, y, x) bool in the cells of the field's occupancy: the subject and space around it, perhaps nothing.

    views: of some cameras, each with its mask (H, W) in [0, 1]. agreement, grow: as `VolumeConfig`'s. one_subject:
    leave out what lies far from most of it, as stray spots of estimated masks do.
    """
    shape = field.occupancy.shape
    foreground, total = torch.zeros(2, math.prod(shape), device=field.device)
    for view, mask in views:
        x, weight, ray = view.surfaces(field)
        cell = cell_index(shape, x)
        total.index_add_(0, cell, weight)
        foreground.index_add_(0, cell, weight * mask.flatten()[ray])
    subject = ((total > _SEEN) & (foreground > agreement * total)).nonzero()[:, 0]
    if len(subject) == 0:
        return torch.zeros(shape, dtype=torch.bool, device=field.device)
    centers = field.space.world(cell_centers(shape, field.device))
    points, weight = centers[subject].cpu(), foreground[subject].cpu()  # few, and a GPU would wait for each step
    own = _main_part(points, weight) if one_subject else torch.ones_like(weight, dtype=torch.bool)
    size = _size(points[own], weight[own])[1]
    points, reach, own = points[own].to(field.device), grow * size, own.to(field.device)
    region = torch.zeros(len(centers), dtype=torch.bool, device=field.device)
    region[subject[own]] = True
    if reach > 0:
        near = ((centers >= points.amin(0) - reach) & (centers <= points.amax(0) + reach)).all(1).nonzero()[:, 0]
        region[near] |= _within(centers[near], points, reach, reach / 2)
    return region.view(shape)


def _within(centers: Tensor, points: Tensor, reach: float, side: float) -> Tensor:
    """(n,) bool: which of `centers` (n, 3) lie no farther than `reach` from any of `points` (m, 3).

    Of the points in a cube of this side one stands for all. Only where that leaves a doubt, smaller cubes are taken.
    """
    _, cube = ((points - points.amin(0)) / side).long().unique(dim=0, return_inverse=True)
    last = torch.empty(int(cube.max()) + 1, dtype=torch.long, device=points.device)
    few = points[last.scatter_(0, cube, torch.arange(len(points), device=points.device))]
    every = 2 * len(few) > len(points)
    few, wrong = (points, 0.0) if every else (few, side * math.sqrt(3))
    parts = centers.split(max(1, _PAIRS // len(few)))
    away = torch.cat([torch.cdist(part, few).amin(1) for part in parts])
    inside = away <= reach - wrong
    if not every:
        doubt = (~inside & (away <= reach + wrong)).nonzero()[:, 0]
        if len(doubt):
            inside[doubt] = _within(centers[doubt], points, reach, side / 2)
    return inside


def _size(points: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """(middle (3,), twice the RMS distance from it) of points (n, 3) with weights (n,)."""
    middle = (points * weight[:, None]).sum(0) / weight.sum()
    away = (points - middle).norm(dim=1)
    return middle, 2 * float((away.square() * weight).sum().div(weight.sum()).sqrt())


def _main_part(points: Tensor, weight: Tensor) -> Tensor:
    """(n,) bool: the points (n, 3), with weights (n,), that lie close to most of them.

    Far spots would make the subject seem large, and then nothing would lie far from it. So medians, which few spots do
    not move, choose the first part, and the mean and size of the part choose the next, until it stays as it is.
    """
    middle = torch.stack([_median(axis, weight) for axis in points.T])
    away = (points - middle).norm(dim=1)
    own = away <= _STRAY * 2 * _median(away, weight)
    for _ in range(_ROUNDS):
        middle, size = _size(points[own], weight[own])
        before, own = own, (points - middle).norm(dim=1) <= _STRAY * size
        if own.equal(before):
            break
    return own


def _median(values: Tensor, weight: Tensor) -> Tensor:
    """The smallest of the values (n,) at and below which half of the weight lies."""
    values, order = values.sort()
    share = weight[order].double().cumsum(0)
    return values[int((share < share[-1] / 2).sum())]


def agreed_region(
    field: LocallyEditable,
    views: Iterable[tuple[FastView, Tensor]],
    agreement: float,
    grow: float,
    given: Tensor | None,
    group: str,
) -> Tensor:
    """`edited_volume`, within the given region if there is one. UserError, which names `group`.agreement, if that is
    nothing.
    """
    region = edited_volume(field, views, agreement, grow)
    if not region.any():
        raise UserError(
            "there is no region to edit: the masks of the views do not overlap in space. "
            f"Lower {group}.agreement or edit.region.mask_threshold, or give prompts that differ in what is seen"
        )
    if given is not None:
        region &= given
        if not region.any():
            raise UserError(
                "the given region and the one found from the prompts do not overlap: "
                "use region=given to edit the given one"
            )
    return region
