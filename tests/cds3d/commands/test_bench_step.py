"""scripts/bench_step.py: the published flow, written anew there, and ours give one gradient."""

import json

import pytest
from checks import load_script


@pytest.mark.parametrize("prediction", ["tiny_folder", "tiny_v_folder"])
def test_our_gradient_is_the_published_one(prediction, request, tmp_path, capsys):
    script, folder = load_script("bench_step"), request.getfixturevalue(prediction)
    sizes = ["--latents", "9x7", "8x8", "--images", "76x61"]  # of odd sizes too, rounded down to latents of 9x7
    options = [
        "--model",
        str(folder),
        "--dtypes",
        "fp32",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
        *sizes,
    ]
    script.main([*options, "--json", str(tmp_path / "step.json")])
    result = json.loads((tmp_path / "step.json").read_text())
    assert [row["kind"] for row in result["rows"]] == ["latent", "latent", "image"]
    assert result["gradient_relative_error"] < 5e-5
    assert result["ratio_fp32"] == max(row["ratio"] for row in result["rows"][:2])
    assert str(tmp_path / "step.json") in capsys.readouterr().out
