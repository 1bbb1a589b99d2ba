"""The wheel: what is in it, and its commands in an environment of their own, run from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from fakes import TINY_FIELD, TINY_SCENE

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cds3d", "tensorf", "configs", "scenes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, from a copy of the tree, so that no build/ or egg-info is left here."""
    pytest.importorskip("setuptools", reason="setuptools is not installed, and there may be no network to get it")
    pytest.importorskip("pip", reason="pip is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        folder / "tree",
        ignore=shutil.ignore_patterns(".*", "build", "outputs", "site", "*.egg-info", "__pycache__"),
    )
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "tree")], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The folder of commands of an environment with the wheel, which borrows what it needs from this one."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=os.name == "posix")
    places = {name: sysconfig.get_path(name, "venv", {"base": str(folder)}) for name in ("purelib", "scripts")}
    # What a .pth adds comes last, and the .pth files there, such as that of an editable install, are not read.
    borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    Path(places["purelib"], "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    python = Path(places["scripts"], "python")
    install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], folder)
    return python.parent


def run(command, folder):
    """Run in `folder` without what this process's environment says of Python's path; returns what was printed."""
    quiet = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_all_files_of_the_package_and_no_others(wheel):
    expected = set()
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT).as_posix()
                expected.add(inside if part in ("cds3d", "tensorf") else f"cds3d/{inside}")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = {name.split("/", 1)[1] for name in file.namelist() if ".dist-info/" in name}
    assert names == expected
    assert {"METADATA", "entry_points.txt"} <= metadata and any(name.endswith("LICENSE") for name in metadata)


def test_the_lowest_diffusers_works_with_all_transformers_that_are_allowed(wheel):
    """Earlier ones fail with transformers 5.6 and later: at import, or with every single file."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("METADATA"))
        assert "Requires-Dist: diffusers>=0.39\n" in file.read(name).decode()


def test_the_wheels_commands_run_from_anywhere(bare, tmp_path):
    where = run(
        [str(bare / "python"), "-c", "import cds3d, tensorf; print(cds3d.__file__, tensorf.__file__)"], tmp_path
    )
    assert all(Path(p).is_relative_to(bare.parent) for p in where.split()), where
    command = str(bare / "cds3d")
    assert '"a yellow flower"' in run([command, "list"], tmp_path)
    text = run([command, "edit", "--help"], tmp_path)
    assert "--tgt TEXT" in text and "patch_sizes" in text
    run([command, "train", "scene=flower", *TINY_SCENE, *TINY_FIELD, "video_frames=0", "field.iterations=2"], tmp_path)
    made = tmp_path / "outputs" / "flower" / "source"
    assert (made / "metrics.json").exists() and (made / "field.safetensors").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_old_python_is_told_before_anything_is_made(tmp_path):
    """As a Mac's own: pip would say that there is no torch."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    asks = "import sys; sys.version_info = (3, 9, 6); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{asks}' \"$2\"\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "edit", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "error: cds3d needs Python 3.10 or later" in done.stdout
    assert not (tmp_path / ".venv").exists()
