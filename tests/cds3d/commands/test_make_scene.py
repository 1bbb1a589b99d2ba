"""scripts/make_scene.py: a folder has one scene or one truth, whole; mistakes are told in a line."""

import numpy as np
import pytest
from checks import files, load_script

from tensorf.captures import load_capture

TINY = ["--width", "32"]


@pytest.fixture()
def make(tmp_path, monkeypatch):
    """The script in an empty folder, with a flower of three small views as the shipped one."""
    monkeypatch.chdir(tmp_path)
    script = load_script("make_scene")
    monkeypatch.setattr(script, "SCENES", tmp_path / "scenes")
    script.main(["flower", "--views", "3", *TINY])
    return lambda *options: script.main([str(o) for o in options])


def stops(make, *options, code=None):
    """What a call tells that has to end with an error of one line, or with `code`."""
    with pytest.raises(SystemExit) as stop:
        make(*options)
    assert stop.value.code == code if code else stop.value.code.startswith("error: ")
    assert code or "\n" not in stop.value.code
    return stop.value.code


def test_a_scene_takes_the_place_of_a_larger_one(make, tmp_path, capsys):
    make("flower", "--views", 6, *TINY, "--output", "a")
    make("flower", "--views", 4, *TINY, "--output", "a")
    assert capsys.readouterr().out.splitlines()[-1] == "a: 4 pictures"
    assert len(np.load("a/poses_bounds.npy")) == 4 and len(load_capture(tmp_path / "a").images) == 4
    make("flower", "--views", 4, *TINY)  # the shipped one, anew
    assert len(files(tmp_path / "scenes" / "flower")) == 6


def test_a_truth_is_written_again(make, tmp_path):
    for word in ("red", "blue"):
        make("flower", "--truth", word, "--output", "truth")
    names = [f"{folder}/view00{i}.png" for folder in ("images", "masks") for i in range(3)]
    assert files(tmp_path / "truth") == names


def test_a_folder_of_something_else_is_left_alone(make, tmp_path):
    make("flower", "--truth", "red", "--output", "truth")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    (tmp_path / "photos" / "images" / "view000.jpg").touch()  # named like the script's, but no scene of its
    (tmp_path / "README.md").touch()
    before = files(tmp_path)
    assert "such as" in stops(make, "flower", "--truth", "red", "--output", "scenes/flower")
    for folder in ("truth", "photos"):
        assert f"--output {folder} holds something else" in stops(make, "flower", *TINY, "--output", folder)
    assert "README.md is a file" in stops(make, "flower", *TINY, "--output", "README.md")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "options, told",
    [
        (["flower", "--truth", "red", "--color", "blue"], "leave out --color"),
        (["flower", "--truth", "red", "--views", "9"], "leave out --views"),
        (["flower", "--truth", "yellow"], "shows that already"),
        (["--seed", "7", "--truth", "red"], "--truth needs the name"),
        (["--seed", "7", "--species", "cat", "--beside", "red"], "--beside 'red' has to be the colour of a second"),
        (["flower", "--views", "0"], "--views 0 has to be from 1 to 1000"),
        (["flower", "--views", "1001"], "--views 1001 has to be from 1 to 1000"),
        (["flower", "--width", "1"], "--width 1 has to be 16 or more"),
        (["flower", "--seed", "1"], "either a shipped scene's name or --seed"),
        ([], "either a shipped scene's name or --seed"),
    ],
)
def test_what_cannot_be_made_is_told(make, tmp_path, options, told):
    assert told in stops(make, *options, "--output", "out") and not (tmp_path / "out").exists()


def test_disks_that_fail_and_ctrl_c_leave_what_was_there(make, tmp_path, monkeypatch, capsys):
    script = load_script("make_scene")
    for error, code in ((OSError(30, "Read-only file system"), None), (KeyboardInterrupt(), 130)):

        def fail(folder, *_, error=error, **__):
            (folder / "images").mkdir()
            raise error

        monkeypatch.setattr(script, "write_capture", fail)
        before = files(tmp_path)
        told = stops(script.main, ["flower", "--output", "scenes/flower"], code=code)
        assert files(tmp_path) == before and (code or "Read-only" in told)
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
