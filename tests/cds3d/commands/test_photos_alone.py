"""--capture with photos alone and with videos: estimated once, kept, found again; one line where that cannot be."""

import shutil
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from checks import fails, files
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image

from cds3d.cli import run_command
from cds3d.commands import scenes
from cds3d.runs import read_config
from tensorf.captures.sources import find_source, write_record

SHIPPED = Path(__file__).resolve().parents[3] / "scenes"
TINY = [*TINY_SCENE, *TINY_FIELD]


def photos(folder, scene="flower", count=10):
    folder.mkdir()
    for photo in sorted((SHIPPED / scene / "images").iterdir())[:count]:
        shutil.copy2(photo, folder)
    return folder


def video(path, pictures):
    pictures = [np.asarray(picture) for picture in pictures]
    height, width = pictures[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, macro_block_size=2, quality=9)
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
    return path


@pytest.fixture
def inputs(tmp_path):
    """A folder of the user's, in which nothing may be written."""
    folder = tmp_path / "of the user"
    folder.mkdir()
    return folder


@pytest.fixture
def to_red(tiny_folder):
    prompts = ["--src", "a yellow flower", "--tgt", "a red flower"]
    return [*prompts, *TINY, f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]


def test_without_the_extra_one_line_names_it(tmp_path, inputs, capsys, monkeypatch, to_red):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    monkeypatch.setattr(scenes, "estimate_capture", lambda *args, **kwargs: pytest.fail("told too late"))
    walk = inputs / "walk.mp4"
    walk.write_bytes(b"not even looked at")
    for source in (photos(inputs / "my photos", count=3), walk):
        for command, options in (("train", TINY), ("edit", to_red)):
            line = fails(capsys, command, "--capture", source, *options)
            assert str(source) in line and "pycolmap" in line and 'pip install ".[colmap]"' in line
    assert not (tmp_path / "outputs").exists()


def test_an_edit_of_another_number_of_frames_trains_no_other_field(tmp_path, inputs, capsys, monkeypatch, to_red):
    monkeypatch.setattr(scenes, "require_pycolmap", lambda *_: None)
    walk = inputs / "walk.mp4"
    walk.write_bytes(b"a video")
    folder = tmp_path / "outputs" / "captures" / "walk"
    folder.mkdir(parents=True)
    write_record(find_source(walk, 30), folder, registered=30)
    before = files(tmp_path)
    line = fails(capsys, "edit", "--capture", walk, *to_red)
    assert "were estimated with scene.frames=30" in line and "give scene.frames=30 to edit that field" in line
    assert files(tmp_path) == before


def nothing_there(folder):
    return folder / "walk.mp4", "no such folder or video"


def a_text(folder):
    (folder / "notes.txt").write_text("no video")
    return folder / "notes.txt", "neither a folder nor a video"


def two_photos(folder):
    return photos(folder / "two", count=2), "2 photos"


def no_video_inside(folder):
    (folder / "walk.mp4").write_bytes(b"no video" * 100)
    return folder / "walk.mp4", "cannot be read as a video"


def a_still_video(folder):
    still = Image.open(SHIPPED / "flower" / "images" / "view000.jpg")
    return video(folder / "still.mp4", [still] * 8), "shows no motion"


def a_photo_cut_off(folder):
    mine = photos(folder / "mine", count=4)
    (mine / "view002.jpg").write_bytes((mine / "view002.jpg").read_bytes()[:3000])
    return mine, "view002.jpg"


def without_overlap(folder):
    mine = photos(folder / "mine", count=1)
    for scene in ("mug", "cat"):
        shutil.copy(SHIPPED / scene / "images" / "view000.jpg", mine / f"{scene}.jpg")
    return mine, "no poses can be estimated, as images overlap too little"


@pytest.mark.parametrize(
    "make", [nothing_there, a_text, two_photos, no_video_inside, a_still_video, a_photo_cut_off, without_overlap]
)
def test_what_cannot_be_estimated_is_one_line(tmp_path, inputs, capsys, make):
    if make not in (nothing_there, a_text, two_photos):
        pytest.importorskip("pycolmap")
    source, said = make(inputs)
    before = files(inputs)
    line = fails(capsys, "train", "--capture", source, *TINY)
    assert said in line and str(source) in line
    assert files(inputs) == before and files(tmp_path) == [f"{inputs.name}/{f}" for f in before]


def test_frames_is_a_whole_number(inputs, capsys):
    (inputs / "walk.mp4").touch()
    for frames in (2, 2.5, "many"):
        assert "scene.frames" in fails(capsys, "train", "--capture", inputs / "walk.mp4", f"scene.frames={frames}")


def test_a_video_from_its_frames_to_an_edit(tmp_path, inputs, to_red, monkeypatch, capsys):
    pytest.importorskip("pycolmap")
    shots = [Image.open(p) for p in sorted((SHIPPED / "flower" / "images").iterdir())[:10]]
    walk = video(inputs / "my walk.mp4", shots)
    before = files(inputs)
    assert run_command("edit", ["--capture", str(walk), *to_red]) == 0  # trains the source first
    told = capsys.readouterr().err
    assert all(f"{stage}: 100%" in told for stage in ("video", "features", "pairs", "poses"))
    kept = tmp_path / "outputs" / "captures" / "my walk"
    assert files(inputs) == before and (kept / "source.json").is_file()
    source, edit = (tmp_path / "outputs" / "my walk" / name for name in ("source", "a-red-flower"))
    for run in (source, edit):
        assert (run / "metrics.json").is_file() and read_config(run).capture == "outputs/captures/my walk"
    monkeypatch.setattr(scenes, "estimate_capture", lambda *args, **kwargs: pytest.fail("estimated again"))
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert run_command("train", ["--capture", str(walk), *TINY, "overwrite=true"]) == 0
    walk.unlink()
    assert run_command("render", [str(edit), "frames=2", "width=32"]) == 0
    assert sorted(p.name for p in kept.parent.iterdir()) == ["my walk"]


def test_changed_photos_leave_the_first_run_alone(tmp_path, inputs, monkeypatch):
    """Another estimate has other coordinates: a field that was trained in the first must not be taken for it."""

    def estimated(source, folder, threads, show_progress):
        folder.mkdir(parents=True)
        shutil.copy(SHIPPED / "flower" / "poses_bounds.npy", folder)
        shutil.copytree(SHIPPED / "flower" / "images", folder / "images")
        write_record(source, folder)

    monkeypatch.setattr(scenes, "estimate_capture", estimated)
    monkeypatch.setattr(scenes, "require_pycolmap", lambda source, install: None)
    mine = photos(inputs / "mine", count=5)
    assert run_command("train", ["--capture", str(mine), *TINY]) == 0
    (mine / "view004.jpg").unlink()
    assert run_command("train", ["--capture", str(mine), *TINY]) == 0
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == ["captures", "mine", "mine-2"]
    assert read_config(tmp_path / "outputs" / "mine-2" / "source").capture == "outputs/captures/mine-2"
