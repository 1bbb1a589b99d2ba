"""The commands from end to end on a tiny capture: train, edit, render, images, resume."""

import json
import re
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from checks import fails, files, stops_at
from fakes import TINY_FIELD, TINY_SCENE
from omegaconf import OmegaConf
from safetensors import safe_open

from cds3d.by_pictures import PictureEdit
from cds3d.cli import run_command
from cds3d.editor import Editor
from cds3d.redraw import RedrawnShape
from cds3d.subjects.local import LocalPair
from tensorf.local import LocalField
from tensorf.renderable import load_field
from tensorf.train import Trainer

# --- train, edit, render


def test_train_writes_the_run_folder(tmp_path, capture_folder):
    options = ["scene=flower", f"scene.root={capture_folder}", "scene.name=daisies", *TINY_SCENE, *TINY_FIELD]
    assert run_command("train", options) == 0
    run = tmp_path / "outputs" / "daisies" / "source"
    there = files(run)
    for name in ("config.yaml", "field.safetensors", "metrics.json", "video.mp4", "views/00.png"):
        assert name in there
    assert not any(name.startswith("state/state") for name in there)  # nothing could go on from it
    assert any(name.startswith("logs/events") for name in there)
    assert not any(name.endswith(".part") or "/." in name for name in there)
    metrics = json.loads((run / "metrics.json").read_text())
    expected = {"psnr_db", "ssim", "seconds", "seconds_per_iteration", "peak_memory_mb", "iterations", "device"}
    assert expected <= metrics.keys() and metrics["iterations"] == 8 and metrics["held_out_views"] == 1
    config = OmegaConf.load(run / "config.yaml")
    assert config.scene.width == 64 and config.field.iterations == 8 and config.scene.root == str(capture_folder)
    assert iio.imread(run / "video.mp4", plugin="FFMPEG").shape == (2, 48, 64, 3)
    assert iio.imread(run / "views" / "00.png").shape == (48, 128, 3)  # the photo and the field side by side
    with safe_open(run / "field.safetensors", "pt") as file:
        header = json.loads(file.metadata()["field"])
    assert {"config", "resolution", "steps", "space"} <= header.keys()
    assert {"kind", "box", "near", "far", "reference"} <= header["space"].keys()


def test_an_edit_of_shape_leaves_a_field_that_renders(tmp_path, trained, edit_options, caplog, monkeypatch):
    pulled, backward = [], LocalPair.backward
    monkeypatch.setattr(LocalPair, "backward", lambda pair, g: (pulled.append(pair._clears), backward(pair, g))[1])
    options = [*edit_options, "edit=shape", "edit.iterations=4", "edit.volume.look=0.5"]
    assert run_command("edit", [*options, "edit.region.mask_threshold=0.3"]) == 0
    assert re.search(r"expecting a peak of .* region \d+", caplog.text)
    run = tmp_path / "outputs" / "daisies" / "a-red-flower-shape"
    assert {"edit_gain_db", "kept_psnr_db"} <= json.loads((run / "metrics.json").read_text()).keys()
    looks = torch.load(run / "state" / "state.pt", weights_only=True)["subject"]["masks"]
    assert sum(visits for _, visits, _ in looks.values()) == 2  # half of the steps
    assert pulled == [False, True]  # haze is cleared in the last quarter of all steps
    edited = load_field(run / "field.safetensors")
    assert isinstance(edited, LocalField) and 0 < edited.region.sum() < edited.region.numel()
    source = load_field(trained / "field.safetensors").state_dict()
    inside, outside = (
        {k.split(".", 1)[1]: v for k, v in edited.state_dict().items() if k.startswith(name)}
        for name in ("target", "source")
    )
    assert all(torch.equal(outside[k], v) for k, v in source.items())
    assert not all(torch.equal(inside[k], v) for k, v in source.items())
    assert run_command("render", [str(run), "frames=2", "width=48"]) == 0
    assert iio.imread(run / "spiral.mp4", plugin="FFMPEG").shape == (2, 36, 48, 3)


def assert_alike(field, other):
    """The same fields, bit for bit."""
    values = other.state_dict()
    assert all(torch.equal(values.pop(name), value) for name, value in field.state_dict().items()) and not values


