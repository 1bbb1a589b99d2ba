"""Options, runs and images that the tests of the commands share; each test begins in an empty folder."""

import copy
import importlib
import shutil
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from fake_device import DEVICE, elsewhere
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image

from cds3d.bench import gpu_agreement, gpu_speed
from cds3d.commands import preparing
from cds3d.guidance import load_prior
from cds3d.guidance.loading import DTYPES
from cds3d.guidance.prior import Prior
from tensorf import train
from tensorf.renderable import load_field


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
    tiny = ["edit.iterations=2", "threads=1", "guidance.image_width=null"]
    return [*prompts, f"guidance.path={tiny_folder}", *tiny]


@pytest.fixture()
def moved(monkeypatch, tiny_folder):
    """Within `moved()` every command picks the other device (`fake_device`).

    The prior is loaded before: transformers builds models on "meta" itself until it has read their weights.
    """
    with mock.patch.multiple("cds3d.guidance.loading", Prior=dict, _try=lambda *_: None):
        parts = load_prior(str(tiny_folder), device=torch.device("cpu"))

    def load(*_, dtype="fp32", device=DEVICE, **__):
        return Prior(**copy.deepcopy(parts) | {"device": device, "dtype": DTYPES[dtype]})

    for command in ("baselines", "edit", "export", "images", "importing", "refit", "render", "train"):
        importlib.import_module(f"cds3d.commands.{command}")  # now: it would keep what is patched below

    @contextmanager
    def elsewhere_from_here():
        for name, module in list(sys.modules.items()):
            if name.startswith("cds3d.") and hasattr(module, "pick_device"):
                monkeypatch.setattr(module, "pick_device", lambda _: DEVICE)
            if name.startswith(("cds3d.", "tensorf.")) and hasattr(module, "usable_device"):
                monkeypatch.setattr(module, "usable_device", torch.device)  # which refuses "meta"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        seeded = train.seeded  # torch has no generators of the other device
        monkeypatch.setattr(train, "seeded", lambda _, seed: seeded("cpu", seed))
        for module in (preparing, gpu_agreement, gpu_speed):
            monkeypatch.setattr(module, "load_prior", load)
        with elsewhere(monkeypatch):
            yield

    return elsewhere_from_here


@pytest.fixture()
def there(moved):
    with moved():
        yield


@pytest.fixture()
def opaque(trained):
    """The source run with a field that is solid everywhere."""
    field = load_field(trained / "field.safetensors")
    for group in field.parameter_groups().get("density", []):
        group.data.abs_().add_(3)
    field.occupancy = torch.ones_like(field.occupancy)
    field.save(trained / "field.safetensors")
    return trained
