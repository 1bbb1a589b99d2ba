"""Files that are there whole or not at all, also after a power failure: what `atomic` has written is on the disk.

Until then they lie beside their place, under a hidden name with the number of the process. So processes of one machine
that write the same file do not spoil each other's, and the last one wins.
"""

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
    for left in _left_behind(path.parent, path.stem, "part", path.suffix):
        left.unlink(missing_ok=True)  # the killed process's own children may still be writing to it
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
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
    `.NAME.PROCESS.old`; the next call puts it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_behind(folder.parent, folder.name, "old"):
        if not folder.exists():
            left.rename(folder)
        shutil.rmtree(left, ignore_errors=True)
    for left in _left_behind(folder.parent, folder.name, "part"):
        shutil.rmtree(left, ignore_errors=True)
    begun, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{state}") for state in ("part", "old"))
    begun.mkdir()
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


def _left_behind(folder: Path, name: str, state: str, suffix: str = "") -> list[Path]:
    """Partial files of `name` in `folder` whose process has ended. Earlier versions gave no number: theirs count too.

    A process of another machine counts as one that has ended.
    """
    pattern = re.compile(rf"\.{re.escape(name)}(?:\.(\d+))?\.{state}{re.escape(suffix)}")
    found = ((path, pattern.fullmatch(path.name)) for path in folder.iterdir())
    return [path for path, match in found if match and not _at_work(int(match[1] or 0))]


def _at_work(process: int) -> bool:
    """Whether another process of this number is running."""
    if process in (0, os.getpid()):
        return False
    try:
        os.kill(process, 0)  # only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


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
