"""The commands from end to end on a tiny capture, and one line for everything that can go wrong."""

import errno
import json
import os
import shutil

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from fakes import TINY_FIELD, TINY_SCENE, FixedGradient
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from cds3d.cli import main, run_command
from cds3d.editor import Editor
from cds3d.objectives.objective import Objective
from cds3d.options import data_folder, groups
from tensorf.train import Trainer


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture()
def train_options(capture_folder):
    return ["--capture", str(capture_folder), *TINY_SCENE, *TINY_FIELD]


@pytest.fixture()
def edit_options(train_options, tiny_folder):
    prompts = ["--src", "a yellow flower", "--tgt", "a red flower"]
    return [*prompts, *train_options, f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]


@pytest.fixture()
def trained(tmp_path, source_run):
    """The session's source field where an edit of the capture looks for it."""
    folder = tmp_path / "outputs" / "daisies" / "source"
    shutil.copytree(source_run, folder)
    return folder


@pytest.fixture()
def image_file(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "a flower.png"
    Image.fromarray(generator.integers(0, 255, (17, 23, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture()
def image_options(image_file, tiny_folder):
    prompts = ["--image", str(image_file), "--src", "a yellow flower", "--tgt", "a red flower"]
    return [*prompts, f"guidance.path={tiny_folder}", "edit.iterations=2", "threads=1"]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fails(capsys, command, *options, code=1):
    """Run, and return the one `error:` line that it has to end in."""
    capsys.readouterr()
    assert run_command(command, [str(o) for o in options]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert sum(line.startswith("error:") for line in lines) == 1, err
    assert lines[-1].startswith("error:") and "Traceback" not in err
    assert "error:" not in out
    return lines[-1]


# --- train, edit, render


def test_train_writes_the_run_folder(tmp_path, capture_folder):
    options = ["scene=flower", f"scene.root={capture_folder}", "scene.name=daisies", *TINY_SCENE, *TINY_FIELD]
    assert run_command("train", options) == 0
    run = tmp_path / "outputs" / "daisies" / "source"
    there = files(run)
    for name in ("config.yaml", "field.safetensors", "metrics.json", "video.mp4", "state/state.pt", "views/00.png"):
        assert name in there
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
    assert run_command("edit", [*edit_options, "edit=gentle", "objective=sds", "video_frames=0"]) == 0
    run = tmp_path / "outputs" / "daisies" / "a-red-flower-sds-gentle"
    assert (run / "metrics.json").exists() and not (run / "video.mp4").exists()


def test_render(trained, tmp_path):
    assert run_command("render", [str(trained), "frames=3", "threads=1", "width=33", "depth=true"]) == 0
    # 33 pixels wide is 24.75 high: 33x25, padded to even numbers
    assert iio.imread(trained / "path.mp4", plugin="FFMPEG").shape == (3, 26, 34, 3)
    assert iio.imread(trained / "path_depth.mp4", plugin="FFMPEG").shape == (3, 26, 34, 3)
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
    assert edited.shape == (16, 16, 3)  # 17 * 16 / 23 = 11.8 rows, but 16 at least
    assert json.loads((run / "metrics.json").read_text())["psnr_to_source_db"] < 60  # something was edited


def test_render_of_an_image_edit_is_refused(tmp_path, image_options, capsys):
    assert run_command("edit", [*image_options, f"output={tmp_path}/run"]) == 0
    assert "edit of an image" in fails(capsys, "render", tmp_path / "run")


# --- resume


def stops_at(monkeypatch, kind, iteration):
    step = kind.step

    def interrupted(self):
        if self.iteration == iteration:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(kind, "step", interrupted)


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


def test_resumed_edit_is_byte_for_byte_the_unbroken_one(tmp_path, edit_options, trained, monkeypatch, capsys):
    edit_options = [*edit_options, "edit.iterations=4", "save_every=2", "video_frames=0"]
    assert run_command("edit", [*edit_options, "output=unbroken"]) == 0
    with monkeypatch.context() as patch:
        stops_at(patch, Editor, 3)
        assert run_command("edit", [*edit_options, "output=broken"]) == 130
    err = capsys.readouterr().err
    assert "iteration 3" in err and "resume=true" in err
    assert files(tmp_path / "broken" / "state") == ["state.pt"] and not (tmp_path / "broken/metrics.json").exists()
    assert run_command("edit", [*edit_options, "output=broken", "resume=true"]) == 0
    fields = [(tmp_path / name / "field.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert fields[0] == fields[1] != (trained / "field.safetensors").read_bytes()
    assert json.loads((tmp_path / "broken" / "metrics.json").read_text())["iterations"] == 4


def test_a_broken_source_training_is_taken_up_by_the_edit(tmp_path, edit_options, source_run, monkeypatch):
    with monkeypatch.context() as patch:
        stops_at(patch, Trainer, 5)
        assert run_command("edit", edit_options) == 130
    assert not (tmp_path / "outputs" / "daisies" / "a-red-flower").exists()
    assert run_command("edit", [*edit_options, "seed=5"]) == 1  # begun with another seed
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


# --- options that are wrong: nothing is written


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("edit.iteration=5", ["unknown option edit.iteration", "--help"]),
        ("nonsense=1", ["unknown option nonsense"]),
        ("objective=csd", ["objective=csd", "cds, dds, sds"]),
        ("guidance=sd3", ["guidance=sd3", "pocket, sd14, sd15, sd21"]),
        ("edit=fast", ["edit=fast", "gentle, latent, pixels, published"]),
        ("edit.iterations=abc", ["edit.iterations=abc"]),
        ("edit.iterations=1.5", ["iterations=1.5", "whole number"]),
        ("edit.iterations=-1", ["edit.iterations=-1"]),
        ("edit.iterations=0", ["edit.iterations=0"]),
        ("edit.lr=-0.1", ["edit.lr=-0.1"]),
        ("edit.lr=nan", ["edit.lr=nan"]),
        ("edit.density_lr=-1", ["edit.density_lr=-1"]),
        ("edit.network_lr=fast", ["edit.network_lr=fast"]),
        ("edit.width=-5", ["edit.width=-5"]),
        ("edit.width=wide", ["edit.width=wide"]),
        ("edit.optimizer=lion", ["edit.optimizer=lion", "adam, sgd"]),
        ("guidance.scale=-7", ["guidance.scale=-7"]),
        ("guidance.dtype=fp8", ["guidance.dtype=fp8", "fp32, bf16, fp16"]),
        ("objective.weight=-3", ["weight=-3"]),
        ("objective.features=mid", ["mid", "self, cross or score"]),
        ("objective.patch_sizes=[1,a]", ["patch_sizes=a"]),
        ("objective.t_max=1000", ["objective.t_min..t_max", "0..999"]),
        ("scene.width=abc", ["scene.width=abc"]),
        ("scene.width=-1", ["scene.width=-1"]),
        ("scene.space=cube", ["space=cube", "auto, ndc or box"]),
        ("scene.test_every=-2", ["test_every=-2"]),
        ("video_frames=-1", ["video_frames=-1"]),
        ("video_frames=1.5", ["video_frames=1.5"]),
        ("save_every=0", ["save_every=0"]),
        ("seed=abc", ["seed=abc"]),
        ("threads=0", ["threads=0"]),
        ("device=tpu", ["device=tpu", "device=cpu"]),
        ("device=null", ["device=None", "device=cpu"]),
        ("resume=no", ["resume=no", "true or false"]),
        ("overwrite=maybe", ["overwrite=maybe", "true or false"]),
        ("edit.lr=[", ["cannot read the options"]),
        ("red", ["'red'", "key=value"]),
        ("scene=flower", ["--capture", "scene="]),
    ],
)
def test_wrong_option_of_an_edit(tmp_path, capsys, edit_options, trained, option, said):
    before = files(tmp_path)
    text = fails(capsys, "edit", *edit_options, option)
    assert all(part in text for part in said), text
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("field.batch=-1", ["field.batch=-1"]),
        ("field.iterations=many", ["field.iterations=many"]),
        ("field.iterations=2.5", ["iterations=2.5", "whole number"]),
        ("field.decomposition=tucker", ["field.decomposition=tucker", "vm or cp"]),
        ("field.decoder=siren", ["field.decoder=siren", "mlp or tcnn"]),
        ("field=big", ["field=big", "cp, default"]),
        ("edit.lr=1", ["unknown option edit.lr", "train"]),
    ],
)
def test_wrong_option_of_a_training(tmp_path, capsys, train_options, option, said):
    text = fails(capsys, "train", *train_options, option)
    assert all(part in text for part in said), text
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["--src", "a cat", "--tgt", ""], "--tgt is empty"),
        (["--src", "a cat", "--tgt", "  "], "--tgt is empty"),
        (["--src", "a cat"], "--tgt is empty"),
        (["--src", "a Cat", "--tgt", "A cat "], "nothing to edit"),
        (["--tgt", "a pig"], "--src is missing"),
    ],
)
def test_unusable_prompts(tmp_path, capsys, edit_options, prompts, said):
    assert said in fails(capsys, "edit", *prompts, *edit_options[4:])
    assert files(tmp_path) == []


