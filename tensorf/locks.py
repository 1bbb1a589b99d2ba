"""One process at a time in a folder.

The lock is the system's, on an open file: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: one line, whichever command it is
    raise SystemExit("error: Windows itself is not supported: run this in WSL (docs/index.md)") from None

NAME = ".lock"
_held: dict[Path, int] = {}  # folder -> file descriptor, of this process


def hold(folder: Path) -> None:
    """Hold the folder, which exists, until `release` or the end of the process. UserError if another process does."""
    folder = folder.resolve()
    if folder in _held:
        return
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            raise UserError(
                f"{folder} is in use by another process{f' ({owner})' if owner else ''}: wait for its end, or stop it"
            ) from None
        except OSError:  # a file system without locks
            os.close(file)
            return
        try:
            if os.fstat(file).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(file)  # whoever held it has removed it in between
    os.ftruncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    _held[folder] = file


@contextmanager
def held(folder: Path, poll: float = 0.1) -> Iterator[None]:
    """Hold the folder, which exists, as soon as no other process does; let go of it in the end."""
    while True:
        try:
            hold(folder)
            break
        except UserError:
            time.sleep(poll)
    try:
        yield
    finally:
        release(folder)


def release_all() -> None:
    """Let go of all that this process holds."""
    for folder in list(_held):
        release(folder)


def release(folder: Path) -> None:
    """Let others in; nothing if the folder is not held."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)
