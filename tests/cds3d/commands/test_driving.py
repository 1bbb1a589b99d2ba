"""The loop around trainings and edits: what it resumes from, keeps and calls."""

import json
import os
import pty
import signal
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from cds3d.commands.driving import drive, telling
from cds3d.interrupts import gentle_ends
from cds3d.runs import RunFolder
from tensorf.errors import UserError


class Count:
    """Work that counts. Ctrl-C comes `presses` times within step `stop`, or other signals; step `wrong` fails."""

    def __init__(self, stop=None, presses=1, wrong=None, signals=()):
        self.iteration, self.stop, self.wrong, self.done = 0, stop, wrong, []
        self.signals = signals or [signal.SIGINT] * presses

    def step(self):
        self.done.append(self.iteration)
        if self.iteration == self.wrong:
            raise UserError("no longer finite")
        for number in self.signals if self.iteration == self.stop else ():
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # the signal arrives
        self.iteration += 1
        return {"loss": float(self.iteration)}

    def state_dict(self):
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def driven(path, work, save_every=100):
    config = OmegaConf.create({"scene": {}, "output": None, "device": "cpu", "resume": True, "overwrite": False})
    run, told = RunFolder(path, config), []
    run.begin()
    try:
        drive(work, 6, run, save_every=save_every, label="test", each=lambda result, bar, writer: told.append(result))
    finally:
        if run.state_path.exists():
            work.saved = torch.load(run.state_path, weights_only=True)["iteration"]
    return told


def test_a_resumed_run_does_what_is_left_and_nothing_twice(tmp_path):
    first, second = Count(stop=3), Count()
    with pytest.raises(KeyboardInterrupt, match="iteration 4.*resume=true"):
        driven(tmp_path / "run", first)
    assert first.done == [0, 1, 2, 3] and first.saved == 4
    told = driven(tmp_path / "run", second)
    assert second.done == [4, 5] and second.saved == 6
    assert told == [{"loss": 5.0}, {"loss": 6.0}]


def test_a_state_that_does_not_fit_is_damaged_and_a_full_gpu_is_not(tmp_path):
    class Torn(Count):
        def load_state_dict(self, state):
            raise RuntimeError(self.told)

    with pytest.raises(KeyboardInterrupt):
        driven(tmp_path / "run", Count(stop=3))
    work = Torn()
    for work.told, error, said in (
        ("size mismatch", UserError, "is damaged.*overwrite"),
        ("out of memory", RuntimeError, "out"),
    ):
        with pytest.raises(error, match=said):
            driven(tmp_path / "run", work)