def test_overwriting_waits_until_the_options_are_right(trained, train_options, capsys):
    before = files(trained)
    fails(capsys, "train", *train_options, "overwrite=true", "field.lr_network=high")
    assert files(trained) == before


def test_no_gpu(capsys, edit_options, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    text = fails(capsys, "edit", *edit_options, "device=cuda")
    assert "device=cuda" in text and "device=cpu" in text
    assert files(tmp_path) == []


# --- captures and images that are wrong


def test_unknown_scenes_list_those_there_are(tmp_path, capsys):
    assert "use one of: capture, flower" in fails(capsys, "train", "scene=garden")
    text = fails(capsys, "train", "scene.name=garden", *TINY_SCENE, *TINY_FIELD)
    assert "there are: flower" in text and "--capture DIR" in text
    assert files(tmp_path) == []


def no_capture(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def poses_with_nan(folder):
    rows = np.load(folder / "poses_bounds.npy")
    rows[2, 3] = np.nan
    np.save(folder / "poses_bounds.npy", rows)


def one_photo_less(folder):
    (folder / "images" / "view003.jpg").unlink()


def one_photo_smaller(folder):
    Image.open(folder / "images" / "view003.jpg").resize((32, 24)).save(folder / "images" / "view003.jpg")


def one_photo_unreadable(folder):
    path = folder / "images" / "view003.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_capture, ["is no capture", "poses_bounds.npy", "transforms.json"]),
        (poses_with_nan, ["poses_bounds.npy", "row 2", "NaN"]),
        (one_photo_less, ["6 rows", "5 photos"]),
        (one_photo_smaller, ["differ in size", "view003.jpg", "32x24"]),
        (one_photo_unreadable, ["view003.jpg", "cannot be read"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "edit"])
def test_damaged_captures(tmp_path, capsys, capture_folder, edit_options, damage, said, command):
    shutil.copytree(capture_folder, tmp_path / "daisies")
    damage(tmp_path / "daisies")
    options = [*TINY_SCENE, *TINY_FIELD] if command == "train" else edit_options
    text = fails(capsys, command, *options, "--capture", tmp_path / "daisies")
    assert all(part in text for part in said), text
    assert not (tmp_path / "outputs").exists()


def test_missing_capture(tmp_path, capsys):
    assert "no such folder" in fails(capsys, "train", "--capture", tmp_path / "none")
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [None, b"no image", "small"])
def test_images_that_cannot_be_edited(tmp_path, capsys, image_options, image_file, content):
    if content is None:
        image_file.unlink()
    elif content == "small":
        Image.new("RGB", (30, 9)).save(image_file)
    else:
        image_file.write_bytes(content)
    assert str(image_file) in fails(capsys, "edit", *image_options)
    assert not (tmp_path / "outputs").exists()


def test_an_images_preset_does_not_fit_a_scene(tmp_path, capsys, edit_options):
    options = [o for o in edit_options if o != "edit.width=48"]
    text = fails(capsys, "edit", *options, "edit=latent")
    assert "edit=published" in text and "--image" in text
    assert files(tmp_path) == []


def test_a_scenes_preset_does_not_fit_an_image(tmp_path, capsys, image_options):
    assert "edit=latent or edit=pixels" in fails(capsys, "edit", *image_options, "edit=published")
    assert not (tmp_path / "outputs").exists()


# --- weights and fields that are wrong


def test_missing_weights_without_a_network(tmp_path, capsys, edit_options, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = [o for o in edit_options if not o.startswith("guidance.path")]
    text = fails(capsys, "edit", *options, "guidance=sd14")
    assert "CompVis/stable-diffusion-v1-4" in text and "guidance.path=FOLDER" in text
    assert not (tmp_path / "outputs").exists()  # told before the source field is trained


def torn_field(path):
    path.write_bytes(path.read_bytes()[:200])


def foreign_field(path):
    save_file({"weight": torch.zeros(2)}, path)


def empty_field(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn_field, foreign_field, empty_field])
def test_damaged_source_fields(tmp_path, capsys, trained, edit_options, damage):
    damage(trained / "field.safetensors")
    before = files(tmp_path)
    for command, options in [("edit", edit_options), ("render", [trained, "frames=1"])]:
        assert "outputs/daisies/source/field.safetensors" in fails(capsys, command, *options)
    assert files(tmp_path) == before


def test_render_errors(tmp_path, capsys, trained):
    before = files(tmp_path)
    assert "which run" in fails(capsys, "render")
    assert "is no run folder" in fails(capsys, "render", tmp_path / "none")
    assert "is no run folder" in fails(capsys, "render", tmp_path)
    assert "spiral, orbit, interpolate" in fails(capsys, "render", trained, "path=unknown")
    assert "frames=-2" in fails(capsys, "render", trained, "frames=-2")
    assert "fps=0" in fails(capsys, "render", trained, "fps=0")
    assert ".mp4" in fails(capsys, "render", trained, "output=video.gif")
    assert "width=3 " in fails(capsys, "render", trained, "width=3")
    assert files(tmp_path) == before
    (tmp_path / "config.yaml").write_text("database: {port: 1}\n")
    assert "another program's" in fails(capsys, "render", tmp_path)


# --- things that break on the way


def assert_unfinished(run):
    there = files(run)
    assert "metrics.json" not in there and "field.safetensors" not in there
    assert not any(".part" in name or name.rsplit("/", 1)[-1].startswith(".") for name in there)


def test_nan_on_the_way(tmp_path, capsys, edit_options, trained, monkeypatch):
    fake = FixedGradient(0.1, at=1)
    monkeypatch.setattr(Objective, "gradient", lambda self, *args: fake.gradient(*args))
    text = fails(capsys, "edit", *edit_options)
    assert "iteration 1" in text and "edit.lr" in text and "guidance.dtype=fp32" in text
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    assert_unfinished(run)
    state = torch.load(run / "state" / "state.pt", weights_only=True)
    assert state["iteration"] == 1 and all(torch.isfinite(p).all() for p in state["parameters"])


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize("command", ["train", "edit"])
def test_disk_full_at_a_state(tmp_path, capsys, train_options, edit_options, trained, monkeypatch, command):
    options = [*(train_options if command == "train" else edit_options), "output=run", "save_every=1"]
    monkeypatch.setattr(torch, "save", raises(OSError(errno.ENOSPC, "No space left on device")))
    text = fails(capsys, command, *options)
    assert "disk is full" in text and "resume=true" in text
    assert_unfinished(tmp_path / "run")


def test_disk_full_at_the_start(tmp_path, capsys, edit_options, trained, monkeypatch):
    monkeypatch.setattr(os, "replace", raises(OSError(errno.ENOSPC, "No space left on device")))
    assert "disk is full" in fails(capsys, "edit", *edit_options, "output=run")
    assert files(tmp_path / "run") == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory(tmp_path, capsys, edit_options, trained, monkeypatch, error):
    monkeypatch.setattr(Editor, "step", raises(error))
    text = fails(capsys, "edit", *edit_options, "output=run")
    assert "out of memory" in text and "edit.width" in text and "guidance.dtype=bf16" in text
    assert_unfinished(tmp_path / "run")


def test_bugs_are_not_hidden(edit_options, trained, monkeypatch):
    monkeypatch.setattr(Editor, "step", raises(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        run_command("edit", edit_options)


# --- help


@pytest.mark.parametrize("command", ["train", "edit", "render"])
def test_help_shows_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(command, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    folder = data_folder("configs")
    config = OmegaConf.load(folder / f"{command}.yaml")
    for key, value in config.items():
        if key != "defaults":
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            assert f"{key}: {shown}" in text
    chosen = {k: v for entry in config.get("defaults", []) if entry != "_self_" for k, v in entry.items()}
    for group, default in chosen.items():
        assert group in text and all(name in text for name in groups()[group])
        for line in (folder / group / f"{default}.yaml").read_text().splitlines():
            assert line in text
    flags = {"train": ["--capture"], "edit": ["--tgt", "--src", "--image", "--capture"], "render": []}
    assert all(flag in text for flag in flags[command])


def test_every_option_has_a_comment():
    for path in data_folder("configs").glob("*.yaml"):
        lines = path.read_text().splitlines()
        for line in lines[lines.index("") + 1 :] if "" in lines else lines:
            if ":" in line and line.split(":")[0] not in ("seed", "frames", "fps"):
                assert "#" in line, f"{path.name}: {line}"


def test_main(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "edit", "render"))
    assert main(["paint"]) == 2
    out, err = capsys.readouterr()
    assert err == "error: 'paint' is no command; use one of: train, edit, render\n" and out == ""
    assert main(["--version"]) == 0
    assert "cds3d 0." in capsys.readouterr().out


def test_main_hands_on_to_the_commands(capsys):
    assert main(["render"]) == 1
    assert "which run" in capsys.readouterr().err
