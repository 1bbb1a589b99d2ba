"""scripts/bench_field.py: the capture of fine texture, and the time that training takes to a goal."""

import pytest
import torch
from checks import load_script
from fakes import TINY_FIELD

from cds3d.options import load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.captures import load_capture


@pytest.fixture(scope="module")
def script():
    return load_script("bench_field")


def detail(capture) -> float:
    """Mean of |4 x - neighbours| over a photo's grey levels."""
    grey = capture.images[1].float().mean(-1)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((4 * grey[1:-1, 1:-1] - around).abs().mean())


def test_fine_texture_is_twice_as_fine_as_the_flower(script, tmp_path):
    script.write_fine(tmp_path / "fine", views=3)
    flower = Attributes(2_000_026, "flower", "daisy", "yellow", "garden")
    write_capture(tmp_path / "flower", flower, views=3, width=252, height=188)
    fine, shipped = (load_capture(tmp_path / name, width=126, check=False) for name in ("fine", "flower"))
    assert detail(fine) > 1.7 * detail(shipped)


def test_the_goal_ends_training_or_is_not_reached(script, capture_folder, monkeypatch):
    monkeypatch.setattr(script, "load_config", lambda command, options: load_config(command, [*options, *TINY_FIELD]))
    cpu = torch.device("cpu")
    soon = script.bench_goal(capture_folder, None, cpu, 1.0)
    assert soon["steps"] == 1 and 0 < soon["of_these_reading_seconds"] < soon["seconds"] < 100
    assert soon["held_out_psnr_db"] >= 1
    assert soon["photos"] == "64x48"
    never = script.bench_goal(capture_folder, None, cpu, 99.0, looks=3)
    assert never["steps"] == 8 and never["seconds"] is None and never["held_out_psnr_db"] < 99
