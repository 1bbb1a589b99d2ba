"""scripts/make_official.py writes what `cds3d import` reads."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cds3d.cli import run_command
from scripts import make_official
from tensorf.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_a_model_is_trained_and_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(make_official, "STAGES", ((8, 0.3), (14, 0.7)))
    model, run = tmp_path / "model.th", tmp_path / "run"
    assert make_official.main(["flower", str(model), "--steps", "40", "--width", "32"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["model.th"]
    options = [str(model), str(ROOT / "scenes" / "flower"), "scene.width=32", f"output={run}", "video_frames=0"]
    assert run_command("import", options) == 0
    assert json.loads((run / "metrics.json").read_text())["psnr_db"] > 12


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--width", "0"]])
def test_wrong_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="has to be"):
        make_official.main(["flower", str(tmp_path / "model.th"), *wrong])


def test_an_interrupted_training_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(make_official, "STAGES", ((8, 1.0),))
    monkeypatch.setattr(make_official.Trainer, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_official.main(["flower", str(tmp_path / "model.th"), "--steps", "3", "--width", "32"])
    assert list(tmp_path.iterdir()) == []


def test_scenes_that_are_not_forward_facing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(make_official, "load_scene", lambda config: SimpleNamespace(space="box"))
    with pytest.raises(UserError, match="not forward-facing"):
        make_official.main(["flower", str(tmp_path / "model.th")])
    assert list(tmp_path.iterdir()) == []
