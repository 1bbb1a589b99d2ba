"""Packages name their own arguments; the commands add what a user types."""

from types import SimpleNamespace

import pytest
import torch
from checks import fails
from PIL import Image

from cds3d.cli import run_command
from cds3d.commands.scenes import load_scene, naming_options
from cds3d.commands.train import field_options, train_command
from cds3d.commands.videos import frames_of
from cds3d.options import load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.field import Field
from tensorf.space import Space
from tensorf.train import Trainer

TINY = ["field.iterations=2", "field.batch=16", "field.resolution=16", "threads=1", "video_frames=0", "device=cpu"]


@pytest.fixture(scope="module")
def daisies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captures") / "daisies"
    write_capture(folder, Attributes(2_000_026, "flower", "daisy", "yellow", "garden"), views=4, width=32, height=24)
    return folder


def test_only_arguments_are_hinted_at():
    def told(message):
        with pytest.raises(UserError) as caught, naming_options("scene", "space", "order"):
            raise UserError(message)
        return str(caught.value)

    assert told("use space=unbounded") == "use space=unbounded (scene.space=...)"
    assert told("order=x and space=y") == "order=x and space=y (scene.space=..., scene.order=...)"
    assert told("scene.space=y") == "scene.space=y" and told("another order") == "another order"


@pytest.mark.parametrize("option", ["space=flat", "order=name"])
def test_options_of_a_scene(tmp_path, daisies, option):
    config = load_config("train", ["scene=capture", f"scene.{option}"])
    config.capture = str(daisies)
    with pytest.raises(UserError, match=rf"{option} is unknown.*\(scene\.{option.split('=')[0]}=\.\.\.\)$"):
        load_scene(config)


def test_commands_count_the_photos_that_they_read(daisies, monkeypatch):
    asked = {}

    def load(*_, **options):
        asked.update(options)
        return SimpleNamespace(images=torch.zeros(1, 9, 9, 3))

    monkeypatch.setattr("cds3d.commands.scenes.load_capture", load)
    config = load_config("train", ["scene=capture"])
    config.capture = str(daisies)
    load_scene(config)
    assert asked["show_progress"] is True


def train(folder, capture, *options):
    config = load_config("train", ["scene=capture", *TINY, f"output={folder}", *options])
    config.capture = str(capture)
    train_command(config)


@pytest.mark.parametrize("option", ["decomposition", "decoder"])
def test_options_of_a_field(tmp_path, daisies, option):
    with pytest.raises(UserError, match=rf"^field\.{option}=none is unknown"):
        train(tmp_path / "run", daisies, f"field.{option}=none")


def test_a_loss_that_is_not_finite(tmp_path, daisies, monkeypatch):
    step = Trainer.step

    def broken(self):
        with torch.no_grad():
            self.field.basis.weight.fill_(float("nan"))
        return step(self)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(UserError, match=r"no longer finite.*lower lr_grid.*\(field\.lr_grid=\.\.\.\)$"):
        train(tmp_path / "run", daisies)


def test_cameras_that_a_forward_facing_field_cannot_hold():
    config, _ = field_options(load_config("train", []), "ndc")
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    field = Field(config, Space("ndc", box, 1.0, 10.0, torch.eye(3, 4)), (8, 8, 8), 16)
    back = torch.cat([torch.diag(torch.tensor([-1.0, 1, -1])), torch.zeros(3, 1)], 1)
    with pytest.raises(UserError, match=r"space=unbounded \(scene\.space=\.\.\.\)$"):
        list(frames_of(field, [Camera(back, 4.0, 4.0, 2.0, 2.0, 4, 4)], "video"))


@pytest.mark.parametrize(
    ("command", "word", "meant"),
    [
        ("train", "daisies", "did you mean --capture daisies?"),
        ("edit", "daisies", "did you mean --capture daisies?"),
        ("edit", "a.png", "did you mean --image a.png?"),
        ("edit", "a red flower", 'did you mean --tgt "a red flower"?'),
        ("edit", "red", "neither a flag nor key=value; see --help"),
    ],
)
def test_words_without_a_flag(tmp_path, capsys, command, word, meant):
    (tmp_path / "daisies").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert meant in fails(capsys, command, word)


def test_a_finished_run_of_other_options_says_which(tmp_path, capsys, daisies):
    options = ["--capture", str(daisies), *TINY, "output=run", "field.iterations=1", "video_frames=0"]
    assert run_command("train", options) == 0
    text = fails(capsys, "train", *options, "field.lr_grid=0.03")
    assert "run holds a finished run with field.lr_grid=0.02, not 0.03: pass overwrite=true" in text
    assert "holds a finished run: pass" in fails(capsys, "train", *options)


def test_folders_that_are_not_there(tmp_path, capsys):
    assert "nowhere is no run folder: it does not exist" in fails(capsys, "render", "nowhere")


def test_photos_that_are_too_small(tmp_path, capsys):
    write_capture(tmp_path / "panoramas", Attributes.sample(3), views=4, width=320, height=90)
    text = fails(capsys, "train", "--capture", "panoramas", "scene.width=16", "device=cpu")
    assert "photos of 16x4 pixels are too small: take a larger scene.width" in text
