"""Clocks that jump back and forth by hours, and files from the future, in runs that are killed and go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

from campaigns import forks
from campaigns.kill import Trial, record_steps
from campaigns.tally import Order, Tally
from campaigns.tiny import LIMIT, Inputs, do

_HOURS = (-72, -5, -1, -0.01, 0.01, 1, 5, 72)
_KILLS = 2  # of one run, at most


def campaign(inputs: Inputs, folder: Path, order: Order) -> Tally:
    """As many runs as `order` says."""
    cases, numbers = order.chosen(inputs.cases()), order.numbers()
    tally, truths = Tally("clock", "runs"), {}
    record_steps()
    while order.goes_on(tally.count):
        case, number = cases[tally.trials % len(cases)], next(numbers)
        if case.name not in truths:
            truths[case.name] = inputs.run_whole(case, inputs.begin(case, folder / "whole"))
        trial = _ClockTrial(inputs, case, truths[case.name], folder / "broken", random.Random(number))
        trial.run(_KILLS)
        tally.add(case.name, 1, trial.problems, f"{case.name}, number {number}", {"kills": trial.kills})
    return tally


class _ClockTrial(Trial):
    def run(self, most: int) -> None:
        start = time.monotonic()
        super().run(most)
        self.problems += self._times(time.monotonic() - start)

    def _before_call(self) -> None:
        """Files were written hours ago, or will be."""
        for path in self.folder.rglob("*"):
            at = time.time() + 3600 * self.random.choice(_HOURS)
            os.utime(path, (at, at))
        self._seed = self.random.getrandbits(32)

    def _in_child(self) -> None:
        jump(random.Random(self._seed))

    def _whole_call(self) -> None:
        super()._whole_call()
        if not self.problems:
            self.problems += self._told()

    def _told(self) -> list[str]:
        """A line for each run that has not told how far it is."""
        return [
            f"{state.parent} tells no progress"
            for state in self.folder.rglob("state/state.pt")
            if not (state.parent / "progress.json").exists()
        ]

    def _times(self, passed: float) -> list[str]:
        """A line for each figure of seconds that cannot be. passed: seconds that all calls took."""
        lines = []
        for path in (*self.folder.rglob("metrics.json"), *self.folder.rglob("progress.json")):
            if self._finished.get(path) is None and "source" in path.parts and self.case.starts != "nothing":
                continue  # of before
            figures = json.loads(path.read_text())
            wrong = {k: v for k, v in figures.items() if "seconds" in k and not 0 <= v <= passed + 120}
            lines += [f"{path.name} has {wrong}"] if wrong else []
        return lines


def jump(chance: random.Random) -> None:
    """Let `time.time` of this process jump by hours at every fifth call; `time.monotonic` goes on."""
    import tqdm.std

    real, moved = time.time, [3600 * chance.choice(_HOURS)]

    def jumping() -> float:
        if chance.random() < 0.2:
            moved[0] = 3600 * chance.choice(_HOURS)
        return real() + moved[0]

    time.time = tqdm.std.time = jumping


def second_process(inputs: Inputs, folder: Path) -> list[str]:
    """A line if, while clocks jump, a second process is let into a folder that another works in."""
    case = next(case for case in inputs.cases() if case.name == "edit")
    world = inputs.begin(case, folder)
    run = world / "outputs" / "daisies" / "run"

    def work() -> int:
        jump(random.Random(0))
        return do(case, ["resume=true"])

    first = forks.Child(work, world, folder.with_name("first.log"))
    until = time.monotonic() + LIMIT
    while not (run / "config.yaml").exists() and first.wait(0.005) is None and time.monotonic() < until:
        pass
    with contextlib.suppress(FileNotFoundError):
        os.utime(run / ".lock", (0, 0))
    os.kill(first.pid, signal.SIGSTOP)  # it is at work until the other one has ended
    second = forks.Child(work, world, folder.with_name("second.log"))
    refused = second.wait(LIMIT)
    os.kill(first.pid, signal.SIGCONT)
    last = (second.lines() or [""])[-1]
    lines = [] if refused == 1 and "in use by another process" in last else [f"a second process was let in: {last}"]
    return lines + ([] if first.wait(LIMIT) == 0 else [f"the first one failed: {first.lines()[-1:]}"])
