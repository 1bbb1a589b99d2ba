"""Which thread of this process is at work in which folder. A process has one lock of a folder (`tensorf.locks`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorf import locks
from tensorf.errors import UserError

_CHOOSING = threading.Lock()  # of what follows
_workers: dict[Path, threading.Thread] = {}  # folder -> the thread whose run is at work in it


def hold(folder: Path) -> None:
    """Hold the folder, which exists, for this thread. UserError if another thread or process is at work in it."""
    folder, me = folder.resolve(), threading.current_thread()
    with _CHOOSING:
        worker = _workers.get(folder, me)
        if worker is not me and worker.is_alive():
            raise UserError(f"{folder} is in use by another thread of this process: wait for its end")
        locks.hold(folder)
        _workers[folder] = me


def let_go(folder: Path) -> None:
    """Let go of the folder, whoever holds it in this process."""
    with _CHOOSING:
        locks.release(folder)
        _workers.pop(folder.resolve(), None)


@contextmanager
def letting_go() -> Iterator[None]:
    """In the end, however it comes, let go of the folders that this thread has begun to hold within."""
    before = _my_folders()
    try:
        yield
    finally:
        for folder in _my_folders() - before:
            let_go(folder)


def _my_folders() -> set[Path]:
    me = threading.current_thread()
    with _CHOOSING:
        return {folder for folder, worker in _workers.items() if worker is me}
