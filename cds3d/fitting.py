"""Steps of a field towards pictures of its views, as `edit=pictures` and `edit=redraw` take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorf.local import LocalField
from tensorf.visibility import LocalView

_LR_END = 0.1  # what is left of the rates at the end


def fit_step(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    done: float,
    field: LocalField,
    view: LocalView,
    picture: Tensor,
) -> float:
    """One step towards what the view should show, (H, W, 3); returns the mean squared error before it.

    rates: of the optimiser's groups at the beginning. done: the share of all steps that has been taken. Where the error
    or a gradient is not finite, nothing is moved and the error is nan.
    """
    wanted = picture.view(-1, 3)[view.index]
    loss = (view.color(field) - wanted).square().sum() / max(1, wanted.numel())  # a view may not see the region
    optimizer.zero_grad()
    loss.backward()
    moved = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad.sum() for p in moved if p.grad is not None]
    error, *sums = torch.stack([loss.detach(), *gradients]).tolist()  # a GPU is asked once
    if not all(map(math.isfinite, (error, *sums))):
        return math.nan
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * _LR_END**done
    optimizer.step()
    return error
