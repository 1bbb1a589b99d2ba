"""A Stable Diffusion of a few thousand random weights, a capture of six small photos, and a field trained on them."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from fakes import TINY_FIELD, TINY_SCENE
from tiny_models import build_pipeline

import cds3d.jobs as job_module
from cds3d.cli import run_command
from cds3d.guidance import Prior, load_prior
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.captures import load_capture
from tensorf.local import LocalField
from tensorf.renderable import load_field


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A diffusers folder that predicts noise."""
    root = tmp_path_factory.mktemp("sd")
    build_pipeline("epsilon", root / "tokenizer").save_pretrained(root / "epsilon", safe_serialization=True)
    return root / "epsilon"


@pytest.fixture(scope="session")
def tiny_v_folder(tmp_path_factory) -> Path:
    """The same networks in a folder whose scheduler says v_prediction."""
    root = tmp_path_factory.mktemp("sd_v")
    build_pipeline("v_prediction", root / "tokenizer").save_pretrained(root / "v", safe_serialization=True)
    return root / "v"


@pytest.fixture(scope="session")
def prior(tiny_folder) -> Prior:
    return load_prior(str(tiny_folder), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def capture_folder(tmp_path_factory) -> Path:
    """Six views of a yellow daisy, 64x48, whose true edits are known."""
    folder = tmp_path_factory.mktemp("captures") / "daisies"
    write_capture(folder, Attributes(2_000_026, "flower", "daisy", "yellow", "garden"), views=6, width=64, height=48)
    return folder


@pytest.fixture(scope="session")
def source_run(tmp_path_factory, capture_folder) -> Path:
    """The run folder of a field trained for eight iterations by the command."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    code = run_command("train", ["--capture", str(capture_folder), f"output={folder}", *TINY_SCENE, *TINY_FIELD])
    assert code == 0
    return folder


@pytest.fixture()
def field(source_run):
    """The field of `source_run`, of which a test may change whatever it likes."""
    return load_field(source_run / "field.safetensors")


@pytest.fixture(scope="module")
def cameras(capture_folder):
    """Three of the capture's cameras, 32x24: latents are 4x3."""
    capture = load_capture(capture_folder, width=64)
    return [camera.resized(32, 24) for camera in capture.cameras[:3]]


@pytest.fixture()
def holes(monkeypatch):
    """Settling takes every third cell of a local field for empty: some have to be, and in `field` none is."""

    def settle(self):
        self.occupancy = self.occupancy & (torch.arange(self.occupancy.numel()).view(self.occupancy.shape) % 3 > 0)

    monkeypatch.setattr(LocalField, "settle", settle)


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded():
    """One thread, as the commands under test are told too: sums come out in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("tensorf").setLevel(logging.INFO)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def python(monkeypatch, tmp_path):
    """A job runs a few lines of Python in place of the command."""

    popen = job_module.subprocess.Popen

    def job(code, folder=tmp_path):
        monkeypatch.setattr(
            job_module.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options)
        )
        return job_module.Job("edit", [], folder)

    return job
