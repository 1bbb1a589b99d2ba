"""Adam in one pass over the memory, whatever the order in which a tensor's axes lie there."""

from __future__ import annotations

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch's fused Adam. Tables whose channels lie side by side (`lookup.grid_points_first`) are as fast as others.

    On a CPU torch 2.13 copies a tensor that is not contiguous in each step, which takes several times as long as the
    step, and mixes up the elements of a gradient whose layout is not its parameter's. So the step is given views whose
    axes are in the order of the memory. States are those of `torch.optim.Adam`.
    """

    def __init__(self, params, **options):
        super().__init__(params, fused=True, **options)

    def _init_group(self, group, params_with_grad, grads, exp_avgs, exp_avg_sqs, *others):
        found = super()._init_group(group, params_with_grad, grads, exp_avgs, exp_avg_sqs, *others)
        orders = [memory_order(p) for p in params_with_grad]
        for tensors in (params_with_grad, exp_avgs, exp_avg_sqs):
            tensors[:] = [t.permute(order) for t, order in zip(tensors, orders, strict=True)]
        grads[:] = [g.permute(order).contiguous() for g, order in zip(grads, orders, strict=True)]
        return found


def memory_order(tensor: Tensor) -> list[int]:
    """The axes from the one with the largest stride to that with the smallest."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
