"""Doing a sweep's edits, some at a time.

A process that is killed, or runs out of disk or memory, is tried again from its last state. One that fails for a reason
of its own is listed, and the others go on. How an edit is started is the caller's choice: by default in a process of
its own on this machine (cds3d/jobs.py); on a cluster by cds3d/sweep/cluster.py; the benchmarks' in processes that are
kept (cds3d/sweep/calls.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cds3d.jobs import Job
from cds3d.sweep.plan import Task
from tensorf.errors import OUT_OF_MEMORY
from tensorf.untrusted import load_json

log = logging.getLogger("cds3d")

_POLL = 0.2  # seconds
_BUSY = "in use by another process"
_AGAIN = ("the disk is full", *OUT_OF_MEMORY, _BUSY, "the storage failed")


class Handle(Protocol):
    """A run that has been started."""

    running: bool
    killed: bool  # once it has ended: whether that was from outside, by a signal or the loss of its machine

    def outcome(self) -> str:
        """Once it has ended: "done", or in one line why not."""

    def stop(self) -> None:
        """Ask it to keep its state and end."""

    def close(self) -> None:
        """Stop it, and wait until the state is kept."""


@dataclass(eq=False)
class Work:
    """A run to do: an edit, or the training that edits of a scene wait for.

    folder: of the run; done once it has a metrics.json. after: a folder that has to be finished first.
    """

    command: str
    flags: Sequence[str]
    folder: Path
    after: Path | None = None
    attempts: int = 0
    failure: str | None = None
    job: Handle | None = field(default=None, repr=False)
    figures: dict | None = field(default=None, repr=False)  # of metrics.json, once it is there

    @property
    def done(self) -> bool:
        if self.figures is None:
            self.figures = _figures(self.folder / "metrics.json")
        return self.figures is not None


def _figures(path: Path) -> dict | None:
    """What is in the file, nothing if it cannot be read; None if it is not there."""
    if not path.exists():
        return None
    try:
        return load_json(path)
    except (OSError, ValueError):
        return {}


def works(tasks: Sequence[Task], fixed: Sequence[str], train_fixed: Sequence[str]) -> list[Work]:
    """The runs of a sweep: trainings of sources that edits wait for, then edits.

    fixed, train_fixed: options that every edit and every training gets. An edit that is done needs no source.
    """
    edits = [
        Work("edit", [*task.flags, *task.options, *fixed, f"output={task.folder}"], task.folder, task.source)
        for task in tasks
    ]
    trainings: dict[Path, Work] = {}
    for task, edit in zip(tasks, edits):
        if task.source not in trainings and not edit.done:
            scene = [f for f in task.flags if f.startswith("--capture")] or [
                o for o in task.options if o.startswith("scene=")
            ]
            own = [o for o in task.extra if o.startswith(("scene.", "field.", "field="))]
            trainings[task.source] = Work("train", [*scene, *own, *train_fixed], task.source)
    return [*trainings.values(), *edits]


def start_job(work: Work) -> Job:
    """Start a run in a process of its own on this machine."""
    return Job(work.command, [*work.flags, *onward(work.folder)], work.folder)


def onward(folder: Path) -> list[str]:
    """The option that goes on with a run's folder, or begins again where no state was kept.

    Never overwrite=true: an edit that a killed sweep has left may have finished the run meanwhile.
    """
    return ["resume=true"] if folder.exists() else []


def run_pool(
    todo: Sequence[Work],
    jobs: int,
    retries: int,
    changed: Callable[[Work], None],
    poll: float = _POLL,
    start: Callable[[Work], Handle] = start_job,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Do all that is not done, `jobs` at a time.

    changed: called whenever one has ended. tick: called every `poll` seconds. Ctrl-C, and whatever else is
    raised here, stops all that run, with their states kept, and is passed on.
    """
    waiting, running = [work for work in todo if not work.done], []
    by_folder = {work.folder: work for work in todo}
    try:
        while waiting or running:
            for work in [w for w in running if not w.job.running]:
                running.remove(work)
                if _again(work, retries):
                    waiting.insert(0, work)
                changed(work)
            waiting = _begin(waiting, running, jobs, by_folder, changed, start)
            tick()
            time.sleep(poll)
    except BaseException:  # such as a full disk when the table is written: no edit is left running alone
        for work in running:
            work.job.stop()
        for work in running:
            work.job.close()
        raise


def _begin(waiting: list[Work], running: list[Work], jobs: int, by_folder: dict, changed, start) -> list[Work]:
    """Start what there is room for and whose source is there; returns what still waits."""
    later, ready = [], {None: True}
    for number, work in enumerate(waiting):
        if len(running) >= jobs:
            return [*later, *waiting[number:]]
        before = by_folder.get(work.after)
        if before is not None and before.failure is not None:
            work.failure = f"its source could not be trained: {before.failure}"
            changed(work)
            continue
        if before not in ready:  # asked once for all that wait for it: ten thousand may
            ready[before] = before.done
        if ready[before]:
            work.attempts += 1
            work.job = start(work)
            running.append(work)
        else:
            later.append(work)
    return later


def _again(work: Work, retries: int) -> bool:
    """Whether an ended run is to be tried again; else its failure is noted, if it has failed."""
    outcome = work.job.outcome()
    if work.done:  # also if it was killed afterwards: metrics.json is written last
        return False
    if _BUSY in outcome:  # as by an edit that a killed sweep has left: its end is waited for, however often that takes
        work.attempts -= 1
    if (work.job.killed or any(told in outcome for told in _AGAIN)) and work.attempts <= retries:
        log.info("%s: %s; trying again", work.folder, outcome)
        return True
    work.failure = outcome
    return False
