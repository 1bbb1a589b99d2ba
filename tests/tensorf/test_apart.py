"""Estimates in a process of their own, as on macOS. Its pycolmap is the tests' own, but for the last test's."""

import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorf.captures import apart, estimate, load_capture
from tensorf.captures.apart import estimate_apart
from tensorf.captures.estimate import estimate_capture, estimate_here
from tensorf.captures.sources import Source, find_source
from tensorf.errors import UserError

SCENES = Path(__file__).resolve().parents[2] / "scenes"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "mine").mkdir()
    for photo in sorted((SCENES / "flower" / "images").iterdir())[:8]:
        shutil.copy2(photo, tmp_path / "mine")
    return find_source(tmp_path / "mine", 60)


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """A function that writes the pycolmap that the process imports."""

    def write(text):
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "pycolmap.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))

    return write


def test_macos_alone_has_a_process_of_its_own(tmp_path, source, monkeypatch):
    called = []
    for name in ("estimate_here", "estimate_apart"):
        monkeypatch.setattr(estimate, name, lambda *args, name=name: called.append((name, *args)))
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        estimate_capture(source, tmp_path / "kept", 2, show_progress=True)
    asked = (source, tmp_path / "kept", 2, True)
    assert called == [("estimate_here", *asked), ("estimate_apart", *asked)]


@pytest.mark.parametrize("frames", [None, 60])
def test_the_process_gets_what_it_was_given(frames):
    photos = tuple(Path("/a") / name for name in ("ü.jpg", "b c.png", "\udcff.jpg"))  # the last is no Unicode
    source = Source(Path("/a"), photos, frames, {photos[1]: Path("/m/b.png")})
    for threads in (None, 3):
        given = (source, Path("kept") / "a", threads, frames is None)
        assert apart._read(apart._written(*given)) == given


def test_pycolmap_is_loaded_before_torch(tmp_path, source, pretend):
    """So its copy of OpenMP's library is whole. Its own first lines are what is told of a pycolmap that fails."""
    first = 'f\'{"torch" in sys.modules} {os.environ["KMP_DUPLICATE_LIB_OK"]}\''
    pretend(f"import os, sys\nprint('noise')\nraise ImportError(os.environ.setdefault('FIRST', {first}))")
    with pytest.raises(UserError, match=r"mine has no poses.*pycolmap, which fails \(False TRUE\): pip"):
        estimate_apart(source, tmp_path / "kept" / "mine", None, False)
    assert not (tmp_path / "kept").exists()


def test_a_process_that_is_killed_is_told(tmp_path, source, pretend):
    pretend("import os\nos.abort()")
    with pytest.raises(UserError, match=r"mine: the process that estimates its poses was killed \(SIGABRT\)$"):
        estimate_apart(source, tmp_path / "kept" / "mine", None, False)


def test_a_process_that_fails_is_no_success(tmp_path, source, pretend):
    pretend("")
    with pytest.raises(RuntimeError, match="mine: the process that estimates its poses has failed"):
        estimate_apart(source, tmp_path / "kept" / "mine", None, False)


def test_a_full_disk_is_one_line(tmp_path, source, pretend):
    pretend("def __getattr__(name):\n    raise OSError(28, 'No space left on device')")
    with pytest.raises(UserError, match="No space left on device"):
        estimate_apart(source, tmp_path / "kept" / "mine", None, False)


def test_an_interrupt_leaves_nothing(tmp_path, source, pretend, monkeypatch):
    """It comes with the first message, while the process waits in COLMAP."""
    pretend("import time\ndef __getattr__(name):\n    time.sleep(60)")
    (source.path / "raw.dng").touch()  # of which a warning tells
    begun = []

    def interrupted(record):
        begun.extend((tmp_path / "kept").iterdir())
        raise KeyboardInterrupt

    handler = logging.Handler()
    handler.emit = interrupted
    monkeypatch.setattr(logging.getLogger("tensorf"), "handlers", [handler])
    with pytest.raises(KeyboardInterrupt):
        estimate_apart(source, tmp_path / "kept" / "mine", None, False)
    assert len(begun) == 1 and list((tmp_path / "kept").iterdir()) == []


def test_its_poses_and_messages_are_those_of_this_process(tmp_path, source, caplog):
    pytest.importorskip("pycolmap")
    caplog.set_level(logging.INFO, "tensorf")
    told, poses = [], []
    for work in (estimate_here, estimate_apart):
        caplog.clear()
        work(source, tmp_path / work.__name__, 1, False)
        told.append([record.msg if work is estimate_here else record.getMessage() for record in caplog.records])
        poses.append(np.stack([c.pose.numpy() for c in load_capture(tmp_path / work.__name__, width=64).cameras]))
    assert np.array_equal(*poses)
    assert "poses of 8 of 8 images estimated in" in told[1][-1]