def test_a_redrawn_edit_is_resumed_and_renders(tmp_path, trained, edit_options, monkeypatch, caplog):
    options = [*edit_options, "edit=redraw", "edit.iterations=4", "edit.volume.look=0.5", "edit.width=48"]
    options += ["edit.region.mask_threshold=0.3", "edit.redraw.views=3", "edit.redraw.steps=5", "edit.redraw.fits=2"]
    whole, broken = tmp_path / "outputs" / "daisies" / "a-red-flower-redraw", tmp_path / "broken"
    assert run_command("edit", [*options, "save_every=1"]) == 0
    figures = json.loads((whole / "metrics.json").read_text())
    assert figures["iterations"] == 4 + 3 + 5 and {"edit_gain_db", "kept_psnr_db"} <= figures.keys()
    with monkeypatch.context() as patch:
        stops_at(patch, RedrawnShape, 6)
        assert run_command("edit", [*options, "save_every=1", f"output={broken}"]) == 130
    assert run_command("edit", [*options, "save_every=1", f"output={broken}", "resume=true"]) == 0
    assert "resumed at iteration 6" in caplog.text
    ends = [load_field(run / "field.safetensors") for run in (whole, broken)]
    assert isinstance(ends[0], LocalField) and ends[0].region.any()
    assert_alike(*ends)
    assert run_command("render", [str(broken), "frames=2", "width=48"]) == 0


