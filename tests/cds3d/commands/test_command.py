"""Commands as a program calls them, several in one process: a notebook, a loop."""

import copy
import importlib
import json
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from fakes import TINY_FIELD, TINY_SCENE
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from cds3d.cli import run_command
from cds3d.commands import driving
from cds3d.commands.command import command
from cds3d.commands.driving import Stopped
from cds3d.commands.edit import edit_command, views_maker
from cds3d.commands.images import read_image
from cds3d.commands.sweep import sweep_command
from cds3d.commands.train import field_options, train_command
from cds3d.objectives import OBJECTIVES
from cds3d.options import load_config
from cds3d.process_memory import peak_memory_mb, reset_peak_memory
from cds3d.runs import RunFolder
from tensorf import locks
from tensorf.errors import UserError

COMMANDS = ("train", "edit", "render", "view", "export", "sweep", "importing", "listing")


@pytest.fixture()
def of_image(image_file, tiny_folder):
    """An edit of an image, in the folder `run`."""
    tiny = ["edit=latent", "output=run", f"guidance.path={tiny_folder}", "guidance.image_width=null"]
    config = load_config("edit", [*tiny, "edit.iterations=2"])
    config.image, config.src, config.tgt = str(image_file), "a yellow flower", "a red flower"
    return config


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_works_on_a_copy(module):
    found = vars(importlib.import_module(f"cds3d.commands.{module}"))
    commands = [made for name, made in found.items() if name.endswith("_command") and made.__module__.endswith(module)]
    assert commands and all(hasattr(made, "__wrapped__") for made in commands)


def test_a_configuration_may_be_used_again(capture_folder, tiny_folder, trained):
    config = load_config("edit", ["scene=capture", *TINY_SCENE, *TINY_FIELD, "edit.iterations=2", "edit.width=48"])
    config.capture, config.guidance.path, config.tgt = str(capture_folder), str(tiny_folder), "a red flower"
    config.scene.prompt, config.video_frames = "a yellow flower", 0
    before = copy.deepcopy(config)
    run = edit_command(config)
    assert config == before and config.src is None
    assert OmegaConf.load(run / "config.yaml").src == "a yellow flower"


@pytest.mark.parametrize("kind", [UserError, KeyboardInterrupt, RuntimeError])
def test_a_command_that_breaks_off_lets_go_of_its_folder(of_image, monkeypatch, kind):
    def broken(*_, **__):
        assert Path("run", locks.NAME).exists()
        raise kind("now")

    monkeypatch.setattr("cds3d.commands.images.drive_editor", broken)
    with pytest.raises(kind, match="now"):
        edit_command(of_image)
    assert not Path("run", locks.NAME).exists() and not locks._held


def test_a_command_within_another_lets_go_of_its_own_folder_alone(tmp_path):
    config = OmegaConf.create(
        {"scene": {"name": "flower"}, "device": "cpu", "threads": None, "resume": False, "overwrite": False}
    )

    @command
    def inner_command(config):
        RunFolder(tmp_path / "inner", config).begin()

    @command
    def outer_command(config):
        RunFolder(tmp_path / "outer", config).begin()
        inner_command(config)
        assert (tmp_path / "outer" / locks.NAME).exists() and not (tmp_path / "inner" / locks.NAME).exists()

    outer_command(config)
    assert not (tmp_path / "outer" / locks.NAME).exists()


def test_a_sweep_that_breaks_off_lets_go_of_its_folder(monkeypatch):
    def broken(folder, *_):
        assert (folder / locks.NAME).exists()
        raise RuntimeError("now")

    for name, made in (("plan", lambda *_: []), ("works", lambda *_: []), ("Reporter", broken)):
        monkeypatch.setattr(f"cds3d.commands.sweep.{name}", made)
    with pytest.raises(RuntimeError, match="now"):
        sweep_command(load_config("sweep", ["output=sweep"]))
    assert Path("sweep").exists() and not Path("sweep", locks.NAME).exists()


