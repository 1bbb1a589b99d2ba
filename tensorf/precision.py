"""Rendering, training and editing compute in their own types, whatever the program around them computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)


def full_precision(function: Function) -> Function:
    """The function without autocast, and with tensors made on the CPU unless it names another device.

    In half precision rays miss their pixels, and compiled loops want float32. `torch.set_default_device` would mix
    devices: generators of random numbers, for one, are on the CPU.
    """

    @functools.wraps(function)
    def alone(*args, **kwargs):
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if not autocast and torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), torch.device("cpu"):
            return function(*args, **kwargs)

    return alone


def rotated(rotation: Tensor, vectors: Tensor) -> Tensor:
    """(n, 3) vectors, each multiplied by the matrix (3, 3), or by its own of (n, 3, 3).

    As a sum of products, since a program may allow TF32 in matrix products on a GPU (torch's
    `set_float32_matmul_precision`): with its 10 bits rays miss their pixels.
    """
    x, y, z = vectors.split(1, dim=1)
    return x * rotation[..., 0] + y * rotation[..., 1] + z * rotation[..., 2]
