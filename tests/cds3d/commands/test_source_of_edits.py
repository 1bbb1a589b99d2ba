"""An edit reads its capture as its source field was trained, and starts from the field of that capture only."""

import shutil
from pathlib import Path

import pytest
import torch
from checks import fails, stops_at
from fakes import TINY_FIELD
from omegaconf import OmegaConf
from PIL import Image

from cds3d.cli import configured, run_command
from cds3d.commands.history import take_over
from cds3d.commands.view import open_viewer
from tensorf.renderable import load_field
from tensorf.train import Trainer


@pytest.fixture()
def boxed(capture_folder):
    """A source that was trained with options that are not the defaults."""
    options = ["--capture", str(capture_folder), *TINY_FIELD, "scene.width=32", "scene.space=box", "scene.check=false"]
    assert run_command("train", [*options, "field.decomposition=cp", "video_frames=0", "threads=1"]) == 0
    return ["--capture", str(capture_folder), "--src", "a yellow flower", "--tgt", "a red flower"]


def test_options_of_the_scene_and_the_field_are_the_sources(boxed):
    config = configured("edit", [*boxed, "scene.prompt=flowers"])
    take_over(config)
    assert (config.scene.width, config.scene.space, config.scene.check) == (32, "box", False)
    assert config.field.decomposition == "cp" and config.field.iterations == 8
    assert config.scene.prompt == "flowers"  # is nothing of the training


def test_captures_called_images_are_trained_under_the_names_above(capture_folder, capsys):
    shutil.copytree(capture_folder, "rose/images")
    options = [*TINY_FIELD, "scene.width=32", "scene.check=false", "video_frames=0", "threads=1"]
    assert run_command("train", ["--capture", "rose/images", *options]) == 0
    assert Path("outputs/rose/source/field.safetensors").exists() and not Path("outputs/images").exists()
    shutil.copytree(capture_folder, "red/rose/images")
    Path("red/rose/images/more.txt").write_text("")
    (changed := next(Path("red/rose/images").rglob("*.jpg"))).write_bytes(changed.read_bytes() + b"0")
    options = ["--src", "a rose", "--tgt", "a red rose"]
    assert "both have the name rose: rename" in fails(capsys, "edit", "--capture", "red/rose/images", *options)


@pytest.mark.parametrize("option", ["scene.space=ndc", "scene.width=48", "scene.test_every=3", "field.decoder=tcnn"])
def test_other_ones_are_refused_by_name(option, boxed, capsys):
    key = option.partition("=")[0]
    told = fails(capsys, "edit", *boxed, option)
    assert f"source was trained with {key}=" in told and f"leave {key} out" in told and "overwrite=true" in told
    assert "field" in key or f"trained with {key}=" in fails(capsys, "edit", *boxed[:2], "--views", "x", option)
    same = configured("edit", [*boxed, "scene.space=box", "scene.width=32", "field.decomposition=cp"])
    take_over(same)


def test_an_edit_of_it_and_the_viewer_see_what_was_trained(boxed, tiny_folder):
    tiny = [f"guidance.path={tiny_folder}", "edit.iterations=1", "edit.width=32", "video_frames=0", "threads=1"]
    assert run_command("edit", [*boxed, *tiny, "output=edit"]) == 0
    assert OmegaConf.load("edit/config.yaml").scene.space == "box"
    viewer = open_viewer(configured("view", [*boxed[:2], "device=cpu", "port=0", "width=32", "moving_width=16"]))
    try:
        assert viewer.capture.space == "box" and viewer.start.width == 32
    finally:
        viewer.close()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("render", ["{run}", "frames=1"]),
        ("export", ["{run}", "points"]),
        ("view", ["{run}", "port=0"]),
        ("edit", ["--run", "{run}", "--tgt", "a red flower"]),
    ],
)
def test_a_run_whose_capture_is_gone_is_named(command, options, boxed, capture_folder, capsys):
    run = Path("outputs") / capture_folder.name / "source"
    config = OmegaConf.load(run / "config.yaml")
    config.capture = "gone/daisies"
    OmegaConf.save(config, run / "config.yaml")
    told = fails(capsys, command, *(option.format(run=run) for option in options))
    assert f"{run}: its capture gone/daisies is not there" in told and str(run / "config.yaml") in told


def test_a_source_of_another_capture_of_the_same_name_is_refused(boxed, capture_folder, tmp_path, capsys):
    other = tmp_path / "elsewhere" / capture_folder.name
    shutil.copytree(capture_folder, other)
    (other / ".DS_Store").touch()  # a Mac's
    copied = ["--capture", str(other), *boxed[2:]]
    take_over(configured("edit", copied))  # the same files: it was copied, or moved
    next(other.rglob("view001.*")).unlink()
    assert f"was trained on {capture_folder}, not on {other}" in fails(capsys, "edit", *copied)


def test_runs_are_found_from_other_folders(tmp_path, capture_folder, monkeypatch, capsys):
    """A relative path to a capture counts from the folder that the run was started in."""
    shutil.copytree(capture_folder, tmp_path / "near")
    options = ["--capture", "near", *TINY_FIELD, "scene.width=32", "video_frames=0", "threads=1"]
    assert run_command("train", options) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_command("render", [str(tmp_path / "outputs" / "near" / "source"), "frames=1", "format=png"]) == 0


def test_an_edit_does_not_go_on_from_another_source(boxed, tiny_folder, capsys):
    tiny = [f"guidance.path={tiny_folder}", "edit.width=32", "video_frames=0", "threads=1", "output=edit"]
    assert run_command("edit", [*boxed, *tiny, "edit.iterations=1"]) == 0
    before = Path("edit/metrics.json").read_text()
    again = ["--capture", boxed[1], *TINY_FIELD, "scene.width=32", "scene.space=box", "scene.check=false", "seed=5"]
    assert (
        run_command("train", [*again, "field.decomposition=cp", "video_frames=0", "threads=1", "overwrite=true"]) == 0
    )
    told = fails(capsys, "edit", *boxed, *tiny, "edit.iterations=2", "resume=true")
    assert "another source field" in told and "overwrite=true" in told
    assert Path("edit/metrics.json").read_text() == before  # the finished run is as it was


def test_a_refit_does_not_go_on_from_another_source(boxed, tmp_path, capsys, monkeypatch):
    (tmp_path / "edits").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "edits" / "view001.png")
    refit = [*boxed[:2], "--views", "edits", "refit.iterations=3", "video_frames=0", "threads=1", "output=refit"]
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 2)
        assert run_command("edit", refit) == 130
    field = load_field(tmp_path / "outputs" / "daisies" / "source" / "field.safetensors")
    with torch.no_grad():
        next(field.parameters()).add_(1)
    field.save(tmp_path / "outputs" / "daisies" / "source" / "field.safetensors")
    assert "another source field" in fails(capsys, "edit", *refit, "resume=true")
