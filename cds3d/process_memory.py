"""Memory in use, and its peak: of the GPU where one was used, else of this process."""

from __future__ import annotations

import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from tensorf.runtime import give_back_free_memory


def peak_memory_mb(device: torch.device | None = None) -> float:
    """Peak memory in MiB (2^20 bytes): of the GPU if one was used, else of this process.

    It is that since `reset_peak_memory`, if the system can do that.

    device: whose memory is asked for; None is the current GPU where there is one.
    """
    if _on_gpu(device) and torch.cuda.max_memory_allocated(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10
    except (OSError, TypeError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Let `peak_memory_mb` begin anew, where the system can: on a GPU, and on Linux.

    What was freed is given back to the system first: else the work before would count.
    """
    gc.collect()
    if _on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    give_back_free_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_mb(device: torch.device | None = None) -> float:
    """Memory in use now, in MiB: of the GPU if one was used, else of this process.

    Where the system cannot tell, it is the process's peak.

    device: as of `peak_memory_mb`.
    """
    if _on_gpu(device) and torch.cuda.memory_allocated(device):
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return peak_memory_mb(device)


def free_memory() -> None:
    """Free what nobody uses: objects that refer to each other, and what torch holds back of a GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _on_gpu(device: torch.device | None) -> bool:
    return (device is None or device.type == "cuda") and torch.cuda.is_available()
