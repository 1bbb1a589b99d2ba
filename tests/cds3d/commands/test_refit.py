"""`edit.py --views`: a field refitted to edited pictures; with the true edits as pictures it becomes the true edit."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from checks import fails, stops_at

from cds3d.cli import run_command
from cds3d.commands import refit as refit_module
from cds3d.commands.refit import RefitConfig, changed_mask, with_pictures
from cds3d.options import build, load_config
from cds3d.pocket.world.capture import WorldCapture
from tensorf.captures import load_capture
from tensorf.train import Trainer

PROMPTS = ["--src", "a yellow flower", "--tgt", "a red flower"]
SHORT = ["refit.iterations=60", "refit.lr_grid=0.05", "refit.lr_network=0.01", "edit.width=48"]


def refit_config(**changes):
    return RefitConfig(**{**vars(build(RefitConfig, load_config("edit", []).refit)), **changes})


@pytest.fixture
def true_edits(tmp_path, capture_folder):
    """The six photos after the true edit, a red flower, a little smaller than they are."""
    world, folder = WorldCapture.read(capture_folder), tmp_path / "red"
    folder.mkdir()
    for name in world.cameras:
        iio.imwrite(folder / f"{name}.png", world.view(name, world.attributes.edited(color="red"), 56, 42).image)
    return folder


def test_a_field_becomes_what_the_pictures_show(tmp_path, trained, train_options, true_edits):
    options = [*PROMPTS, *train_options, "--views", str(true_edits), *SHORT]
    assert run_command("edit", options) == 0
    run = tmp_path / "outputs" / "daisies" / "a-red-flower-views"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["edit_gain_db"] > 3 and metrics["pictures"] == 5  # of six views one is held out
    for name in ("field.safetensors", "video.mp4", "comparison.mp4", "views/00.png", "config.yaml"):
        assert (run / name).exists()


def test_a_refit_is_what_its_options_say(trained, train_options, true_edits, monkeypatch):
    built = []

    class Recorded(Trainer):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            built.append((self, [g["lr"] for g in self.optimizer.param_groups]))

    monkeypatch.setattr(refit_module, "Trainer", Recorded)
    options = ["refit.iterations=2", "refit.lr_grid=0.03", "refit.lr_network=0.004", "video_frames=0", "edit.width=48"]
    options += ["field.exposure=0.01", "field.view_noise=0.1"]
    assert run_command("edit", [*train_options, "--views", str(true_edits), *options]) == 0
    ((trainer, rates),) = built
    assert rates == [0.03, 0.03, 0.004] and trainer.config.iterations == 2
    assert trainer.config.sightings == trainer.config.exposure == trainer.config.view_noise == 0


def test_prompts_are_not_needed(tmp_path, trained, train_options, true_edits):
    options = [*train_options, "--views", str(true_edits), *SHORT, "refit.iterations=2", "video_frames=0"]
    assert run_command("edit", options) == 0
    metrics = json.loads((tmp_path / "outputs" / "daisies" / "red-views" / "metrics.json").read_text())
    assert "psnr_to_source_db" in metrics and "edit_gain_db" not in metrics


def test_a_resumed_refit_is_the_unbroken_one(tmp_path, trained, train_options, true_edits, monkeypatch):
    options = [*train_options, "--views", str(true_edits), *SHORT, "refit.iterations=6", "video_frames=0"]
    assert run_command("edit", [*options, "output=whole"]) == 0
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 2)
        assert run_command("edit", [*options, "output=halves"]) == 130
    assert run_command("edit", [*options, "output=halves", "resume=true"]) == 0
    whole, halves = (tmp_path / name / "field.safetensors" for name in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()


def test_only_what_was_edited_is_taken_from_the_pictures(capture_folder, true_edits):
    capture = load_capture(capture_folder, width=64)
    edited = with_pictures(capture, true_edits, refit_config())
    assert edited.train == capture.train and edited.test == capture.test
    i = capture.train[0]
    same = (edited.images[i] == capture.images[i]).all(-1)
    assert 0.3 < same.float().mean() < 0.99  # the garden is the photo's
    whole = with_pictures(capture, true_edits, refit_config(mask_threshold=0.0))
    assert (whole.images[i] == capture.images[i]).all(-1).float().mean() < 0.3
    assert torch.equal(edited.images[capture.test[0]], capture.images[capture.test[0]])


def test_a_mask_by_hand():
    photo = torch.zeros(30, 60, 3, dtype=torch.uint8)
    picture = photo.clone()
    picture[10:20, 20:40, 1] = 200  # one channel is enough
    picture[0, 0] = 10  # less than the threshold
    mask = changed_mask(picture, photo, refit_config(blur=0.0, margin=2 / 60))
    expected = torch.zeros(30, 60, dtype=torch.bool)
    expected[8:22, 18:42] = True
    assert torch.equal(mask, expected)


def test_some_of_the_views_are_enough(capture_folder, true_edits):
    capture = load_capture(capture_folder, width=64)
    for k in (0, 1, 2):
        (true_edits / f"view{k:03d}.png").unlink()
    edited = with_pictures(capture, true_edits, refit_config())
    assert edited.train == [i for i in capture.train if i >= 3]


def test_surfaces_may_appear_near_those_that_there_are(trained, capture_folder, train_options):
    from tensorf.renderable import load_field

    source = load_field(trained / "field.safetensors")
    source.occupancy = torch.zeros(10, 20, 20, dtype=torch.bool)
    source.occupancy[5, 10, 10] = True
    trainer = Trainer.__new__(Trainer)
    trainer.field = source
    trainer.open_occupancy(0.1)  # two of twenty cells
    expected = torch.zeros_like(source.occupancy)
    expected[3:8, 8:13, 8:13] = True
    assert torch.equal(source.occupancy, expected)


def test_wrong_pictures_are_told_before_anything_is_written(tmp_path, trained, train_options, true_edits, capsys):
    told = {"nowhere": "nowhere: no such folder"}
    (tmp_path / "empty").mkdir()
    told["empty"] = "no pictures"
    strange = tmp_path / "strange"
    strange.mkdir()
    iio.imwrite(strange / "holiday.png", np.zeros((48, 64, 3), np.uint8))
    told["strange"] = "the capture has no photo holiday"
    square = tmp_path / "square"
    square.mkdir()
    iio.imwrite(square / "view001.png", np.zeros((50, 50, 3), np.uint8))
    told["square"] = "view001.png is 50x50"
    for folder, text in told.items():
        assert text in fails(capsys, "edit", *train_options, "--views", folder, "output=run")
    both = ["--image", str(square / "view001.png"), "--views", "square"]
    assert "either --image or --views" in fails(capsys, "edit", *train_options, *both)
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    iio.imwrite(held_out / "view000.png", np.zeros((48, 64, 3), np.uint8))
    given = ["--views", held_out, "output=run"]
    told = "has no picture of a training view, such as view001.jpg"  # view000 is held out
    assert told in fails(capsys, "edit", *train_options, *given)
    for option in ("baseline=sdedit", "edit=latent"):
        text = fails(capsys, "edit", *train_options, "--views", "square", option)
        assert option.split("=")[0] in text and "image" in text
    for option in ("objective=sds", "guidance.scale=3", "edit=shape", "edit.iterations=9", "zoom=2", "carve.grow=0.1"):
        text = fails(capsys, "edit", *train_options, "--views", "square", option)
        assert f"{option.split('=')[0].split('.')[0]}= is not used with --views" in text
    assert "give --src and --tgt too" in fails(capsys, "edit", *train_options, "--views", "square", "clip=model")
    wrong = ["--views", "square", "refit.grow=2", "output=run"]
    assert "refit.grow=2" in fails(capsys, "edit", *train_options, *wrong)
    assert not (tmp_path / "run").exists()


def test_a_refit_does_not_overwrite_its_source(tmp_path, trained, train_options, true_edits, capsys):
    before = (trained / "field.safetensors").read_bytes()
    given = ["--views", true_edits, f"output={trained}", "overwrite=true", *SHORT]
    assert "a field that this edit starts from" in fails(capsys, "edit", *train_options, *given)
    assert (trained / "field.safetensors").read_bytes() == before


@pytest.mark.parametrize("option", ["refit.lr_grid=inf", "refit.lr_network=0"])
def test_rates_are_numbers_above_0(tmp_path, trained, train_options, true_edits, capsys, option):
    assert f"{option} has to be a number above 0".replace("=0 ", "=0.0 ") in fails(
        capsys, "edit", *train_options, "--views", true_edits, option
    )


def test_a_folder_without_pictures_is_told_before_the_source_is_trained(tmp_path, train_options, capsys):
    assert "no such folder" in fails(capsys, "edit", *train_options, "--views", "nowhere")
    assert not (tmp_path / "outputs").exists()
