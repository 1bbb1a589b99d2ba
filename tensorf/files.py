"""Files that are there whole or not at all, also after a power failure: what `atomic` has written is on the disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r"\..*\.(part|old)(\.[^.]*)?")  # the names that `atomic` and `atomic_folder` give


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a path to write to, beside `path` and with its suffix, which becomes `path` at the end.

    An exception inside leaves `path` as it was. The folder is made if need be. File and folder are synchronised with
    the disk, the file before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    partial.unlink(missing_ok=True)  # of a killed process, whose own children may still be writing to it
    try:
        yield partial
        _synchronise(partial)
        os.replace(partial, path)
        _synchronise(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, which takes its place at the end; an exception leaves `folder` alone.

    Write the files in it with `atomic`. A process that is killed while the two change places leaves the old one as
    `.NAME.old`; the next call puts it back.
    """
    begun, old = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (begun, old):
        shutil.rmtree(left, ignore_errors=True)
    begun.mkdir(parents=True)
    try:
        yield begun
        _synchronise(begun)
        if folder.exists():
            folder.rename(old)
        begun.rename(folder)
        _synchronise(folder.parent)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Whether a file or folder is what a killed `atomic` or `atomic_folder` has left."""
    return _PARTIAL.fullmatch(path.name) is not None


def write_text(path: Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _synchronise(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do it
            raise
    finally:
        os.close(file)
