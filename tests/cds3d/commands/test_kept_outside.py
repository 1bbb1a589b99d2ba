"""What an edit keeps outside its region, where no true edit is known: kept_outside_region_db."""

import copy
import json

import pytest
import torch

from cds3d.cli import run_command
from cds3d.commands import evaluation
from cds3d.commands.evaluation import held_out_views, outside_figures
from tensorf.captures import load_capture
from tensorf.renderable import load_field


@pytest.fixture
def field(trained):
    return load_field(trained / "field.safetensors")


@pytest.fixture
def left(field):
    """The left half of the cells."""
    region = torch.zeros_like(field.occupancy)
    region[:, :, : region.shape[2] // 2] = True
    return region


def changed(views, columns, by):
    for view in views.after:
        view["color"] = view["color"].clone()
        view["color"][:, columns] += by
    return views


def test_only_pixels_that_show_nothing_of_the_region_count(field, left, capture_folder):
    capture = load_capture(capture_folder, width=64)
    assert outside_figures(field, field, held_out_views(field, field, capture, 48), left) == {
        "kept_outside_region_db": 100.0
    }
    views = changed(held_out_views(field, field, capture, 48), slice(0, 12), 0.5)
    assert outside_figures(field, field, views, left)["kept_outside_region_db"] == 100.0
    views = changed(held_out_views(field, field, capture, 48), slice(0, 48), 0.1)
    assert outside_figures(field, field, views, left)["kept_outside_region_db"] == pytest.approx(20.0, abs=0.01)
    assert outside_figures(field, field, views, torch.ones_like(left)) == {}


@pytest.mark.parametrize("preset", [[], ["edit=shape"]], ids=["field", "shape"])
def test_edits_of_scenes_tell_what_they_keep_outside(preset, tmp_path, edit_options, trained):
    options = [*edit_options, *preset, "edit.width=48", "edit.iterations=2", "box=-9,-9,0,0,9,99", "video_frames=0"]
    assert run_command("edit", [*options, f"output={tmp_path}/edit"]) == 0
    kept = json.loads((tmp_path / "edit" / "metrics.json").read_text())["kept_outside_region_db"]
    assert kept > 60  # it is the source there


def test_without_a_region_nothing_is_told(tmp_path, edit_options, trained):
    options = [*edit_options, "edit=published", "edit.width=48", "edit.iterations=2", "video_frames=0"]
    assert run_command("edit", [*options, f"output={tmp_path}/edit"]) == 0
    assert "kept_outside_region_db" not in json.loads((tmp_path / "edit" / "metrics.json").read_text())


def test_what_has_grown_into_empty_space_is_not_outside(field, left, capture_folder, monkeypatch):
    edited = copy.copy(field)
    capture = load_capture(capture_folder, width=64)
    views = changed(held_out_views(field, edited, capture, 48), slice(0, 24), 0.5)

    def share(shown, view, region):
        there = torch.zeros_like(view.full[..., 0])
        there[:, :30] = float(shown is edited)  # the source shows nothing of the region
        return there

    monkeypatch.setattr(evaluation, "seen_share", share)
    assert outside_figures(field, edited, views, left) == {"kept_outside_region_db": 100.0}
    assert outside_figures(field, field, views, left)["kept_outside_region_db"] < 20
