"""Captures, images, weights and fields that are wrong, and things that break on the way: one line for each."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from checks import fails, files
from fakes import TINY_FIELD, TINY_SCENE, FixedGradient
from PIL import Image
from safetensors.torch import save_file

from cds3d.cli import _half_precision, run_command
from cds3d.editor import Editor
from cds3d.guidance import Prior
from cds3d.objectives.cds import CDS
from tensorf.renderable import load_field

# --- captures and images that are wrong


def test_unknown_scenes_list_those_there_are(tmp_path, capsys):
    assert "use one of: capture, cat, flower, mug" in fails(capsys, "train", "scene=garden")
    text = fails(capsys, "train", "scene.name=garden", *TINY_SCENE, *TINY_FIELD)
    assert "there are: cat, flower, mug" in text and "--capture DIR" in text
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


def one_photo_cropped(folder):
    Image.open(folder / "images" / "view003.jpg").resize((32, 12)).save(folder / "images" / "view003.jpg")


def one_photo_unreadable(folder):
    path = folder / "images" / "view003.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_capture, ["is no capture", "poses_bounds.npy", "transforms.json"]),
        (poses_with_nan, ["poses_bounds.npy", "row 2", "NaN"]),
        (one_photo_less, ["6 rows", "5 photos"]),
        (one_photo_cropped, ["view003.jpg is 32x12", "another aspect"]),
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
    assert "edit=field" in text and "--image" in text
    assert files(tmp_path) == []


def test_a_scenes_preset_does_not_fit_an_image(tmp_path, capsys, image_options):
    assert "edit=latent or edit=pixels" in fails(capsys, "edit", *image_options, "edit=field")
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
    assert "fps=inf has to be" in fails(capsys, "render", trained, "fps=inf")
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
    fake = FixedGradient(0.1, bad_from=1)
    monkeypatch.setattr(CDS, "gradient", lambda self, *args: fake.gradient(*args))
    text = fails(capsys, "edit", *edit_options, "save_every=1")
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
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_out_of_memory(tmp_path, capsys, edit_options, trained, monkeypatch, error):
    monkeypatch.setattr(Editor, "step", raises(error))
    text = fails(capsys, "edit", *edit_options, "output=run")
    assert "out of memory" in text and "edit.width" in text
    resumed, anew = text.split("; or ")
    assert "guidance.dtype=bf16" in resumed and "resume=true" in resumed  # runs.py lets a type change
    assert "guidance.dtype" not in anew and anew.endswith("with overwrite=true")
    assert_unfinished(tmp_path / "run")


def test_a_model_that_finds_no_memory_is_not_called_wrong(tmp_path, capsys, edit_options, trained, monkeypatch):
    monkeypatch.setattr(
        Prior, "ask", raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    )
    assert "error: out of memory" in fails(capsys, "edit", *edit_options, "output=run")


@pytest.mark.parametrize("capability, dtype", [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_a_gpu_without_bf16_is_not_told_to_use_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for device in ("auto", "cuda:1"):
        assert _half_precision({"device": device}) == dtype
    assert _half_precision({"device": "cpu"}) == "bf16"


def test_bugs_are_not_hidden(edit_options, trained, monkeypatch):
    monkeypatch.setattr(Editor, "step", raises(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        run_command("edit", edit_options)


def test_each_command_names_its_own_options_where_memory_is_missing(trained, capsys, monkeypatch):
    monkeypatch.setattr("cds3d.commands.render.render_command", raises(MemoryError()))
    text = fails(capsys, "render", trained)
    assert text.endswith("give the same command again; or lower width=") and "edit.width" not in text
    assert "guidance.dtype" not in text and "overwrite" not in text


def test_missing_memory_is_no_damaged_field(trained, monkeypatch):
    monkeypatch.setattr("tensorf.checkpoint._build", raises(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_field(trained / "field.safetensors")
