"""Process settings that have to be made before torch starts; imported first by both packages.

- OpenMP threads that wait by spinning take the cores away from whatever else runs: up to ten times slower on a
  machine that is not idle. Passive waiting costs nothing measurable on an idle one.
- glibc gives large buffers back to the system at once and faults them in again at the next step. Keeping them makes
  the backward pass of a field up to 1.8 times as fast.
- glibc gives each thread an arena of its own, and what one has freed the others cannot use: one is as fast here, and
  saves a tenth of the memory of a field's edit.
Settings that the user has made in the environment are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("KMP_BLOCKTIME", "0")

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


def _keep_large_buffers() -> None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        pass  # musl or an unusual libc: only slower


if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
    _keep_large_buffers()


def give_back_free_memory() -> None:
    """Return to the system what malloc keeps and nobody uses, so that the process's size tells what is in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
