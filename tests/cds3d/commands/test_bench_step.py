"""scripts/bench_step.py: the published flow, written anew there, and ours give one gradient."""

import json

import pytest
import torch
from checks import load_script
from tiny_models import build_xl

from cds3d.guidance import load_prior
from tensorf.errors import UserError


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


def test_the_published_flow_computes_what_a_prior_leaves_out():
    script, prior = load_script("bench_step"), load_prior("pocket", device=torch.device("cpu"))
    reference = script.reference_of(prior, torch.cat([prior.embed("").tokens, *2 * [prior.embed("a cat").tokens]]))
    blocks = [type(m).__name__ for m in reference.vae.encoder.modules()]
    assert blocks.count("ResnetBlock2D") == 6 and "Shortcut" not in blocks
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reference.encode(image), prior.encode_image(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, told",
    [
        (["--model", "./nope"], "nope"),
        (["--dtypes", "fp16"], "fp16 needs a GPU"),
        (["--device", "cuda:9"], "device=cuda:9 cannot be used"),
        (["--model", "xl"], "not for SDXL"),
    ],
)
def test_what_is_wrong_is_told(options, told, tmp_path):
    if options[-1] == "xl":
        build_xl(tmp_path / "tokenizer").save_pretrained(tmp_path / "xl", safe_serialization=True)
        options = ["--model", str(tmp_path / "xl")]
    given = ["--device", "cpu", "--latents", "9x7", "--images", "--json", str(tmp_path / "step.json"), *options]
    with pytest.raises(UserError, match=told):
        load_script("bench_step").main(given)
    assert not (tmp_path / "step.json").exists()


@pytest.mark.parametrize("size", ["31", "0x7", "9x7x5", "9xa"])
def test_a_size_is_width_and_height(size, capsys):
    with pytest.raises(SystemExit):
        load_script("bench_step").main(["--latents", size])
    assert f"{size} has to be WIDTHxHEIGHT" in capsys.readouterr().err
