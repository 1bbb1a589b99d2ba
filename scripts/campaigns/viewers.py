"""The viewer, killed or asked to end while an edit that was started from its page runs."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

from campaigns import forks
from campaigns.kill import Trial, iteration_of
from campaigns.tiny import LIMIT

_WAYS = {"the viewer: SIGKILL": 9, "the viewer: SIGTERM": 15, "the viewer: SIGHUP": 1, "the viewer and its edit": 0}
_SRC, _TGT, _ITERATIONS = "a yellow flower", "a red flower", 12


class ViewerTrial(Trial):
    """After its viewer's end an edit ends too, or gets done; unless it was killed itself, no step of it is lost."""

    def _killed_call(self) -> tuple[forks.Child, int | None, str]:
        way = self.random.choice(list(_WAYS))
        child = self._start()
        until = time.monotonic() + LIMIT
        while not child.family() and child.wait(0.01) is None and time.monotonic() < until:
            pass
        ended = child.wait(self.random.uniform(0, 0.8 * self.truth.seconds))
        if ended is not None:
            return child, ended, way
        edit = child.family()
        self._orphans += edit
        self._struck = True
        number = _WAYS[way]
        forks.kill([child.pid, *edit]) if number == 0 else os.kill(child.pid, number)
        ended = child.wait(LIMIT)
        if not forks.have_ended(edit, LIMIT):
            self.problems.append(f"{way}: its edit still runs after {LIMIT:.0f} s")
        elif number:
            self.problems += [f"{way}: {line}" for line in self._lost_steps()]
        if number in (signal.SIGTERM, signal.SIGHUP) and ended not in (130, None):
            self.problems.append(f"{way}: it ends with {ended}: {child.lines()[-1:]}")
        return child, ended, way

    def _lost_steps(self) -> list[str]:
        """A line if the state is not that after the last step."""
        done = [int(line.split()[1]) + 1 for line in self.steps_noted() if line.startswith("Editor ")]
        kept = iteration_of(self.folder / self.case.states["Editor"])
        return [f"step {done[-1]} was done, and step {kept} is kept"] if done and kept < done[-1] else []


def view(options: list[str]) -> int:
    """`cds3d view`, on whose page the edit is started, or gone on with; once that has ended, so does the viewer."""
    from cds3d.commands import view as command

    opening, shown = command.open_viewer, []

    def opened(config):
        shown.append(opening(config))
        _press(shown[0])
        return shown[0]

    def sleep(_seconds: float) -> None:
        time.sleep(0.05)
        if shown[0].job is None:
            raise SystemExit(_outcome(shown[0]))

    command.open_viewer, command.time = opened, SimpleNamespace(sleep=sleep)
    try:
        return forks.run_command("view", options)
    except SystemExit as end:
        return end.code


def _press(viewer) -> None:
    """*Resume* if an edit was stopped, else *Start*."""
    controls = viewer.controls
    if viewer.stopped():
        controls._begin(lambda: viewer.resume_edit(controls._stopped.value))
        return
    controls._src.value, controls._tgt.value, controls._iterations.value = _SRC, _TGT, _ITERATIONS
    controls._begin(viewer.start_edit)


def _outcome(viewer) -> int:
    """0 if the page says that the edit is done; else what it says goes to stderr."""
    until = time.monotonic() + 5
    while (told := viewer.controls._status.content) != "done" and time.monotonic() < until:
        time.sleep(0.05)
    if told != "done":
        os.write(2, f"error: the page says {told!r}\n".encode())
    return 0 if told == "done" else 1
