"""Runs in a store that all nodes of a cluster reach: a bucket (s3://...), a folder, whatever fsspec knows.

runs/<name>/, sources/<scene>/   run folders, whole once they have a metrics.json, which is written last
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from tensorf import locks
from tensorf.errors import UserError, reason
from tensorf.files import atomic

log = logging.getLogger("cds3d")

STATE = ("config.yaml", "state/state.pt")  # what a resume needs
_LAST = "metrics.json"
_EVERY = 60.0  # seconds between states: one is three times as large as the field


class Storage:
    """A store by its URL. UserError if it cannot be opened."""

    def __init__(self, url: str):
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"storage={url}: {reason(error)} (pip install that package on every node)") from error
        except (ValueError, OSError) as error:
            raise UserError(f"storage={url} cannot be used: {reason(error)}") from error

    def _at(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def has(self, name: str) -> bool:
        """Whether a finished run is there under this name."""
        return self._fs.exists(self._at(name, _LAST))

    def finished(self, kind: str) -> set[str]:
        """The finished runs in `kind`, as in "runs", by one listing."""
        found = self._fs.glob(self._at(kind, "*", _LAST))
        return {f"{kind}/{PurePosixPath(path).parent.name}" for path in found}

    def push(self, folder: Path, name: str, only: tuple[str, ...] | None = None) -> None:
        """Copy a finished run, less its state, or those files of `only` that it has; each is there whole or not at all.

        The state of a finished run, most of its bytes, is deleted in the store.
        """
        files = only
        if only is None:
            found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
            files = [p.as_posix() for p in found if p.parts[0] != "state"]
        for file in sorted(files, key=lambda f: f == _LAST):
            source = folder / file
            if not source.is_file() or source.name == locks.NAME:
                continue
            place = self._at(name, file)
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            with self._fs.transaction, source.open("rb") as data, self._fs.open(place, "wb") as copy:
                shutil.copyfileobj(data, copy, 2**22)
        if only is None and self._fs.exists(self._at(name, "state")):
            self._fs.rm(self._at(name, "state"), recursive=True)

    def pull(self, name: str, folder: Path, only: tuple[str, ...]) -> None:
        """Copy those files of `only` that are there under this name; metrics.json last."""
        found = [file for file in only if self._fs.exists(self._at(name, file))]
        for file in sorted(found, key=lambda f: f == _LAST):
            with atomic(folder / file) as partial:
                self._fs.get_file(self._at(name, file), str(partial))

    def read(self, names: list[str], file: str) -> dict[str, bytes]:
        """A small file of many runs at once, by the runs' names."""
        found = self._fs.cat([self._at(name, file) for name in names], on_error="omit") if names else {}
        # Stores differ in whether paths begin with a slash.
        by_name = {self._at(name, file).lstrip("/"): name for name in names}
        return {by_name[path.lstrip("/")]: data for path, data in found.items()}


@contextmanager
def state_kept(url: str, folder: Path, name: str, every: float = _EVERY) -> Iterator[None]:
    """Meanwhile, push a new state of the run in `folder` now and then, so that another node can go on with it.

    Also at the end, unless the run is finished then. A store that fails for a while costs a warning: the run itself is
    not harmed.
    """
    stop = threading.Event()
    path = folder / "state" / "state.pt"

    def keep() -> None:
        before, last = None, False
        while not last:
            last = stop.wait(every)
            now = path.stat().st_mtime_ns if path.exists() else None
            if now == before or (last and (folder / _LAST).exists()):
                continue
            try:
                Storage(url).push(folder, name, STATE)
                before = now
            except Exception as error:  # of whichever store it is
                log.warning("%s: the state could not be kept in %s: %s", folder, url, reason(error))

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