def test_states_are_kept_as_often_as_asked(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(RunFolder, "save_state", lambda self, state: saved.append(state["iteration"]))
    driven(tmp_path / "run", Count(), save_every=2)
    assert saved == [2, 4, 6, 6]


@pytest.mark.parametrize(
    "work, error",
    [(Count(stop=3, presses=2), KeyboardInterrupt), (Count(wrong=3), UserError)],
    ids=["pressed", "wrong"],
)
def test_a_step_that_was_cut_or_went_wrong_leaves_the_state_that_was_kept_before(tmp_path, work, error):
    with pytest.raises(error, match="within iteration 4.*resume=true|no longer finite"):
        driven(tmp_path / "run", work, save_every=2)
    assert work.done == [0, 1, 2, 3] and work.saved == 2


def test_seconds_of_all_parts_of_a_resumed_run_count(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "seconds", 60.0)
    config = OmegaConf.create({"scene": {}, "output": None, "device": "cpu", "resume": True, "overwrite": False})
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    run.seconds_before = 30.0
    assert drive(Count(), 6, run, save_every=9, label="test", each=lambda *_: None) == 10.0


def test_a_changed_setting_is_told_at_the_iteration_that_the_work_goes_on_from(tmp_path):
    class Dropping(Count):
        def load_state_dict(self, state):
            self.iteration = state["iteration"] - 2  # as a redrawn edit does that becomes longer

    def run(work, lr):
        config = {"scene": {}, "output": None, "device": "cpu", "resume": True, "overwrite": False, "edit": {"lr": lr}}
        folder = RunFolder(tmp_path / "run", OmegaConf.create(config))
        folder.begin()
        drive(work, 6, folder, save_every=100, label="test", each=lambda *_: None)
        return folder

    with pytest.raises(KeyboardInterrupt):
        run(Count(stop=3), 0.1)
    run(Dropping(), 0.2).finish({})
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["changed_on_resume"]
    assert told == [{"iteration": 2, "edit.lr": [0.1, 0.2]}]


def test_kill_and_a_closed_terminal_keep_the_state(tmp_path):
    """SIGTERM and SIGHUP wait for the end of the step, even if both come."""
    both = [signal.SIGHUP, signal.SIGTERM, signal.SIGHUP]
    by_the_sweep_too = [signal.SIGTERM, signal.SIGINT]
    for name, signals in (("term", [signal.SIGTERM]), ("both", both), ("sweep", by_the_sweep_too)):
        work = Count(stop=3, signals=signals)
        with gentle_ends(), pytest.raises(KeyboardInterrupt, match="iteration 4.*resume=true"):
            driven(tmp_path / name, work)
        assert work.saved == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with gentle_ends(), pytest.raises(KeyboardInterrupt):  # outside of a loop, at once
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def test_who_has_handlers_keeps_them():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    try:
        with gentle_ends():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_state_is_kept_where_nobody_reads_what_is_told(tmp_path):
    def broken(result, bar, writer):
        if result["loss"] == 3:
            raise BrokenPipeError

    config = OmegaConf.create({"scene": {}, "output": None, "device": "cpu", "resume": False, "overwrite": False})
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    with pytest.raises(BrokenPipeError):
        drive(Count(), 6, run, save_every=100, label="test", each=broken)
    assert torch.load(run.state_path, weights_only=True)["iteration"] == 3


def test_a_closed_terminal_ends_an_edit_with_its_state(tmp_path):
    """In a terminal of its own, which goes while it runs: what is written there raises OSError afterwards."""
    code = """
import sys, time
from pathlib import Path
from omegaconf import OmegaConf
from cds3d.commands.driving import drive
from cds3d.interrupts import gentle_ends
from cds3d.runs import RunFolder

class Slow:
    iteration = 0
    def step(self):
        time.sleep(0.05)
        self.iteration += 1
    def state_dict(self): return {"iteration": self.iteration}

config = OmegaConf.create({"scene": {}, "output": None, "device": "cpu", "resume": False, "overwrite": False})
run = RunFolder(Path(sys.argv[1]), config)
run.begin()
with gentle_ends():
    drive(Slow(), 1000, run, save_every=1000, label="slow", each=lambda *_: print("step", flush=True))
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code, str(tmp_path / "run")])
    told = b""
    while told.count(b"step\r") < 5:
        try:
            told += os.read(terminal, 1024)
        except OSError:  # it has ended
            pytest.fail(told.decode())
    os.close(terminal)  # the kernel sends SIGHUP to whoever runs in it
    os.waitpid(pid, 0)
    assert torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)["iteration"] >= 4


def test_a_second_signal_does_not_cut_the_state_that_is_being_kept(tmp_path):
    """A closed terminal sends two: its shell's, and the kernel's."""

    class Twice(Count):
        def state_dict(self):
            os.kill(os.getpid(), second)
            time.sleep(0.01)
            return super().state_dict()

    for second in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        work = Twice(stop=2, signals=[signal.SIGHUP])
        with gentle_ends(), pytest.raises(KeyboardInterrupt, match="iteration 3.*resume=true"):
            driven(tmp_path / second.name, work)
        assert work.saved == 3


def test_the_state_is_kept_where_a_programs_own_on_step_fails(tmp_path):
    def on_step(done, of, figures):
        if done == 4:
            raise ZeroDivisionError

    work = Count()
    with telling(on_step), pytest.raises(ZeroDivisionError):
        driven(tmp_path / "run", work)
    assert work.saved == 4