def test_two_threads_do_not_edit_into_one_folder(of_image, monkeypatch):
    begun, over, drive = threading.Event(), threading.Event(), driving.drive
    first = []

    def slow(*arguments, **options):
        begun.set()
        assert over.wait(60)
        return drive(*arguments, **options)

    monkeypatch.setattr("cds3d.commands.images.drive", slow)
    thread = threading.Thread(target=lambda: first.append(edit_command(of_image)))
    thread.start()
    assert begun.wait(60)
    try:
        with pytest.raises(UserError, match="in use by another thread"):
            edit_command(of_image)
        assert Path("run", locks.NAME).exists()  # still the first one's
    finally:
        over.set()
        thread.join()
    assert first == [Path("run")] and Path("run", "metrics.json").exists()


def test_a_program_is_told_of_each_iteration_and_can_stop(of_image):
    """Also in a thread, where no Ctrl-C arrives."""
    of_image.edit.iterations, calls = 3, []
    whole = Path(edit_command(of_image), "edited.png").read_bytes()
    of_image.overwrite = True

    def on_step(done, of, figures):
        calls.append((done, of))
        assert figures and all(isinstance(value, (int, float)) for value in figures.values())
        return done == 2

    def stopped():
        with pytest.raises(Stopped, match="iteration 2.*resume=true"):
            edit_command(of_image, on_step)

    thread = threading.Thread(target=stopped)
    thread.start()
    thread.join()
    assert calls == [(1, 3), (2, 3)] and not Path("run", "metrics.json").exists()
    of_image.overwrite, of_image.resume = False, True
    edit_command(of_image, on_step=on_step)
    assert calls[2:] == [(3, 3)] and Path("run", "edited.png").read_bytes() == whole
    of_image.resume, of_image.overwrite = False, True
    edit_command(of_image)
    assert len(calls) == 3


def test_a_program_is_told_of_a_source_that_is_trained_first(capture_folder, tiny_folder):
    tiny = [*TINY_SCENE, *TINY_FIELD, "edit.iterations=2", "edit.width=48", f"guidance.path={tiny_folder}"]
    config, calls = load_config("edit", ["scene=capture", *tiny]), []
    config.capture, config.src, config.tgt = str(capture_folder), "a yellow flower", "a red flower"
    with pytest.raises(Stopped):
        edit_command(config, lambda *told: calls.append(told) or told[:2] == (1, 2))
    assert [told[:2] for told in calls] == [*((i, 8) for i in range(1, 9)), (1, 2)]
    assert calls[0][2].keys() == {"psnr_db"} and len(calls[-1][2]) > 1


def test_threads_are_those_of_the_command_while_it_runs(of_image, monkeypatch):
    seen = []
    monkeypatch.setattr("cds3d.commands.edit.edit_image", lambda config: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    of_image.threads = before + 1
    edit_command(of_image)
    assert seen == [before + 1] and torch.get_num_threads() == before
    of_image.threads = None  # as many as the program has
    edit_command(of_image)
    assert seen[1] == before
    of_image.threads = 0
    with pytest.raises(UserError, match="threads=0 has to be a whole number above 0"):
        edit_command(of_image)


def test_a_path_may_be_assigned(of_image, image_file):
    of_image.image, of_image.output = image_file, Path("run")
    run = edit_command(of_image)
    assert yaml.safe_load((run / "config.yaml").read_text())["image"] == str(image_file)


@pytest.mark.parametrize("text", ["a ${big} pig", "???"])
def test_omegaconfs_signs_are_told(of_image, text):
    of_image.tgt = text
    with pytest.raises(UserError, match="tgt= cannot be read.*leave out"):
        edit_command(of_image)
    assert not Path("run").exists()


def test_references_that_lead_nowhere_are_told():
    config = load_config("train", [])
    config.seed = "${nothing}"
    with pytest.raises(UserError, match="cannot read the options: Interpolation key 'nothing' not found"):
        train_command(config)


def test_an_objective_of_the_programs_own(of_image, monkeypatch):
    """docs/extending.md: in the table, without a file in configs/."""

    @dataclass(frozen=True)
    class Mine(OBJECTIVES["dds"]):
        pull: float = 0.5

        def gradient(self, prior, pair, prompts, draw):
            made = super().gradient(prior, pair, prompts, draw)
            return replace(made, figures={**made.figures, "pull": self.pull})

    monkeypatch.setitem(OBJECTIVES, "mine", Mine)
    seen = []
    monkeypatch.setattr("cds3d.commands.images.drive_editor", lambda editor, *_: seen.append(editor.step()) or 1.0)
    of_image.objective = load_config("edit", ["objective=dds", "objective.kind=mine"]).objective
    edit_command(of_image)
    assert seen[0]["pull"] == 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["edit=pictures"], "edit=pictures draws pictures and fits the field to them"),
        (["edit=latent"], "a scene is edited with edit=field"),
        (["edit=shape", "edit.iterations=1"], "leaves no iteration to edit in"),
        (["edit.color_lr=-1"], "edit.color_lr=-1.0 has to be 0 or more"),
    ],
)
def test_views_that_no_configuration_describes(options, told):
    with pytest.raises(UserError, match=told):
        views_maker(load_config("edit", options))


