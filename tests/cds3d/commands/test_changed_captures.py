"""A capture that has changed since its field was trained: what goes on with the field says so."""

import logging
import shutil

import numpy as np
import pytest
from checks import fails, stops_at
from fakes import TINY_FIELD, TINY_SCENE

from cds3d.cli import configured, main, run_command
from cds3d.commands.scenes import load_scene
from cds3d.runs import read_config
from tensorf.errors import UserError
from tensorf.train import Trainer


@pytest.fixture()
def own(tmp_path, capture_folder):
    """A copy of the capture, and a source that was trained on it."""
    folder = tmp_path / "own"
    shutil.copytree(capture_folder, folder)
    options = ["--capture", str(folder), *TINY_SCENE, *TINY_FIELD, "video_frames=0"]
    assert run_command("train", options) == 0
    return folder


def without_a_photo(folder):
    """As somebody leaves who has sorted out a blurred one: every camera moves in the world."""
    table = np.load(folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", table[1:])
    next(iter(sorted((folder / "images").iterdir()))).unlink()


def nudged(folder):
    table = np.load(folder / "poses_bounds.npy")
    table[1, 3] += 0.002
    np.save(folder / "poses_bounds.npy", table)


@pytest.mark.parametrize(
    "command", [("render", "{run}", "frames=1"), ("export", "{run}", "dataset"), ("edit", "--capture", "{capture}")]
)
def test_cameras_that_no_longer_fit_are_refused(command, own, tiny_folder, capsys):
    run = "outputs/own/source"
    words = [word.format(run=run, capture=own) for word in command]
    if words[0] == "edit":
        words += ["--tgt", "a red flower", "--src", "a flower", f"guidance.path={tiny_folder}", "edit.width=48"]
    without_a_photo(own)
    told = fails(capsys, *words)
    assert all(part in told for part in (str(own), run, "1 of its photos gone", "put it back", "overwrite=true"))


def test_so_are_those_of_an_edit_of_it(own, tiny_folder, capsys):
    tiny = [f"guidance.path={tiny_folder}", "edit.iterations=1", "edit.width=48", "video_frames=0", "threads=1"]
    words = ["--capture", str(own), "--src", "a flower", "--tgt", "a red flower", *tiny]
    assert run_command("edit", [*words, "output=outputs/own/red"]) == 0
    without_a_photo(own)
    assert "outputs/own/source was made from it" in fails(capsys, "render", "outputs/own/red", "frames=1")
    onward = ["--run", "outputs/own/red", "--tgt", "a blue flower", *tiny]
    assert "outputs/own/source was made from it" in fails(capsys, "edit", *onward)
    # An edit of a field that has been replaced since goes back to none that is known.
    (own.parent / "outputs/own/red/state/source.txt").write_text("another\n")
    assert main(["render", "outputs/own/red", "frames=1", "format=png", "width=16"]) == 0


def test_what_still_fits_is_told_and_goes_on(own, caplog):
    nudged(own)
    assert main(["render", "outputs/own/source", "frames=1", "format=png", "width=16"]) == 0
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "changed" in r.getMessage()]
    assert "1 of its photos posed otherwise" in line and "still fit" in line


@pytest.mark.parametrize("change", [without_a_photo, nudged])
def test_a_training_goes_on_with_what_it_was_begun_with_alone(own, change, capsys, monkeypatch):
    options = ["--capture", str(own), *TINY_SCENE, *TINY_FIELD, "video_frames=0", "save_every=1", "output=broken"]
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 3)
        run_command("train", options)
    shutil.copytree("broken", "older")
    (own.parent / "older/state/capture.txt").unlink()
    change(own)
    told = fails(capsys, "train", *options, "resume=true")
    assert "broken was begun before its capture changed" in told and "overwrite=true" in told
    if change is nudged:  # the number of photos is a part of the state
        assert run_command("train", [*options, "output=older", "resume=true"]) == 0
    assert run_command("train", [*options, "overwrite=true"]) == 0


def test_runs_of_earlier_versions_go_on_as_before(own, caplog):
    (own.parent / "outputs/own/source/state/capture.txt").unlink()
    without_a_photo(own)
    assert main(["render", "outputs/own/source", "frames=1", "format=png", "width=16"]) == 0
    assert "changed" not in caplog.text


def test_a_capture_that_is_read_otherwise_is_not_compared(own, caplog):
    """As a sweep's forecast does, which needs no points."""
    source = own.parent / "outputs/own/source"
    config = read_config(source)
    photos = len(load_scene(config, source).cameras)
    without_a_photo(own)
    with pytest.raises(UserError, match="1 of its photos gone"):
        load_scene(config, source)
    config.scene.width = 32
    smaller = load_scene(config, source)
    assert len(smaller.cameras) == photos - 1 and {camera.width for camera in smaller.cameras} == {32}
    train = configured("train", ["--capture", str(own), *TINY_SCENE])
    assert len(load_scene(train).cameras) == photos - 1  # a training starts from none
    assert "changed" not in caplog.text