def test_what_the_messages_of_redrawing_tell_to_lower_can_be_lowered_on_resume(
    trained, tmp_path, edit_options, monkeypatch
):
    options = [*edit_options, "edit=redraw", "edit.iterations=3", "edit.width=48", "edit.region.mask_threshold=0.3"]
    options += ["edit.redraw.views=2", "edit.redraw.steps=5", "video_frames=0", f"output={tmp_path}/run"]
    with monkeypatch.context() as patch:
        stops_at(patch, RedrawnShape, 4)
        assert run_command("edit", options) == 130
    assert run_command("edit", [*options, "resume=true", "edit.redraw.lr=0.01", "guidance.scale=3"]) == 0
    told = json.dumps(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert "edit.redraw.lr" in told and "guidance.scale" in told


@pytest.mark.parametrize("wrong", ["edit.redraw.strength=0", "edit.redraw.views=0", "edit.redraw.steps=5000"])
def test_a_redrawn_edit_with_a_bad_option_is_one_line(wrong, trained, edit_options, capsys, tmp_path):
    assert wrong in fails(capsys, "edit", *edit_options, "edit=redraw", wrong)
    assert not (tmp_path / "outputs" / "daisies" / "a-red-flower-redraw").exists()


BY_PICTURES = ["edit=pictures", "edit.iterations=2", "edit.fit.iterations=3", "edit.region.mask_threshold=0.3"]


def test_an_edit_by_way_of_pictures_is_resumed_and_renders(tmp_path, trained, edit_options, monkeypatch, caplog):
    options = [*edit_options, *BY_PICTURES, "edit.width=48", "edit.fit.agreement=0.01", "save_every=1"]
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    assert run_command("edit", [*options, f"output={whole}"]) == 0
    steps = json.loads((whole / "metrics.json").read_text())["iterations"]
    assert steps == 2 * (5 * 2 + 3)  # two rounds over five training views
    assert {"edit_gain_db", "kept_psnr_db"} <= json.loads((whole / "metrics.json").read_text()).keys()
    with monkeypatch.context() as patch:
        stops_at(patch, PictureEdit, 20)
        assert run_command("edit", [*options, f"output={broken}"]) == 130
    assert not (broken / "metrics.json").exists()
    assert run_command("edit", [*options, f"output={broken}", "resume=true"]) == 0
    assert "resumed at iteration 20" in caplog.text
    ends = [load_field(run / "field.safetensors") for run in (whole, broken)]
    assert isinstance(ends[0], LocalField) and ends[0].region.any()
    assert_alike(*ends)
    assert run_command("render", [str(broken), "frames=2", "width=48"]) == 0


@pytest.mark.parametrize(
    "wrong, told",
    [
        ("edit.fit.rounds=0", "edit.fit.rounds=0"),
        ("edit.fit.agreement=2", "edit.fit.agreement=2"),
        ("edit.fit.iterations=1.5", "edit.fit.iterations=1.5"),
        ("edit.volume.grow=1", "edit.volume.grow"),
    ],
)
def test_an_edit_by_way_of_pictures_with_a_bad_option_is_one_line(wrong, told, trained, edit_options, capsys):
    assert told in fails(capsys, "edit", *edit_options, *BY_PICTURES, wrong)


def test_an_edit_of_shape_with_a_bad_region_is_one_line(trained, edit_options, capsys):
    told = fails(capsys, "edit", *edit_options, "edit=shape", "edit.volume.grow=-1")
    assert "edit.volume.grow=-1" in told


def test_edit_trains_the_source_that_is_missing_then_reuses_it(tmp_path, edit_options, monkeypatch, caplog):
    assert run_command("edit", edit_options) == 0
    scene = tmp_path / "outputs" / "daisies"
    assert "training the source field first" in caplog.text
    source = (scene / "source" / "field.safetensors").read_bytes()
    assert (scene / "source" / "metrics.json").exists()

    run = scene / "a-red-flower"
    there = files(run)
    for name in ("config.yaml", "field.safetensors", "metrics.json", "state/state.pt", "views/00.png"):
        assert name in there
    assert "video.mp4" in there and "comparison.mp4" in there and any(n.startswith("logs/events") for n in there)
    assert not any(name.endswith(".part") or "/." in name for name in there)
    assert iio.imread(run / "video.mp4", plugin="FFMPEG").shape == (2, 36, 48, 3)
    assert iio.imread(run / "comparison.mp4", plugin="FFMPEG").shape == (2, 36, 96, 3)
    assert iio.imread(run / "views" / "00.png").shape == (36, 96, 3)
    metrics = json.loads((run / "metrics.json").read_text())
    expected = {"seconds", "seconds_per_iteration", "peak_memory_mb", "iterations", "device"}
    assert expected | {"edit_gain_db", "kept_psnr_db", "edit_truth_psnr_db"} <= metrics.keys()
    assert metrics["iterations"] == 2
    assert all(isinstance(v, (int, float, str)) for v in metrics.values())  # flat
    assert (run / "field.safetensors").read_bytes() != source
    config = OmegaConf.load(run / "config.yaml")
    assert config.tgt == "a red flower" and config.edit.iterations == 2 and config.guidance.scale > 0

    def trains(*args):
        raise AssertionError("the source is trained again")

    caplog.clear()
    monkeypatch.setattr("cds3d.commands.edit.train_command", trains)
    assert run_command("edit", [*edit_options, "objective=dds"]) == 0
    assert (scene / "a-red-flower-dds" / "metrics.json").exists()
    assert (scene / "source" / "field.safetensors").read_bytes() == source
    assert "training the source" not in caplog.text


def test_presets_get_folders_of_their_own(tmp_path, edit_options, trained):
    assert run_command("edit", [*edit_options, "edit=published", "objective=sds", "video_frames=0"]) == 0
    run = tmp_path / "outputs" / "daisies" / "a-red-flower-sds-published"
    assert (run / "metrics.json").exists() and not (run / "video.mp4").exists()


def test_render(trained, tmp_path):
    assert run_command("render", [str(trained), "frames=3", "threads=1", "width=33", "depth=true"]) == 0
    # 33 pixels wide is 24.75 high: 33x25, and 34x26 in even numbers
    assert iio.imread(trained / "spiral.mp4", plugin="FFMPEG").shape == (3, 26, 34, 3)
    assert iio.imread(trained / "spiral_depth.mp4", plugin="FFMPEG").shape == (3, 26, 34, 3)
    options = ["frames=1", "threads=1", "path=interpolate", "width=32", f"output={tmp_path}/new/a.mp4"]
    assert run_command("render", [f"run={trained}", *options]) == 0
    assert iio.imread(tmp_path / "new" / "a.mp4", plugin="FFMPEG").shape == (1, 24, 32, 3)


def test_flags_and_options_in_any_order(tmp_path, edit_options, trained):
    flags, rest = edit_options[:4], edit_options[4:]
    options = [o for o in rest if "=" in o]
    mixed = [options[0], *flags[:2], *options[1:4], *rest[:2], *flags[2:], *options[4:], "video_frames=0"]
    assert run_command("edit", mixed) == 0
    assert (tmp_path / "outputs" / "daisies" / "a-red-flower" / "metrics.json").exists()


# --- images


def test_image_edit_of_the_latent(tmp_path, image_options):
    assert run_command("edit", image_options) == 0
    run = tmp_path / "outputs" / "images" / "a flower" / "a-red-flower"
    assert iio.imread(run / "edited.png").shape == (17, 23, 3)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["iterations"] == 2 and "seconds_per_iteration" in metrics
    config = OmegaConf.load(run / "config.yaml")
    assert config.edit.parameter == "latent" and config.edit.optimizer == "sgd"
    assert "state/state.pt" in files(run)


def test_image_edit_of_the_pixels(tmp_path, image_options):
    assert run_command("edit", [*image_options, "edit=pixels", "guidance.image_width=16"]) == 0
    run = tmp_path / "outputs" / "images" / "a flower" / "a-red-flower-pixels"
    edited = iio.imread(run / "edited.png")
    assert edited.shape == (16, 22, 3)  # 16 x 11.8 would be too low
    assert json.loads((run / "metrics.json").read_text())["psnr_to_source_db"] < 60  # something was edited


def test_render_of_an_image_edit_is_refused(tmp_path, image_options, capsys):
    assert run_command("edit", [*image_options, f"output={tmp_path}/run"]) == 0
    assert "edit of an image" in fails(capsys, "render", tmp_path / "run")


# --- resume


def test_resumed_training_is_byte_for_byte_the_unbroken_one(tmp_path, train_options, source_run, monkeypatch, capsys):
    run = tmp_path / "outputs" / "daisies" / "source"
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 5)
        assert run_command("train", train_options) == 130
    err = capsys.readouterr().err
    assert "iteration 5" in err and "resume=true" in err and "Traceback" not in err
    assert "state/state.pt" in files(run) and "metrics.json" not in files(run)
    assert "pass resume=true" in fails(capsys, "train", *train_options)
    assert "field.batch=64, not 32" in fails(capsys, "train", *train_options, "field.batch=32", "resume=true")
    assert run_command("train", [*train_options, "resume=true"]) == 0
    assert (run / "field.safetensors").read_bytes() == (source_run / "field.safetensors").read_bytes()


