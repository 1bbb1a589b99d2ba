"""scripts/gpu_check.py without a GPU: on the CPU, on the device of `fake_device`, and with wrong results."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from checks import load_script
from fake_device import DEVICE

from cds3d.bench import gpu_agreement, gpu_speed
from cds3d.bench.gpu_agreement import Check, quick_setting
from cds3d.bench.gpu_speed import QUICK, Figure, counted_waits, run_within
from tensorf import lookup

CPU = torch.device("cpu")


@pytest.fixture()
def check(tmp_path, tiny_folder, capture_folder, monkeypatch):
    """Run parts of the script on the CPU -> (exit code, results, tables)."""
    script = load_script("gpu_check")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(gpu_agreement, "SPACES", ("ndc",))
    monkeypatch.setattr(gpu_agreement, "KINDS", ("vm",))

    def run(*parts):
        file = tmp_path / "bench" / "gpu.json"
        options = ["--quick", "--device", "cpu", "--model", str(tiny_folder), "--capture", str(capture_folder)]
        code = script.main([*options, "--json", str(file), "--only", *parts])
        return code, json.loads(file.read_text()), file.with_suffix(".md").read_text()

    run.script = script
    return run


def test_comparisons_hold_on_the_cpu(check, capsys):
    code, result, tables = check("fields", "steps", "edits", "training", "tcnn")
    assert code == 0 and "comparisons held" in capsys.readouterr().out
    found = [c for part in result["parts"].values() for c in part["checks"]]
    assert len(found) == 2 + 6 + 2 + 1 and all(c["passed"] for c in found)
    assert result["parts"]["tcnn"]["skipped"] and "tcnn was left out" in tables
    assert tables.count("| yes |") == len(found) and "**no**" not in tables


def wrong_lookup(monkeypatch):
    """What stands in for the GPU reads its tables 10% too high."""
    bilinear = lookup.bilinear
    monkeypatch.setattr(lookup, "bilinear", lambda table, points: 1.1 * bilinear(table, points))


def wrong_network(monkeypatch):
    """What stands in for the GPU has weights that are 10% too large; the first model loaded is the CPU's."""
    load, loaded = gpu_agreement.load_prior, []

    def load_prior(*args, **kwargs):
        prior = load(*args, **kwargs)
        loaded.append(prior)
        if len(loaded) > 1:
            for p in (*prior.unet.parameters(), *prior.vae.parameters()):
                p.mul_(1.1)
        return prior

    monkeypatch.setattr(gpu_agreement, "load_prior", load_prior)


@pytest.mark.parametrize(
    ("part", "wrong"), [("fields", wrong_lookup), ("steps", wrong_network), ("edits", wrong_network)]
)
def test_a_wrong_device_is_noticed(part, wrong, check, monkeypatch, capsys):
    wrong(monkeypatch)
    code, result, tables = check(part)
    failed = [c["what"] for c in result["parts"][part]["checks"] if not c["passed"]]
    assert code == 1 and failed and "**no**" in tables and "did NOT hold" in capsys.readouterr().out
    if part == "fields":
        assert len(failed) == 2  # the render, and the gradient


def test_limits():
    assert Check("", "", 50.0, 50.0, "dB at least").passed and not Check("", "", 49.9, 50.0, "dB at least").passed
    assert Check("", "", 0.1, 0.1, "at most").passed and not Check("", "", 0.11, 0.1, "at most").passed
    for unit in ("dB at least", "at most"):
        assert not Check("", "", math.nan, 1.0, unit).passed


# --- parts that fail


def failing(*_):
    yield Figure("edit", "a first figure", 1.0, "s")
    raise RuntimeError("out of memory\nand more")


def agreeing(*_):
    yield Check("training", "a comparison", 0.5, 1.0, "at most")