def test_only_a_captures_space_decides_on_fields():
    with pytest.raises(UserError, match="space=auto is none of ndc, box, unbounded"):
        field_options(load_config("train", []), "auto")


def test_the_peak_is_that_of_the_edit(of_image):
    big = torch.ones(2**27)  # 512 MB
    before = peak_memory_mb()
    del big
    reset_peak_memory()
    if peak_memory_mb() > before - 400:
        pytest.skip("the system keeps the peak")
    big = torch.ones(2**27)
    del big
    run = edit_command(of_image)
    assert json.loads((run / "metrics.json").read_text())["peak_memory_mb"] < before - 400


@pytest.mark.parametrize("edit", ["field", "shape"])
def test_ctrl_c_after_the_last_iteration_tells_what_is_kept(capture_folder, tiny_folder, trained, monkeypatch, edit):
    """And it is true: a resume makes the rest, as an edit that nobody stops has it."""
    tiny = [*TINY_SCENE, *TINY_FIELD, "edit.iterations=3", "edit.width=48", "video_frames=0", f"edit={edit}"]
    config = load_config("edit", ["scene=capture", *tiny, f"guidance.path={tiny_folder}", "output=whole"])
    config.capture, config.src, config.tgt = capture_folder, "a yellow flower", "a red flower"
    whole = edit_command(config)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    config.output = "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="is kept: .* with resume=true makes"):
        patch.setattr("cds3d.commands.edit.evaluate_edit", stopped)
        edit_command(config)
    config.resume = True
    monkeypatch.setattr("cds3d.editor.Editor.step", stopped)  # no iteration is done again
    run = edit_command(config)
    assert (run / "field.safetensors").read_bytes() == (whole / "field.safetensors").read_bytes()
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (run, whole)]
    assert figures[0]["psnr_to_source_db"] == figures[1]["psnr_to_source_db"]


def test_an_error_ends_the_line_of_the_bar(source_run, monkeypatch, capsys):
    frames = []

    def full(path, colors, fps):
        frames.append(next(colors))  # the bar stands after it
        raise OSError("no room")

    monkeypatch.setattr("cds3d.commands.render.write_video", full)
    assert run_command("render", [str(source_run), "frames=4"]) == 1
    lines = capsys.readouterr().err.split("\n")
    assert (
        frames
        and "error: no room" in lines
        and any("render:" in line for line in lines[: lines.index("error: no room")])
    )


def test_a_program_keeps_its_own_hydra(tmp_path):
    (tmp_path / "theirs.yaml").write_text("number: 3\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert load_config("train", []).threads is None
        with pytest.raises(UserError):
            load_config("train", ["nothing=1"])
        assert compose("theirs").number == 3
    load_config("train", [])
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a [big] pig", "a [big] pig"),
        ("[a] pig", "[a] pig"),
        ("a {big} pig", "a {big} pig"),
        ("1_000", "1_000"),
        ("007", "007"),
        ("it's a pig\\", "it's a pig\\"),
        ('"quoted"', "quoted"),
        ("null", None),
        ("3", "3"),
    ],
)
def test_text_on_the_command_line_is_what_was_typed(typed, meant):
    assert load_config("edit", [f"tgt={typed}"]).tgt == meant


def test_a_library_names_no_flags(tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}/none.png: no such file"):
        read_image(tmp_path / "none.png")
