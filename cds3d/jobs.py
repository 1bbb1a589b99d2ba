"""A command in a process of its own, so that neither harms the other, whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

from tensorf.untrusted import load_json

NICE = 5  # behind the frames of a viewer
LOG_FORMAT = "CDS3D_LOG_FORMAT"  # the environment variable that says how a command writes its messages
_MARKED = "\x02%(levelname)s\x02%(message)s"  # a job tells warnings apart; nothing else writes this sign
_LEVEL = re.compile("\x02([A-Z]+)\x02(.*)")


class Job:
    """`cds3d COMMAND` with some options, of which the last lines are kept. folder: of its run."""

    def __init__(self, command: str, options: list[str], folder: Path):
        self.folder, self.lines = folder, deque(maxlen=12)
        self.warnings: list[str] = []  # each once
        self.stopping = False
        self._told_before = changed(self._progress_path)  # by an earlier run in this folder
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", LOG_FORMAT: _MARKED}
        package = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (package, environment.get("PYTHONPATH")) if p)
        self.process = subprocess.Popen(
            ["nice", "-n", str(NICE), sys.executable, "-m", "cds3d", command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for who started it to pass on
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            text = line.decode(errors="replace").replace("\r", "\n").strip().split("\n")[-1].strip()
            if marked := _LEVEL.search(text):
                text = marked[2]
                if marked[1] == "WARNING" and text not in self.warnings:
                    self.warnings.append(text)
            if text:
                self.lines.append(text)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def killed(self) -> bool:
        """Whether it has ended by a signal, or because of one that nobody here has sent."""
        code = self.process.returncode or 0
        return code < 0 or (code == 130 and not self.stopping)

    @property
    def resumable(self) -> bool:
        """Whether it has ended on the way, and has kept a state to go on from.

        With figures, the folder still holds the finished run that this one was to overwrite.
        """
        ended = self.killed or self.stopping
        kept = (self.folder / "state" / "state.pt").exists() and not (self.folder / "metrics.json").exists()
        return ended and self.process.returncode != 0 and kept

    def stop(self) -> None:
        """Ask the edit to keep its state and end. Once: a second interrupt would end it before the state is kept."""
        first, self.stopping = not self.stopping, True
        if first and self.running:
            self.process.send_signal(signal.SIGINT)

    def close(self, seconds: float = 20.0) -> None:
        """Stop, and wait until the state is kept."""
        self.stop()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def progress(self) -> dict:
        """What `RunFolder.report` wrote last; empty before."""
        if changed(self._progress_path) in (None, self._told_before):
            return {}
        try:
            return load_json(self._progress_path)
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def _progress_path(self) -> Path:
        return self.folder / "state" / "progress.json"

    def outcome(self) -> str:
        """One line for the page, once it has ended."""
        self._reader.join(2)
        return outcome_of(self.process.returncode, list(self.lines), self.stopping)


def outcome_of(code: int, lines: list[str], stopping: bool = False) -> str:
    """One line about a command that has ended. code: its exit code; lines: the last ones of what it told."""
    if code == 0:
        return "done"
    told = next((line.removeprefix("error: ") for line in reversed(lines) if "error: " in line), None)
    if told is not None:
        return told
    if stopping or code == 130:
        return "stopped"
    if code < 0:
        return f"the process was killed ({signal.Signals(-code).name})"
    return lines[-1] if lines else f"ended with exit code {code}"


def changed(path: Path) -> int | None:
    """When a file was written, nanoseconds; None if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def usable_cores() -> int:
    """CPU cores that this process may use. On a Mac the fast ones: threads that share work wait for the slowest."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    try:
        return int(subprocess.check_output(["sysctl", "-n", "hw.perflevel0.physicalcpu"], stderr=subprocess.DEVNULL))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return os.cpu_count() or 1
