"""Options, runs and images that the tests of the commands share; each test begins in an empty folder."""

import shutil

import numpy as np
import pytest
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture()
def train_options(capture_folder):
    return ["--capture", str(capture_folder), *TINY_SCENE, *TINY_FIELD]


@pytest.fixture()
def edit_options(train_options, tiny_folder):
    prompts = ["--src", "a yellow flower", "--tgt", "a red flower"]
    return [*prompts, *train_options, f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]


@pytest.fixture()
def trained(tmp_path, source_run):
    """The session's source field where an edit of the capture looks for it."""
    folder = tmp_path / "outputs" / "daisies" / "source"
    shutil.copytree(source_run, folder)
    return folder


@pytest.fixture()
def image_file(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "a flower.png"
    Image.fromarray(generator.integers(0, 255, (17, 23, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture()
def image_options(image_file, tiny_folder):
    prompts = ["--image", str(image_file), "--src", "a yellow flower", "--tgt", "a red flower"]
    return [*prompts, f"guidance.path={tiny_folder}", "edit.iterations=2", "threads=1"]