def test_a_finished_edit_goes_on_to_more_iterations(tmp_path, edit_options, trained, monkeypatch, capsys):
    options = [*edit_options, "output=edit", "video_frames=0"]
    run = tmp_path / "edit"

    def metrics():
        return json.loads((run / "metrics.json").read_text())

    assert run_command("edit", options) == 0
    assert metrics()["iterations"] == 2
    before = (run / "field.safetensors").read_bytes()
    assert "more edit.iterations" in fails(capsys, "edit", *options)
    assert "holds a finished run" in fails(capsys, "edit", *options, "resume=true")
    assert "holds a finished run" in fails(capsys, "edit", *options, "resume=true", "edit.iterations=1")
    wrong = fails(capsys, "edit", *options, "resume=true", "edit.iterations=5", "edit.optimizer=sgd")
    assert "edit.optimizer=adam, not sgd" in wrong
    assert (run / "field.safetensors").read_bytes() == before and metrics()["iterations"] == 2

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # stopped on its way, it is unfinished
        patch.setattr("cds3d.commands.edit.Editor.step", interrupted)
        assert run_command("edit", [*options, "resume=true", "edit.iterations=5"]) == 130
    assert not (run / "metrics.json").exists()
    assert run_command("edit", [*options, "resume=true", "edit.iterations=5"]) == 0
    assert metrics()["iterations"] == 5 and (run / "field.safetensors").read_bytes() != before


