"""Doing a sweep's edits, some at a time, each in a process of its own.

A process that is killed, or runs out of disk or memory, is tried again from its last state. One that fails for a reason
of its own is listed, and the others go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cds3d.jobs import Job
from cds3d.sweep.plan import Task

log = logging.getLogger("cds3d")

_POLL = 0.2  # seconds
_EDIT_MB = 2700  # of memory that an edit takes with pocket at 252x189: the most that was measured
_BUSY = "in use by another process"
_AGAIN = ("the disk is full", "out of memory", _BUSY)


@dataclass
class Work:
    """A process to run: an edit, or the training that edits of a scene wait for.

    folder: of its run; done once it has a metrics.json. after: a folder that has to be finished first.
    """

    command: str
    flags: Sequence[str]
    folder: Path
    after: Path | None = None
    attempts: int = 0
    failure: str | None = None
    job: Job | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        return (self.folder / "metrics.json").exists()


def works(tasks: Sequence[Task], fixed: Sequence[str], train_fixed: Sequence[str]) -> list[Work]:
    """The processes of a sweep: trainings of sources that are not there, then edits.

    fixed, train_fixed: options that every edit and every training gets.
    """
    trainings: dict[Path, Work] = {}
    for task in tasks:
        if task.source not in trainings:
            scene = [f for f in task.flags if f.startswith("--capture")] or [
                o for o in task.options if o.startswith("scene=")
            ]
            own = [o for o in task.extra if o.startswith(("scene.", "field.", "field="))]
            trainings[task.source] = Work("train", [*scene, *own, *train_fixed], task.source)
    edits = [
        Work("edit", [*task.flags, *task.options, *fixed, f"output={task.folder}"], task.folder, task.source)
        for task in tasks
    ]
    return [*trainings.values(), *edits]


def run_pool(
    todo: Sequence[Work], jobs: int, retries: int, changed: Callable[[Work], None], poll: float = _POLL
) -> None:
    """Do all that is not done, `jobs` at a time. changed: called whenever one has ended.

    Ctrl-C stops all that run, with their states kept, and is passed on.
    """
    waiting, running = [work for work in todo if not work.done], []
    finished = {work.folder: work for work in todo}
    try:
        while waiting or running:
            for work in [w for w in running if not w.job.running]:
                running.remove(work)
                if _again(work, retries):
                    waiting.insert(0, work)
                changed(work)
            for work in list(waiting):
                before = finished.get(work.after)
                if before is not None and before.failure is not None:
                    waiting.remove(work)
                    work.failure = f"its source could not be trained: {before.failure}"
                    changed(work)
                elif len(running) < jobs and (before is None or before.done):
                    waiting.remove(work)
                    running.append(work)
                    _start(work)
            time.sleep(poll)
    except KeyboardInterrupt:
        for work in running:
            work.job.stop()
        for work in running:
            work.job.close()
        raise


def _start(work: Work) -> None:
    again = ["resume=true"] if work.folder.exists() else []  # never overwrite: it may be done by now
    work.attempts += 1
    work.job = Job(work.command, [*work.flags, *again], work.folder)


def _again(work: Work, retries: int) -> bool:
    """Whether an ended process is to be tried again; else its failure is noted, if it has failed."""
    if work.done:  # also if it was killed afterwards: metrics.json is written last
        return False
    outcome = work.job.outcome()
    killed = work.job.process.returncode < 0
    if _BUSY in outcome:  # as by an edit that a killed sweep has left: its end is waited for, however often that takes
        work.attempts -= 1
    if (killed or any(told in outcome for told in _AGAIN)) and work.attempts <= retries:
        log.info("%s: %s; trying again", work.folder, outcome)
        return True
    work.failure = outcome
    return False


def default_jobs() -> int:
    """As many edits as there are cores, and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (ValueError, OSError, AttributeError):
        return cores
    return max(1, min(cores, int(pages // _EDIT_MB)))
