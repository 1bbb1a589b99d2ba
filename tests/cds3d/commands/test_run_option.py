"""`edit.py --run`: edits in sequence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

from cds3d.cli import run_command
from cds3d.commands.evaluation import edit_figures, held_out_views, known_truth
from cds3d.commands.history import source_of, take_over
from cds3d.options import load_config
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.renderable import load_field


@pytest.fixture()
def chain(tmp_path, edit_options, trained):
    """The options that `--run` does not bring along, after a first edit."""
    assert run_command("edit", [*edit_options, "video_frames=0", "edit.lr=0.1"]) == 0
    capture = edit_options.index("--capture")
    rest = edit_options[:capture] + edit_options[capture + 2 :]
    return [o for o in rest if not o.startswith(("scene.", "--", "a "))] + ["video_frames=0", "edit.lr=0.1"]


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_an_edited_field_is_edited_on(tmp_path, chain, capture_folder, caplog):
    scene = tmp_path / "outputs" / "daisies"
    first = scene / "a-red-flower"
    box = "box=-9,-9,0,0,9,99"
    assert run_command("edit", ["--run", str(first), "--tgt", "a red tulip", box, *chain]) == 0
    second = scene / "a-red-flower-then-a-red-tulip-box"
    told = metrics(second)
    assert told["history"] == [{"run": str(first), "src": "a yellow flower", "tgt": "a red flower"}]
    assert "history" not in metrics(first)
    config = load_config_of(second)
    assert config.src == "a red flower" and config.run == str(first) and config.capture == str(capture_folder)
    field, before = load_field(second / "field.safetensors"), load_field(first / "field.safetensors")
    x = torch.rand(500, 3) * 2 - 1
    outside = ~field.inside(x)
    torch.testing.assert_close(field.density(x)[outside], before.density(x)[outside])

    # Figures against the last field, and against the first, whose truth differs by both edits.
    assert told["first_psnr_to_source_db"] != told["psnr_to_source_db"]
    assert {"edit_gain_db", "kept_psnr_db", "first_edit_gain_db", "first_kept_psnr_db"} <= told.keys()
    assert told["first_edit_gain_db"] != told["edit_gain_db"]
    capture, source = load_capture(capture_folder, width=64), load_field(scene / "source" / "field.safetensors")
    views = held_out_views(source, load_field(second / "field.safetensors"), capture, 48)
    steps = [("a yellow flower", "a red flower"), ("a red flower", "a red tulip")]
    truth = known_truth(capture_folder, capture, source, views, steps, 0)
    assert told["first_kept_psnr_db"] == pytest.approx(edit_figures(source, views, truth)["kept_psnr_db"], abs=1e-3)
    renamed = replace(views, names=["img_000", *views.names[1:]])
    assert known_truth(capture_folder, capture, source, renamed, steps, 0) is None
    assert "has no camera for photo img_000" in caplog.text
    last = known_truth(capture_folder, capture, source, views, steps, 1)
    assert (truth.views[0].changed & ~last.views[0].changed).any()  # petals that were yellow, then red
    views = iio.imread(second / "views" / "00.png")
    assert views.shape == (36, 3 * 48, 3)  # the first source, the last field, the edit

    assert run_command("edit", ["--run", str(second), "--tgt", "a red rose", *chain]) == 0
    third = scene / "a-red-flower-then-a-red-tulip-box-then-a-red-rose"
    assert [step["tgt"] for step in metrics(third)["history"]] == ["a red flower", "a red tulip"]
    assert isinstance(load_field(third / "field.safetensors"), LocalField)  # all of it was edited
    changed = load_field(third / "field.safetensors").color(x, x) != field.color(x, x)
    assert changed.any(1)[outside].any() and changed.any(1)[~outside].any()


def load_config_of(run):
    from cds3d.runs import read_config

    return read_config(run)


def test_without_the_first_source_its_figures_are_left_out(tmp_path, chain, caplog):
    scene = tmp_path / "outputs" / "daisies"
    (scene / "source" / "field.safetensors").unlink()
    assert run_command("edit", ["--run", str(scene / "a-red-flower"), "--tgt", "a red tulip", *chain]) == 0
    told = metrics(scene / "a-red-flower-then-a-red-tulip")
    assert "edit_gain_db" in told and not any(key.startswith("first_") for key in told)
    assert "is gone" in caplog.text


@pytest.mark.parametrize(
    "options, told",
    [
        (["--run", "nowhere"], "nowhere is no run folder"),
        (["--run", "{run}", "--capture", "x"], "either --run or --capture"),
        (["--run", "{run}", "--image", "x"], "either --run or --image"),
        (["--run", "{run}", "--views", "x"], "either --run or --views"),
        (["--run", "{run}", "scene=cat"], "either --run or scene="),
        (["--run", "{run}", "--src", "a red tulip"], "nothing to edit"),
    ],
)
def test_what_is_wrong_is_one_line(options, told, tmp_path, chain, capsys):
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    given = [o.format(run=run) for o in options]
    assert run_command("edit", [*given, "--tgt", "a red tulip", *chain]) == 1
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_edit_does_not_overwrite_what_it_starts_from(tmp_path, chain, trained, capsys):
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    for folder in (run, trained, run / ".." / "a-red-flower"):
        options = [f"output={folder}", "overwrite=true", *chain]
        assert run_command("edit", ["--run", str(run), "--tgt", "a red tulip", *options]) == 1
        assert "a field that this edit starts from" in capsys.readouterr().err
    assert (run / "metrics.json").exists() and (trained / "metrics.json").exists()


def test_runs_that_lead_in_a_circle_are_followed_once(tmp_path, chain):
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    text = (run / "config.yaml").read_text()
    assert "run: null" in text
    (run / "config.yaml").write_text(text.replace("run: null", f"run: {run}"))
    config = load_config("edit", [])
    config.run = str(run)
    assert len(take_over(config).edits) == 1


def test_unfinished_runs_and_images_are_refused(tmp_path, chain, capsys):
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    (run / "metrics.json").unlink()
    assert run_command("edit", ["--run", str(run), "--tgt", "a red tulip", *chain]) == 1
    assert "did not finish" in capsys.readouterr().err
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("image: null", "image: x.png"))
    assert run_command("edit", ["--run", str(run), "--tgt", "a red tulip", *chain]) == 1
    assert "only fields" in capsys.readouterr().err


def test_a_source_can_be_edited_on_too(tmp_path, chain, trained):
    config = load_config("edit", [])
    config.run = str(trained)
    history = take_over(config)
    assert history.edits == () and history.folder == history.first == trained and config.capture is not None
    with pytest.raises(UserError, match="no run folder"):
        config.run = "nowhere"
        take_over(config)


def test_a_run_finds_the_source_beside_it(tmp_path, chain, monkeypatch, caplog):
    """From another folder too, and not another field that has the scene's name there."""
    scene = tmp_path / "outputs" / "daisies"
    assert run_command("edit", ["--run", str(scene / "a-red-flower"), "--tgt", "a red tulip", *chain]) == 0
    there = metrics(scene / "a-red-flower-then-a-red-tulip")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "outputs" / "daisies").mkdir(parents=True)
    shutil.copytree(scene / "a-red-flower", elsewhere / "outputs" / "daisies" / "source")  # another field
    monkeypatch.chdir(elsewhere)
    options = ["--run", str(scene / "a-red-flower"), "--tgt", "a red tulip", "output=again", *chain]
    assert run_command("edit", options) == 0
    again = metrics(elsewhere / "again")
    assert again["first_psnr_to_source_db"] == there["first_psnr_to_source_db"]
    assert "another field" not in caplog.text
    (scene / "source" / "field.safetensors").rename(scene / "gone")
    assert source_of(scene / "a-red-flower", load_config_of(scene / "a-red-flower")) == Path("outputs/daisies/source")
    assert "outputs/daisies/source is another field than" in caplog.text


def test_an_edit_whose_last_but_one_is_gone_is_edited_on(tmp_path, chain, caplog):
    scene = tmp_path / "outputs" / "daisies"
    first, second = scene / "a-red-flower", scene / "a-red-flower-then-a-red-tulip"
    assert run_command("edit", ["--run", str(first), "--tgt", "a red tulip", *chain]) == 0
    first.rename(scene / "renamed")
    assert run_command("edit", ["--run", str(second), "--tgt", "a red rose", "output=third", *chain]) == 0
    assert [step["tgt"] for step in metrics(tmp_path / "third")["history"]] == ["a red flower", "a red tulip"]
    assert f"{first} is gone" in caplog.text