def test_tensorboard_has_figures_and_pictures(tmp_path, edit_options, trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_command("edit", [*edit_options, "output=edit", "video_frames=0", "edit.iterations=4"]) == 0
    events = EventAccumulator(str(tmp_path / "edit" / "logs"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"edit/t", "lr/color", "lr/network", "gradient_rms/color"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("lr/color")] == [1, 2, 3, 4]
    assert {"views/source_and_edit", "views/region", "views/depth"} <= set(tags["images"])
    picture = events.Images("views/source_and_edit")[0]
    assert (picture.width, picture.height) == (96, 36)


def test_tensorboard_has_pictures_of_an_images_edit(tmp_path, image_options):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_command("edit", [*image_options, "output=edit"]) == 0
    events = EventAccumulator(str(tmp_path / "edit" / "logs"), size_guidance={"images": 0})
    events.Reload()
    picture = events.Images("views/source_and_edit")[0]
    assert (picture.width, picture.height) == (46, 17)


def test_an_edit_that_goes_on_without_videos_leaves_no_old_ones(tmp_path, edit_options, trained):
    assert run_command("edit", [*edit_options, "output=edit"]) == 0
    assert (tmp_path / "edit" / "video.mp4").exists()
    more = ["resume=true", "edit.iterations=3", "video_frames=0"]
    assert run_command("edit", [*edit_options, "output=edit", *more]) == 0
    assert not list((tmp_path / "edit").glob("*.mp4"))


def test_resumed_edit_is_byte_for_byte_the_unbroken_one(tmp_path, edit_options, trained, monkeypatch, capsys):
    edit_options = [*edit_options, "edit.iterations=4", "save_every=2", "video_frames=0"]
    assert run_command("edit", [*edit_options, "output=unbroken"]) == 0
    with monkeypatch.context() as patch:
        stops_at(patch, Editor, 3)
        assert run_command("edit", [*edit_options, "output=broken"]) == 130
    err = capsys.readouterr().err
    assert "iteration 3" in err and "resume=true" in err
    assert (
        files(tmp_path / "broken" / "state") == ["prior.txt", "progress.json", "source.txt", "state.pt"]
        and not (tmp_path / "broken/metrics.json").exists()
    )
    assert run_command("edit", [*edit_options, "output=broken", "resume=true"]) == 0
    fields = [(tmp_path / name / "field.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert fields[0] == fields[1] != (trained / "field.safetensors").read_bytes()
    assert json.loads((tmp_path / "broken" / "metrics.json").read_text())["iterations"] == 4


def test_a_broken_source_training_is_taken_up_by_the_edit(tmp_path, edit_options, source_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 5)
        assert run_command("edit", edit_options) == 130
    assert not (tmp_path / "outputs" / "daisies" / "a-red-flower").exists()
    assert "begun with seed=0, not 5" in (text := fails(capsys, "edit", *edit_options, "seed=5"))
    assert "train_source.py" in text  # whose overwrite=true it is
    assert run_command("edit", edit_options) == 0
    source = tmp_path / "outputs" / "daisies" / "source" / "field.safetensors"
    assert source.read_bytes() == (source_run / "field.safetensors").read_bytes()


def test_ctrl_c_anywhere_else(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("cds3d.commands.train.train_command", interrupted)
    assert run_command("train", []) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_finished_run_is_not_overwritten(trained, train_options, capsys):
    before = {name: (trained / name).read_bytes() for name in files(trained)}
    text = fails(capsys, "train", *train_options)
    assert "outputs/daisies/source" in text and "overwrite=true" in text
    assert {name: (trained / name).read_bytes() for name in files(trained)} == before


def test_an_edit_goes_on_with_a_lower_guidance_scale(tmp_path, edit_options, trained, monkeypatch):
    """As the message about a gradient that is not finite advises."""
    with monkeypatch.context() as patch:
        stops_at(patch, Editor, 1)
        assert run_command("edit", edit_options) == 130
    assert run_command("edit", [*edit_options, "resume=true", "guidance.scale=3", "objective.weight=1"]) == 0
    config = OmegaConf.load(tmp_path / "outputs" / "daisies" / "a-red-flower" / "config.yaml")
    assert config.guidance.scale == config.objective.scale == 3


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path, edit_options, train_options, trained, capsys):
    """A running edit is not begun a second time, nor its source, which is still being trained, taken over."""
    import subprocess
    import sys

    root = str(Path(__file__).resolve().parents[3])  # where the packages are, if they are not installed
    hold = f"import sys; sys.path.insert(0, {root!r}); "
    hold += "import time; from pathlib import Path; from tensorf import locks; "
    hold += "locks.hold(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    (tmp_path / "edit").mkdir()
    for folder, command, options in (
        (tmp_path / "edit", "edit", [*edit_options, "output=edit"]),
        (trained, "train", [*train_options, "overwrite=true"]),
    ):
        other = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "1\n"
        before, config = files(folder), (trained / "config.yaml").read_bytes()
        assert f"in use by another process ({other.pid})" in fails(capsys, command, *options)
        assert files(folder) == before
        (trained / "metrics.json").unlink(missing_ok=True)
        if folder == trained:
            assert "in use by another process" in fails(capsys, "edit", *edit_options, "output=third")
            assert not (tmp_path / "third").exists()
        assert (trained / "config.yaml").read_bytes() == config
        other.kill()
        other.wait()
    assert run_command("train", [*train_options, "overwrite=true"]) == 0