def test_a_failed_part_hides_no_other(check, monkeypatch):
    monkeypatch.setitem(gpu_agreement.PARTS, "training", agreeing)
    monkeypatch.setitem(gpu_speed.PARTS, "edit", failing)
    code, result, tables = check("edit", "training")
    assert code == 0  # no comparison failed
    assert result["parts"]["edit"]["error"] == "RuntimeError: out of memory"
    assert result["parts"]["edit"]["figures"][0]["value"] == 1 and result["parts"]["training"]["checks"]
    assert "| edit | a first figure | 1 s |" in tables and "edit failed: RuntimeError: out of memory" in tables
    monkeypatch.setitem(gpu_agreement.PARTS, "steps", failing)
    assert check("steps", "training")[0] == 1


def test_a_gpu_that_answers_no_more_is_tried_from_another_process(check, monkeypatch):
    calls = []

    def run(command, check):
        calls.append(command)
        file = command[command.index("--json") + 1]
        with open(file, "w") as f:
            json.dump({"parts": {"steps": {"checks": [], "error": "CUDA error", "skipped": False}}}, f)

    monkeypatch.setitem(gpu_agreement.PARTS, "training", agreeing)
    monkeypatch.setattr(check.script, "alive", lambda device: False)
    monkeypatch.setattr(check.script, "subprocess", SimpleNamespace(run=run))
    code, result, _ = check("training", "steps", "edit")
    assert calls[0][-3:] == ["--only", "steps", "edit"] and "--quick" in calls[0]
    assert set(result["parts"]) == {"training", "steps", "edit"} and code == 1
    assert result["parts"]["edit"]["error"] == "the process ended without a result"


# --- what is measured


def test_measured_parts_run(check):
    code, result, tables = check("train", "edit", "sd-steps", "sd-edit", "published")
    figures = {name: part["figures"] for name, part in result["parts"].items()}
    assert code == 0 and not any(part["error"] for part in result["parts"].values())
    assert all(f["value"] > 0 for several in figures.values() for f in several)
    assert [f["what"] for f in figures["sd-edit"]][1:] == ["peak memory of the edit", "the forecast of that peak"]
    assert figures["sd-edit"][0]["target"] == "60 s" and figures["published"][0]["target"] == "180 s"
    assert len(figures["sd-steps"]) == 4 and "channels_last" in tables and "contiguous_format" in tables


def test_steps_end_with_their_budget_and_are_scaled_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gpu_speed.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 2.0

    assert run_within(step, 3, 100.0, CPU) == (3, 6.0)
    assert run_within(step, 100, 5.0, CPU) == (3, 6.0)  # the last one begins at 4 s
    trainer = SimpleNamespace(device=CPU, field=SimpleNamespace(resolution=(3, 2, 1)))
    whole, part = (gpu_speed._training_figures("train", trainer, 3, 6.0, n, "on small grids")[0] for n in (3, 30))
    assert whole.value == 6 and whole.note == ""
    assert part.value == 60 and part.note == "extrapolated from 3 steps, 6.0 s, on small grids"
    assert "grids of 3x2x1" in part.what


def test_waits_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with counted_waits() as places:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert sum(places.values()) == 2 and all(p.startswith("test_gpu_check.py:") for p in places)
    assert modes == ["warn", "default"]


@pytest.mark.parametrize("part", ["fields", "steps", "train", "edit", "sd-steps"])
def test_nothing_mixes_devices(part, there, capture_folder, monkeypatch):
    """The parts themselves, on a device that refuses to mix with the CPU."""
    monkeypatch.setattr(gpu_agreement, "SPACES", ("box",))
    monkeypatch.setattr(gpu_agreement, "KINDS", ("vm",))
    monkeypatch.setattr(gpu_agreement, "STEP_LIMITS", {"fp32": 2e-3})
    setting = quick_setting(capture_folder, "")
    if part in gpu_agreement.PARTS:
        found = list(gpu_agreement.PARTS[part](DEVICE, setting))
        assert found and all(check.passed for check in found)
    elif part == "sd-steps":
        assert list(gpu_speed._sd_steps(DEVICE, QUICK, torch.channels_last))
    else:
        assert list(gpu_speed.PARTS[part](DEVICE, setting, QUICK))
