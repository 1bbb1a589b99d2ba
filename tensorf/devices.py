"""Where tensors live: the CPU or a GPU."""

from __future__ import annotations

import torch

from tensorf.errors import UserError, reason


def usable_device(device: torch.device | str) -> torch.device:
    """The device; "auto" is the first GPU if there is one, else the CPU. UserError if there is no such device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "cuda":
            torch.cuda.get_device_properties(found)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA raises the second
        raise UserError(f"device={device} cannot be used ({reason(error)}): try device=cpu") from error
    return found
