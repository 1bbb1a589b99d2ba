"""`estimate_capture` in a process of its own, which macOS needs.

The packages of torch and of pycolmap for macOS each bring a copy of OpenMP's library. macOS lets the copies of one
process call each other's functions, which ends the process without a message of ours. In the process that starts here
pycolmap is loaded first, so its copy calls its own functions, and torch computes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tensorf.captures.sources import Source
from tensorf.errors import UserError

log = logging.getLogger("tensorf")

_START = """
import os
told = os.dup(1)
os.dup2(2, 1)  # what libraries print is for the terminal
try:
    import pycolmap  # before torch
except ImportError:
    pass  # told below
from tensorf.captures.apart import work
raise SystemExit(work(told))
"""
_FAILED = 0  # the level of an error's line, which no message has


def estimate_apart(source: Source, folder: Path, threads: int | None, show_progress: bool) -> None:
    """As `estimate_capture`, of which it has messages, progress and errors. UserError if the process is killed."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # The second of two copies of OpenMP's library ends the process when it is first used, unless this allows it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "KMP_DUPLICATE_LIB_OK": "TRUE"}
    failure = None
    with subprocess.Popen(
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and its exit code says so
                process.stdin.write(_written(source, folder, threads, show_progress))
                process.stdin.close()
            for line in process.stdout:
                level, text = json.loads(line)
                if level == _FAILED:
                    failure = text
                else:
                    log.log(level, "%s", text)
        except BaseException:  # Ctrl-C, which a terminal sends to both; `kill` to one
            process.kill()
            process.wait()
            shutil.rmtree(partial_folder(folder, process.pid), ignore_errors=True)
            raise
    if failure is not None:
        raise UserError(failure)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise UserError(f"{source.path}: the process that estimates its poses was killed ({name})")
    if process.returncode:
        raise RuntimeError(f"{source.path}: the process that estimates its poses has failed, as it tells above")


def partial_folder(folder: Path, process: int) -> Path:
    """Where a process works until the estimate is complete."""
    return folder.with_name(f".{folder.name}.{process}.part")


def _written(source: Source, folder: Path, threads: int | None, show_progress: bool) -> bytes:
    """The arguments as JSON, which `_read` reads."""
    photos, masks = list(map(str, source.photos)), {str(photo): str(mask) for photo, mask in source.masks.items()}
    return json.dumps([[str(source.path), photos, source.frames, masks], str(folder), threads, show_progress]).encode()


def _read(data: bytes) -> tuple[Source, Path, int | None, bool]:
    (path, photos, frames, masks), folder, threads, show_progress = json.loads(data)
    named = {Path(photo): Path(mask) for photo, mask in masks.items()}
    return Source(Path(path), tuple(map(Path, photos)), frames, named), Path(folder), threads, show_progress


def work(told: int) -> int:
    """What the process does: stdin gives the arguments, the file `told` takes a JSON list (level, message) a line."""
    from tensorf.captures.estimate import estimate_here

    out = os.fdopen(told, "w", encoding="utf-8")

    def tell(level: int, text: str) -> None:
        print(json.dumps([level, text]), file=out, flush=True)

    handler = logging.Handler()
    handler.emit = lambda record: tell(record.levelno, record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        estimate_here(*_read(sys.stdin.buffer.read()))
    except (UserError, OSError) as error:  # such as of a full disk
        tell(_FAILED, str(error))
    except KeyboardInterrupt:
        return 130  # whoever started this has got it too
    return 0
