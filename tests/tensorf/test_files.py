"""Files are there whole or not at all."""

import os
import stat
import subprocess

import pytest

from tensorf.files import atomic, atomic_folder, is_partial, write_text


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "figure.json"
    with atomic(path) as partial:
        partial.write_text("half")
        assert partial.parent == path.parent and partial.suffix == ".json" and not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there_and_nothing_beside_it(tmp_path, before, error):
    path = tmp_path / "figure.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), atomic(path) as partial:
        partial.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if before is None else ["old"])


def test_an_exception_before_anything_is_written_is_told_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="^told$"), atomic(tmp_path / "figure.json"):
        raise ValueError("told")
    assert list(tmp_path.iterdir()) == []


def test_text_replaces_text(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "one")
    write_text(path, "two\n")
    assert path.read_text() == "two\n" and list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync

    def replaced(old, new):
        done.append("named")
        replace(old, new)

    def synchronised(file):
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "content")
        fsync(file)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synchronised)
    write_text(tmp_path / "state.pt", "steps")
    assert done == ["content", "named", "folder"]


def test_who_still_writes_to_the_partial_file_of_a_killed_process_does_not_write_to_the_new_one(tmp_path):
    path = tmp_path / "video.mp4"
    orphan = (tmp_path / ".video.part.mp4").open("w")
    with atomic(path) as partial:
        partial.write_text("whole")
        orphan.write("torn, from an encoder that has not noticed yet")
        orphan.close()
    assert path.read_text() == "whole"


def test_a_folder_changes_places_at_the_end(tmp_path):
    folder = tmp_path / "frames"
    for text in ("old", "new"):
        with atomic_folder(folder) as begun:
            (begun / "a.txt").write_text(text)
            assert not folder.exists() or (folder / "a.txt").read_text() == "old"
        assert (folder / "a.txt").read_text() == text and list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_was_killed_between_two_names_comes_back(tmp_path):
    folder, old = tmp_path / "frames", tmp_path / ".frames.old"
    old.mkdir()
    (old / "a.txt").write_text("old")
    with pytest.raises(ValueError), atomic_folder(folder):
        raise ValueError
    assert (folder / "a.txt").read_text() == "old" and not old.exists()


@pytest.mark.parametrize(
    ("name", "partial"),
    [
        (".config.part.yaml", True),
        (".frames.part", True),
        (".frames.old", True),
        (".lock", False),
        ("a.part.png", False),
    ],
)
def test_partial_files_are_told_by_their_names(tmp_path, name, partial):
    assert is_partial(tmp_path / name) == partial


@pytest.fixture
def another():
    """The number of a process that is at work, and after `stop` of one that is no more."""
    process = subprocess.Popen(["sleep", "600"])
    process.stop = lambda: (process.kill(), process.wait())
    yield process
    process.stop()


def test_two_that_write_to_one_place_do_not_spoil_each_others_file(tmp_path, another):
    path, other = tmp_path / "orbit.mp4", tmp_path / f".orbit.{another.pid}.part.mp4"
    other.write_text("half")
    with atomic(path) as partial:
        partial.write_text("mine")
        assert partial.name == f".orbit.{os.getpid()}.part.mp4" and is_partial(partial)
    assert (path.read_text(), other.read_text()) == ("mine", "half")
    another.stop()
    write_text(path, "mine again")
    assert list(tmp_path.iterdir()) == [path]  # what the killed one has left is gone


def test_so_do_folders(tmp_path, another):
    folder, *others = (tmp_path / name for name in ("frames", *(f".frames.{another.pid}.{s}" for s in ("part", "old"))))
    for other in others:
        other.mkdir()
        (other / "a.txt").write_text("theirs")
    for left in (others, []):
        with atomic_folder(folder) as begun:
            assert begun.name == f".frames.{os.getpid()}.part" and is_partial(begun)
            (begun / "a.txt").write_text("mine")
        assert (folder / "a.txt").read_text() == "mine" and set(tmp_path.iterdir()) == {folder, *left}
        another.stop()


def test_leftovers_of_another_name_stay(tmp_path):
    others = {
        tmp_path / name for name in (".orbit.1.2.part.mp4", ".orbit2.part.mp4", ".orbit.part.png", "orbit.part.mp4")
    }
    for other in others:
        other.touch()
    write_text(tmp_path / "orbit.mp4", "mine")
    assert set(tmp_path.iterdir()) == {tmp_path / "orbit.mp4", *others}
