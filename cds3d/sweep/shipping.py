"""Captures and models of the user's, on the way from the machine of a sweep to the nodes of a cluster.

Each goes to a node once, whatever the number of edits there: into the node's temporary folder, under the hash of what
it holds. Options then name it relative to the node's folder, `inputs/<hash>/<name>`, which is the same on all nodes, so
that a run can go on elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cds3d.commands.scenes import naming_options
from tensorf import locks
from tensorf.errors import UserError
from tensorf.files import atomic, atomic_folder
from tensorf.untrusted import require_inside

# Options that may name files and folders on the user's machine.
_KEYS = ("--capture", "scene.root", "guidance.path", "guidance.config", "clip", "mask")
_CONFINED = ("--capture", "scene.root", "mask")  # what is in them may not lead out of them
_CHUNK = 2**26  # bytes of a file that travel at a time


@dataclass(frozen=True)
class Input:
    """A file or folder that edits read. path: on the user's machine; name: relative to a node's folder.

    files: what it holds, each with the handles of its pieces; None if the nodes are on the user's machine.
    """

    path: str
    name: str
    files: tuple[tuple[str, tuple], ...] | None

    def place(self, folder: Path, fetch: Callable[[object], bytes]) -> None:
        """Have it at folder/name. fetch: from a handle to the bytes. Processes of a node wait for each other."""
        target = folder / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return
        with locks.held(target.parent):
            if target.exists():
                return
            if self.files is None:
                target.symlink_to(self.path)
                return
            one_file = self.files[0][0] == ""
            with (atomic if one_file else atomic_folder)(target) as begun:
                for file, pieces in self.files:
                    (begun / file).parent.mkdir(parents=True, exist_ok=True)
                    with (begun / file).open("wb") as out:
                        for piece in pieces:
                            out.write(fetch(piece))


def ship(flags: list[str], put: Callable[[bytes], object] | None, known: dict[str, Input]) -> list[str]:
    """The flags and options with what they name on this machine in place of the names that nodes know.

    put: from bytes to a handle that travels; None if the nodes are on this machine. known: what is shipped already, by
    path; what is new is added. UserError for captures and masks with files that lie outside, unless they may.
    """
    outside = "scene.outside=true" in flags
    return [_shipped(flag, put, known, outside) for flag in flags]


def _shipped(flag: str, put, known: dict[str, Input], outside: bool) -> str:
    key, _, value = flag.partition("=")
    path = os.path.realpath(os.path.expanduser(value))  # a run goes by its resolved name
    if key not in _KEYS or not value or not os.path.exists(path):
        return flag
    if path not in known:
        found = _files(Path(path), outside)
        if key in _CONFINED and not outside and os.path.isdir(path):
            with naming_options("scene", "outside"):
                require_inside((file for _, file in found), Path(path))
        digest = _digest(found)
        files = None if put is None else tuple((name, tuple(map(put, _pieces(file)))) for name, file in found)
        known[path] = Input(path, f"inputs/{digest}/{os.path.basename(path)}", files)
    return f"{key}={known[path].name}"


def _files(path: Path, outside: bool) -> list[tuple[str, Path]]:
    """(name below `path`, file), sorted; a file has the name "" below itself. outside: folders may be links."""
    if path.is_file():
        return [("", path)]
    files = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=outside) for name in names)
    return sorted((file.relative_to(path).as_posix(), file) for file in files if file.is_file())


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as data:
        while piece := data.read(_CHUNK):
            yield piece


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()[:16]


def node_folder(sweep: str) -> Path:
    """A sweep's folder on this node. What it reads is shared with other sweeps of the same user.

    UserError if somebody else has made it: in a folder for all, names can be guessed.
    """
    ours = Path(tempfile.gettempdir()) / f"cds3d-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.is_symlink() or ours.stat().st_uid != os.getuid():
        raise UserError(f"{ours} belongs to somebody else: remove it, or set TMPDIR on the nodes")
    folder = ours / sweep
    folder.mkdir(exist_ok=True)
    (ours / "inputs").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (folder / "inputs").symlink_to(ours / "inputs")
    return folder
