"""What commands say of captures and pictures that lead outside, and of archives."""

import shutil

import pytest
from checks import fails, files
from fakes import TINY_FIELD, TINY_SCENE
from omegaconf import OmegaConf
from PIL import Image

from cds3d import options
from cds3d.cli import run_command
from cds3d.commands import view
from cds3d.options import load_config
from cds3d.runs import read_config

TINY = [*TINY_SCENE, *TINY_FIELD, "video_frames=0"]


@pytest.fixture()
def linked(tmp_path, capture_folder):
    """A capture whose folder of images is a link to another disk."""
    shutil.copytree(capture_folder, tmp_path / "daisies")
    (tmp_path / "daisies" / "images").rename(tmp_path / "disk")
    (tmp_path / "daisies" / "images").symlink_to(tmp_path / "disk")
    return tmp_path / "daisies"


def test_an_archive_is_to_be_unpacked(tmp_path, capsys):
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04")
    for command in ("train", "view"):
        text = fails(capsys, command, "--capture", tmp_path / "photos.zip")
        assert "photos.zip is an archive: unpack it, and give the folder that is in it" in text
    assert files(tmp_path) == ["photos.zip"]


def test_links_are_refused_unless_they_are_allowed(tmp_path, linked, capsys):
    text = fails(capsys, "train", "--capture", linked, *TINY)
    assert "view000.jpg leads out of" in text and "(scene.outside=...)" in text
    assert not (tmp_path / "outputs").exists()
    assert "scene.outside=maybe has to be" in fails(capsys, "train", "--capture", linked, *TINY, "scene.outside=maybe")
    assert run_command("train", ["--capture", str(linked), *TINY, "scene.outside=true"]) == 0
    run = tmp_path / "outputs" / "daisies" / "source"
    assert read_config(run).scene.outside is True
    assert run_command("render", [str(run), "frames=1", "width=32"]) == 0  # the run remembers it


def test_photos_alone_that_are_links(tmp_path, linked, capsys):
    (linked / "poses_bounds.npy").unlink()
    text = fails(capsys, "train", "--capture", linked, *TINY)
    assert "leads out of" in text and "(scene.outside=...)" in text
    assert not (tmp_path / "outputs").exists()


def test_a_capture_that_is_a_link_itself(tmp_path, capture_folder):
    (tmp_path / "mine").symlink_to(capture_folder)
    assert run_command("train", ["--capture", "mine", *TINY, "field.iterations=1"]) == 0


def test_scenes_that_ship_may_be_links(tmp_path, linked, monkeypatch):
    """Packages are installed as links by some."""
    (tmp_path / "scenes").mkdir()
    linked.rename(tmp_path / "scenes" / "flower")
    monkeypatch.setattr("cds3d.commands.scenes.data_folder", lambda name: tmp_path / name)
    assert run_command("train", ["scene=flower", *TINY, "field.iterations=1", "output=run"]) == 0


@pytest.mark.parametrize("way", ["--views", "mask"])
def test_pictures_that_are_links(tmp_path, edit_options, trained, capsys, way):
    (tmp_path / "given").mkdir()
    Image.new("L", (64, 48), 255).save(tmp_path / "elsewhere.png")
    (tmp_path / "given" / "view001.png").symlink_to(tmp_path / "elsewhere.png")
    given = ["--views", "given"] if way == "--views" else ["mask=given"]
    if way == "--views":  # which has no use for these
        edit_options = [o for o in edit_options if not o.startswith(("guidance.", "edit.iterations"))]
    text = fails(capsys, "edit", *edit_options, "output=edit", *given)
    assert "view001.png leads out of given" in text and "(scene.outside=...)" in text
    assert not (tmp_path / "edit").exists()
    more = ["scene.outside=true", "video_frames=0", *(["refit.iterations=1"] if way == "--views" else [])]
    assert run_command("edit", [*edit_options, "output=edit", *given, *more]) == 0


def test_edits_from_the_viewer_may_do_what_it_may(tmp_path, linked, source_run, monkeypatch):
    source = tmp_path / "outputs" / "daisies" / "source"
    shutil.copytree(source_run, source)
    trained = OmegaConf.load(source / "config.yaml")
    trained.capture = str(linked)
    OmegaConf.save(trained, source / "config.yaml")
    config = load_config("view", ["scene=capture", "scene.width=64", "port=0", "width=48", "scene.outside=true"])
    config.capture = str(linked)
    viewer = view.open_viewer(config)
    viewer.close()
    assert "scene.outside=true" in viewer.shown.options
    load_config("edit", [o for o in viewer.shown.options if not o.startswith("--")])


def test_a_revision_reaches_the_loader(monkeypatch, capsys, image_options):
    asked = {}

    def load(path, **more):
        asked.update(more)
        raise options.UserError("asked")

    monkeypatch.setattr("cds3d.commands.preparing.load_prior", load)
    assert "asked" in fails(capsys, "edit", *image_options, "guidance.revision=123")
    assert asked["revision"] == "123"
