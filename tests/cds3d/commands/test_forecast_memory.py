"""scripts/forecast_memory.py: models of the published sizes, and a table that adds up."""

import json
import logging

import pytest
import torch
from checks import load_script
from diffusers.utils import logging as diffusers_logging

from cds3d.bench import random_model
from cds3d.bench.random_model import random_prompts, random_sd, random_sdxl, text_parameters


def test_the_table_of_published_models_adds_up(monkeypatch, tmp_path, capsys):
    script = load_script("forecast_memory")
    models = {"sd": ("tiny", lambda dtype, device: random_sd(dtype, device, share=10), "sd14")}
    monkeypatch.setattr(script, "MODELS", models)
    script.main(["--models", "sd", "--device", "cpu", "edit.width=64", "--output", str(tmp_path)])
    (row,) = json.loads((tmp_path / "forecast.json").read_text())["rows"]
    assert row["view"] == "64x48" and row["weights_mb"] > 1 and row["networks_mb"] > 1
    assert row["total_mb"] == pytest.approx(sum(v for k, v in row.items() if k.endswith("_mb") and k != "total_mb"))
    script.main(["--models", "sd", "--device", "cpu", "edit.width=64", "edit=shape", "--output", str(tmp_path)])
    (local,) = json.loads((tmp_path / "forecast.json").read_text())["rows"]
    assert local["region_mb"] > 0 and "region_mb" not in row
    assert f"| tiny | bf16 | 64x48 | {row['weights_mb'] / 1024:.1f} |" in capsys.readouterr().out


def test_random_xl_has_the_published_size():
    with torch.device("meta"):  # sizes alone
        prior = random_sdxl(torch.bfloat16, torch.device("meta"))
    assert sum(p.numel() for p in prior.unet.parameters()) == 2_567_463_684
    assert {p.dtype for p in prior.unet.parameters()} == {torch.bfloat16}
    assert all(prompt.pooled.shape == (1, 1280) for prompt in random_prompts(prior).__dict__.values())


def test_text_encoders_have_the_published_sizes():
    assert text_parameters(xl=False) == 123_060_480
    assert text_parameters(xl=True) == 123_060_480 + 694_659_840


def test_diffusers_tells_errors_only_meanwhile_and_afterwards_what_it_told_before(monkeypatch):
    before, meanwhile = diffusers_logging.get_verbosity(), []
    monkeypatch.setattr(random_model, "Prior", lambda **_: meanwhile.append(diffusers_logging.get_verbosity()))
    try:
        diffusers_logging.set_verbosity_info()
        random_sd(torch.bfloat16, torch.device("cpu"), share=10)
        with torch.device("meta"):
            random_sdxl(torch.bfloat16, torch.device("meta"))
        assert meanwhile == 2 * [logging.ERROR]  # else it would warn of every cast
        assert diffusers_logging.get_verbosity() == logging.INFO
    finally:
        diffusers_logging.set_verbosity(before)
