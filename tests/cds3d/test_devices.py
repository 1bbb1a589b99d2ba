"""Names and memory are asked of the GPU that runs, not of the first one. torch is told what to say here."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from cds3d.bench import images
from cds3d.commands import edit
from cds3d.options import pick_device
from cds3d.process_memory import memory_mb, peak_memory_mb, reset_peak_memory
from cds3d.runs import RunFolder
from tensorf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECOND = torch.device("cuda:1")
MEMORY = {0: 7 * 2**20, 1: 40 * 2**20}


@pytest.fixture()
def two_gpus(monkeypatch):
    """Which device each function of torch.cuda was asked about."""
    asked = []

    def answer(name, of):
        def function(device=None):
            index = torch.device(device).index if device is not None else 0
            if index not in (0, 1):
                raise AssertionError("Invalid device id")
            asked.append((name, index))
            return of(index)

        monkeypatch.setattr(torch.cuda, name, function)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer("get_device_name", "GPU {}".format)
    answer("get_device_properties", lambda index: SimpleNamespace(name=f"GPU {index}"))
    answer("get_device_capability", lambda index: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90", "compute_90"])
    for name in ("max_memory_allocated", "memory_allocated", "reset_peak_memory_stats"):
        answer(name, MEMORY.get)
    return asked


def test_memory_of_the_second_gpu(two_gpus):
    assert peak_memory_mb(SECOND) == 40 and memory_mb(SECOND) == 40
    reset_peak_memory(SECOND)
    assert {index for _, index in two_gpus} == {1} and ("reset_peak_memory_stats", 1) in two_gpus


def test_memory_of_the_process_where_a_cpu_runs(two_gpus):
    assert peak_memory_mb(torch.device("cpu")) > 50  # this process holds torch
    assert memory_mb(torch.device("cpu")) > 50
    reset_peak_memory(torch.device("cpu"))
    assert two_gpus == []


def test_metrics_name_the_second_gpu(two_gpus, tmp_path):
    config = OmegaConf.create({"resume": False, "overwrite": False, "device": "cuda:1"})
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    run.finish({})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["device"] == "GPU 1" and metrics["peak_memory_mb"] == 40


def test_the_forecast_asks_the_second_gpu(two_gpus, monkeypatch):
    monkeypatch.setattr(edit, "field_edit_mb", lambda *args: {"all": 2.0})
    prior, prompts = SimpleNamespace(device=SECOND), SimpleNamespace(target=None)
    view, objective = SimpleNamespace(height=4, width=4), SimpleNamespace(unet_graphs=1)
    assert edit._forecast(prior, prompts, None, [view], objective, False, False) == 42


def test_pick_device(two_gpus):
    assert pick_device("cuda:1") == SECOND
    with pytest.raises(UserError, match="cuda:5"):
        pick_device("cuda:5")


def test_the_benchmark_of_images_asks_its_models_device(monkeypatch):
    class Asked(Exception):
        pass

    def ask(device=None):
        raise Asked(device)

    monkeypatch.setattr(images, "reset_peak_memory", ask)
    monkeypatch.setattr(images, "render", lambda scene: None)
    monkeypatch.setattr(images, "build_scene", lambda *args: None)
    monkeypatch.setattr(images.Truth, "of", lambda *args: None)
    with pytest.raises(Asked) as asked:
        images.edit_case(SimpleNamespace(source=0, target=0), None, SimpleNamespace(device=SECOND), None)
    assert asked.value.args == (SECOND,)


def test_no_figure_is_asked_of_whichever_gpu_comes_first():
    calls = (
        r"torch\.cuda\.(get_device_\w+|\w*memory\w*|synchronize)\(\)|(?<!def )\b(reset_peak_memory|\w*memory_mb)\(\)"
    )
    found = []
    for folder in ("cds3d", "tensorf", "scripts"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            found += [f"{file.relative_to(ROOT)}: {m[0]}" for m in re.finditer(calls, file.read_text())]
    assert found == []
