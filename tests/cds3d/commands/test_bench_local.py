"""scripts/bench_local.py: what it refuses before anything is rendered or trained."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from checks import load_script

from cds3d.options import load_config
from tensorf.errors import UserError


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_script("bench_local")


def test_runs_with_other_options_are_not_told_as_these(bench, tmp_path):
    args = SimpleNamespace(output=tmp_path / "local", options=["edit.lr=0.02"], tuning=False)
    bench._claim(args)
    (args.output / "runs").mkdir()
    bench._claim(args)
    for other in ({"options": []}, {"tuning": True}):
        with pytest.raises(UserError, match="holds runs with other options"):
            bench._claim(SimpleNamespace(**{**vars(args), **other}))
    assert json.loads((args.output / "settings.json").read_text()) == {"options": ["edit.lr=0.02"], "tuning": False}


def test_wrong_options_are_told_first(bench, tmp_path):
    with pytest.raises(UserError, match="unknown option edit.speed"):
        bench.main(["--output", str(tmp_path / "local"), "edit.speed=3"])
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("preset", ["field", "shape", "pictures"])
def test_every_way_has_options_of_its_preset(bench, preset, tmp_path, monkeypatch):
    config = load_config("edit", ["scene=capture", f"edit={preset}"])
    mask = np.zeros((12, 16), bool)
    mask[4:6, 5:9] = True
    monkeypatch.setattr(bench, "changed", lambda *ignored, **others: mask)
    monkeypatch.setattr(bench, "resized_to", lambda camera, width: camera)
    position, point = np.zeros(3), np.array([0.0, 0.0, 2.0])
    camera = SimpleNamespace(width=16, height=12, fx=20.0, position=position, forward=np.array([0.0, 0.0, 1.0]))
    capture = SimpleNamespace(test=[], train=[0], cameras=[camera], image_names=["a.png"])
    world = SimpleNamespace(attributes=SimpleNamespace(beside="yellow", species="daisy"))
    monkeypatch.setattr(bench, "point_at", lambda *ignored: point)
    ways = bench.pointers(config, world, capture, None, "blue", tmp_path)
    assert set(ways) == set(bench.WAYS)
    for options in ways.values():
        load_config("edit", ["scene=capture", f"edit={preset}", *options])
