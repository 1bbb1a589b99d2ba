"""Muon for weight matrices, AdamW for the rest: trains small diffusion models in about half of AdamW's steps.

Muon (Jordan et al., 2024) replaces each matrix's momentum by its nearest orthogonal matrix, found with five
Newton-Schulz iterations, in bf16 as published. Matrices of one shape are orthogonalised together, in one batched
product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cds3d.guidance.loading import has_bf16_instructions

_ADAM_SHARE = 0.3  # AdamW's rate as a share of Muon's
_ADAM_ONLY = ("conv_in", "conv_out", "embedding", "quant_conv")  # first and last layers, tables of vectors


def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, cols) -> same shape, singular values brought near 1 (quintic Newton-Schulz)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-9)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """`named`: (name, parameter) pairs. Convolutions count as matrices (out, in * kh * kw)."""

    def __init__(self, named, *, weight_decay: float = 1e-2, momentum: float = 0.95):
        self.weight_decay, self.momentum = weight_decay, momentum
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        rest = []
        for name, p in named:
            small = p.ndim < 2 or min(p.shape[0], p[0].numel()) < 8
            if small or any(part in name for part in _ADAM_ONLY):
                rest.append(p)
            else:
                self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0)
        # Where a processor has bf16, the optimiser takes a third less time; where it has not, bf16 is slow.
        device = rest[0].device if rest else next(iter(self.groups.values()))[0].device
        self.dtype = torch.bfloat16 if device.type == "cuda" or has_bf16_instructions() else torch.float32
        self.buffers = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = lr * _ADAM_SHARE
        self.adam.step()
        for shape, parameters in self.groups.items():
            gradients = torch.stack([p.grad.reshape(shape) for p in parameters])
            buffer = self.buffers[shape].lerp_(gradients, 1 - self.momentum)
            # Scaled so that an update's root mean square does not hang on the matrix's shape.
            updates = orthogonalise(gradients.lerp(buffer, self.momentum).to(self.dtype)).float()
            updates *= 0.2 * max(shape) ** 0.5
            for p, update in zip(parameters, updates):
                p.mul_(1 - lr * self.weight_decay).sub_(update.view_as(p), alpha=lr)

    def zero_grad(self) -> None:
        self.adam.zero_grad()
        for parameters in self.groups.values():
            for p in parameters:
                p.grad = None

    def state_dict(self) -> dict:
        return {"adam": self.adam.state_dict(), "buffers": [self.buffers[s] for s in self.groups]}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        for shape, buffer in zip(self.groups, state["buffers"]):
            self.buffers[shape].copy_(buffer)
