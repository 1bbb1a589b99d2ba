"""`pip install` of a copy of the tree, without a network, and the package as it is found from elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import sys
from pathlib import Path
import cds3d
from cds3d.options import data_folder, groups, load_config
assert Path(cds3d.__file__).is_relative_to(sys.argv[1]), cds3d.__file__
config = load_config("edit", [])
assert config.scene.name == "flower" and config.objective.kind == "cds" and config.objective.t_max == 949
assert {"cds", "dds", "sds", "ids-cds"} <= set(groups()["objective"])
assert (data_folder("scenes") / "flower" / "poses_bounds.npy").exists()
assert len(list((data_folder("scenes") / "flower" / "images").glob("*.jpg"))) >= 3
assert data_folder("configs").is_relative_to(sys.argv[1])
import cds3d.commands.edit, tensorf.captures
"""


def test_installed_package_finds_its_configurations_and_scenes(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed, and there may be no network to get it")
    pytest.importorskip("pip", reason="pip is not installed")
    # A copy, so that no build/ or egg-info is left here; weights would only take time.
    unwanted = shutil.ignore_patterns(".*", "outputs", "tests", "weights", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=unwanted)
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    install = [*command, "--target", str(target), str(tmp_path / "tree")]
    done = subprocess.run(install, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check = [sys.executable, "-c", CHECK, str(target)]
    environment |= {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(check, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (target / "bin" / "cds3d").exists()
