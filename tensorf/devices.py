"""Where tensors live: the CPU or a GPU."""

from __future__ import annotations

import re

import torch

from tensorf.errors import UserError, reason


def usable_device(device: torch.device | str) -> torch.device:
    """The device; "auto" is the first GPU if there is one, else the CPU.

    UserError if there is no such device, if it is of another kind than cpu and cuda, and for GPUs that this PyTorch was
    not built for.
    """
    found = _found("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device={device} cannot be used (only cpu and cuda are supported): try device=cpu")
    if found.type == "cuda" and not _has_kernels(found):
        name, kind = torch.cuda.get_device_name(found), "sm_{}{}".format(*torch.cuda.get_device_capability(found))
        why = f"this PyTorch was not built for {name}, {kind}"
        newest = max(int(version) for arch in torch.cuda.get_arch_list() for version in re.findall(r"_(\d+)\d", arch))
        other = (
            "a newer PyTorch" if torch.cuda.get_device_capability(found)[0] > newest else "PyTorch for an older CUDA"
        )
        raise UserError(f"device={device} cannot be used ({why}): try device=cpu, or install {other}")
    return found


def _found(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        if found.type == "cuda":
            torch.cuda.get_device_properties(found)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA raises the second
        raise UserError(f"device={device} cannot be used ({reason(error)}): try device=cpu") from error
    return found


def _has_kernels(gpu: torch.device) -> bool:
    """Whether this PyTorch was built for the GPU: else the first operator raises CUDA's error.

    Kernels run on GPUs of the same major version, from their minor version on; "compute" is code that the driver
    compiles for all later ones. True where PyTorch names GPUs in another way, as AMD's.
    """
    own = torch.cuda.get_device_capability(gpu)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in torch.cuda.get_arch_list()]
    if not all(built):
        return True
    for kind, major, minor in (arch.groups() for arch in built):
        version = int(major), int(minor)
        if version <= own and (kind == "compute" or version[0] == own[0]):
            return True
    return not built
