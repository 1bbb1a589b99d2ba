"""The loop around trainings and edits: what it resumes from, keeps and calls."""

import pytest
import torch
from omegaconf import OmegaConf

from cds3d.commands.driving import drive
from cds3d.runs import RunFolder


class Count:
    """Work whose iteration i is done when it says so; it stops as if by Ctrl-C at `stop`."""

    def __init__(self, stop=None):
        self.iteration, self.stop, self.done = 0, stop, []

    def step(self):
        if self.iteration == self.stop:
            raise KeyboardInterrupt
        self.done.append(self.iteration)
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
        work.saved = torch.load(run.state_path, weights_only=True)["iteration"]
    return told


def test_a_resumed_run_does_what_is_left_and_nothing_twice(tmp_path):
    first, second = Count(stop=4), Count()
    with pytest.raises(KeyboardInterrupt, match="iteration 4.*resume=true"):
        driven(tmp_path / "run", first)
    assert first.done == [0, 1, 2, 3] and first.saved == 4
    told = driven(tmp_path / "run", second)
    assert second.done == [4, 5] and second.saved == 6
    assert told == [{"loss": 5.0}, {"loss": 6.0}]


def test_states_are_kept_as_often_as_asked(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(RunFolder, "save_state", lambda self, state: saved.append(state["iteration"]))
    with pytest.raises(FileNotFoundError):  # nothing was really written
        driven(tmp_path / "run", Count(), save_every=2)
    assert saved == [2, 4, 6, 6]
