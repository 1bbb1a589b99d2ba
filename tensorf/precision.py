"""Rendering and training are in float32, whatever the program around them computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)


def full_precision(function: Function) -> Function:
    """The function without autocast: in half precision rays miss their pixels, and compiled loops want float32."""

    @functools.wraps(function)
    def alone(*args, **kwargs):
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return alone
