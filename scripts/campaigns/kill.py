"""Commands killed at random moments, called again until they end, and compared with unbroken ones."""

from __future__ import annotations

import os
import random
from pathlib import Path

from campaigns import forks
from campaigns.tally import Order, Tally
from campaigns.tiny import LIMIT, Case, Inputs, Truth, do, is_done
from campaigns.wholeness import contents, damages, differences, leftovers

WAYS = ("at a write", "at any time", "with all that it started")
KILLED = "error: the process was killed (SIGKILL)"  # what the viewer tells
_KILLS = 6  # of one run, at most


def campaign(inputs: Inputs, folder: Path, order: Order) -> Tally:
    """As many kills as `order` says."""
    from campaigns.viewers import ViewerTrial

    cases, numbers = order.chosen([*inputs.cases(), inputs.viewer_case()]), order.numbers()
    tally, truths = Tally("kill", "kills"), {}
    record_steps()
    while order.goes_on(tally.count):
        case, number = cases[tally.trials % len(cases)], next(numbers)
        if case.name not in truths:
            truths[case.name] = inputs.run_whole(case, inputs.begin(case, folder / "whole"))
        kind = ViewerTrial if case.command == "view" else Trial
        trial = kind(inputs, case, truths[case.name], folder / "broken", random.Random(number))
        trial.run(_KILLS)
        tally.add(case.name, trial.kills, trial.problems, f"{case.name}, number {number}", trial.ways)
    return tally


class Trial:
    """One run, killed once or more. problems: a line each for what was lost."""

    def __init__(self, inputs: Inputs, case: Case, truth: Truth, folder: Path, generator: random.Random):
        self.case, self.truth, self.random = case, truth, generator
        self.folder = inputs.begin(case, folder)
        self.before = _bytes(self.folder / case.done)
        self.problems, self.kills, self.ways, self._finished, self._orphans = [], 0, {}, {}, []
        self._ended = False  # by itself
        self._steps = folder.with_name("steps.log")
        os.environ[_STEPS] = str(self._steps)

    def run(self, most: int) -> None:
        for _ in range(self.random.randint(1, most)):
            if not self._broken_call():
                break
        if not self.problems and not self._is_done():
            self._whole_call()
        if not self.problems:
            self.problems += differences(contents(self.folder), self.truth.files)
            left = leftovers(self.folder)  # a lock file, if the last call was killed after its end: it holds nothing
            self.problems += left if self._ended else [line for line in left if ".lock" not in line]
            self.problems += self._done_again()
        forks.kill(self._orphans)

    def _is_done(self) -> bool:
        return is_done(self.case, self.folder) and _bytes(self.folder / self.case.done) != self.before

    def _start(self, kill_at_write: int = 0) -> forks.Child:
        self._before_call()
        more = list(self.case.again) if self.kills else []
        self._struck = False
        self._steps.unlink(missing_ok=True)
        self._expected = {kind: iteration_of(self.folder / run) for kind, run in self.case.states.items()}

        def work() -> int:
            forks.at_write(kill_at_write, forks.die)
            self._in_child()
            return do(self.case, more)

        told = self.folder.with_name("broken.log")
        told.unlink(missing_ok=True)
        return forks.Child(work, self.folder, told)

    def _before_call(self) -> None:
        """For other campaigns: what happens between two calls."""

    def _in_child(self) -> None:
        """For other campaigns: what is other in the process of a call."""

    def _broken_call(self) -> bool:
        """Start, and kill; whether there is more to do."""
        child, ended, way = self._killed_call()
        if ended is None:
            self._hangs(child)
            return False
        self.problems += self._steps_again()
        if ended == -9 or self._struck or KILLED in child.lines()[-1:]:
            self.kills += 1
            self.ways[way] = self.ways.get(way, 0) + 1
        else:  # it came to its end before
            self._check_end(child)
            return False
        self.problems += damages(self.folder)
        self.problems += self._done_again()
        if self._is_done():
            self.problems += differences(contents(self.folder), self.truth.files)
        return not self.problems and not self._is_done()

    def _killed_call(self) -> tuple[forks.Child, int | None, str]:
        """(what was started, its exit code or None if it does not end, the way that it was killed)."""
        way = self.random.choice(WAYS)
        child = self._start(self.random.randint(1, self.truth.writes) if way == "at a write" else 0)
        ended = child.wait(LIMIT if way == "at a write" else self.random.uniform(0, 0.8 * self.truth.seconds))
        if ended is None and way != "at a write":
            self._strike(child, way)
            ended = child.wait(LIMIT)
        return child, ended, way

    def _strike(self, child: forks.Child, way: str) -> None:
        family = child.family()
        self._orphans += family
        if way == "with all that it started":
            forks.kill([child.pid, *family])
        elif self.case.command == "job":  # the viewer lives on
            forks.kill(family[:1])
        else:
            forks.kill([self.random.choice([child.pid, *family]) if self.case.command == "sweep" else child.pid])
        self._struck = True

    def _whole_call(self) -> None:
        child = self._start()
        if child.wait(LIMIT) is None:
            self._hangs(child)
            return
        self.problems += self._steps_again()
        self._check_end(child)

    def _check_end(self, child: forks.Child) -> None:
        self._ended = True
        if child.returncode != 0:
            last = (child.lines() or ["nothing"])[-1]
            self.problems.append(f"the same command ends with {child.returncode}: {last}")

    def _hangs(self, child: forks.Child) -> None:
        child.kill()
        child.wait(LIMIT)
        self.problems.append(f"still running after {LIMIT:.0f} s")

    def steps_noted(self) -> list[str]:
        """Of the last call, a line each: what works, and the number of the step that it began."""
        return self._steps.read_text().splitlines() if self._steps.exists() else []

    def _steps_again(self) -> list[str]:
        """A line for each work that did not go on from the last state on the disk."""
        lines, first = [], {}
        for line in self.steps_noted():
            kind, iteration = line.split()
            first.setdefault(kind, int(iteration))
        for kind, iteration in first.items():
            if kind in self._expected and self._expected[kind] != iteration:
                lines.append(f"{kind} went on from step {iteration}, not from {self._expected[kind]}")
        return lines

    def _done_again(self) -> list[str]:
        """A line for each finished run that was finished again since the last look: its seconds are others then."""
        now = {p: _bytes(p) for p in self.folder.rglob("metrics.json")}
        again = [p for p, content in self._finished.items() if now.get(p) != content]
        if self.kills:  # what was there before the first call may be overwritten
            self._finished = {p: content for p, content in now.items() if content != self.before}
        return [f"{p.relative_to(self.folder)} was written twice" for p in again]


_STEPS = "CAMPAIGN_STEPS"  # names the file that steps are noted in


def record_steps() -> None:
    """Have trainings and edits note the number of each step before they do it."""
    from cds3d.by_pictures import PictureEdit
    from cds3d.editor import Editor
    from cds3d.redraw import RedrawnShape
    from tensorf.train import Trainer

    for kind in (Editor, PictureEdit, RedrawnShape, Trainer):
        if not hasattr(kind.step, "noted"):
            kind.step = _noting(kind.__name__, kind.step)


def _noting(name: str, step):
    def noting(self):
        if path := os.environ.get(_STEPS):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, f"{name} {self.iteration}\n".encode())
            os.close(file)
        return step(self)

    noting.noted = True
    return noting


def iteration_of(run: Path) -> int:
    """Of the state in a run folder."""
    import torch

    state = run / "state" / "state.pt"
    return torch.load(state, weights_only=True)["iteration"] if state.exists() else 0


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
