"""SDXL against diffusers' own pipeline, and whole edits with a tiny one from the command line."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image
from tiny_models import build_xl

from cds3d.cli import run_command
from cds3d.commands.preparing import configured_prior
from cds3d.guidance import Query, load_prior
from cds3d.options import load_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[True, False], ids=["zeros", "text"])
def folder(tmp_path_factory, request):
    """SDXL's empty prompt is all zeros; other models of the class embed the empty text."""
    root = tmp_path_factory.mktemp("xl")
    build_xl(root / "tokenizer", zero_empty=request.param).save_pretrained(root / "xl", safe_serialization=True)
    return root / "xl"


@pytest.fixture(scope="module")
def xl(folder):
    return load_prior(str(folder), device=CPU)


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)


def embeddings(pipeline, text):
    """(tokens, pooled) of a prompt, and of no prompt, as the pipeline makes them."""
    tokens, null, pooled, null_pooled = pipeline.encode_prompt(text, device=CPU, num_images_per_prompt=1)
    return (tokens, pooled), (null, null_pooled)


@pytest.mark.parametrize("text", ["a red flower", " ".join(["red"] * 100)])
def test_prompts_are_the_pipelines(xl, pipeline, text):
    with torch.no_grad():
        (tokens, pooled), (null, null_pooled) = embeddings(pipeline, text)
    prompt, empty = xl.embed(text), xl.embed("")
    assert prompt.tokens.shape == (1, 16, 72) and prompt.pooled.shape == (1, 40)
    torch.testing.assert_close(prompt.tokens, tokens)
    torch.testing.assert_close(prompt.pooled, pooled)
    torch.testing.assert_close(empty.tokens, null)
    torch.testing.assert_close(empty.pooled, null_pooled)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
def test_noise_is_what_the_pipeline_predicts(xl, pipeline, height, width):
    torch.manual_seed(0)
    z_t, t = torch.randn(1, 4, height, width), 321
    seen = {}

    def stop(_unet, args, kwargs):
        seen.update(kwargs)
        raise StopIteration

    hook = pipeline.unet.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(StopIteration):  # the pipeline's own arguments, of its first step
        pipeline("a red flower", height=8 * height, width=8 * width, guidance_scale=7.5)
    hook.remove()
    conditions = {"encoder_hidden_states": seen["encoder_hidden_states"]}
    conditions["added_cond_kwargs"] = seen["added_cond_kwargs"]
    with torch.no_grad():
        null, text = pipeline.unet(z_t.expand(2, -1, -1, -1), t, **conditions).sample
        ((empty, red),) = xl.gather(xl.submit(Query(z_t, t, xl.embed("")), Query(z_t, t, xl.embed("a red flower"))))
    torch.testing.assert_close(empty.noise[0], null, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(red.noise[0], text, rtol=1e-4, atol=1e-5)
    assert (red.noise - empty.noise).norm() > 1e-3 * red.noise.norm()


def test_features_are_of_the_layers_that_have_attention(xl):
    # One up-block of two layers, each a transformer of two blocks; the block at full size has no attention.
    z_t = torch.randn(1, 4, 6, 8)
    ((answer,),) = xl.gather(xl.submit(Query(z_t, 10, xl.embed("a dog"), "self")))
    assert [m.shape for m in answer.features] == [(64, 3, 4)] * 4


def test_latents_are_the_pipelines(xl, pipeline):
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = xl.encode_image(image)
        expected = pipeline.vae.encode(image * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
        decoded = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(xl.decode_image(z), (decoded / 2 + 0.5).clamp(0, 1))


# --- whole edits

EDIT = ["--src", "a yellow flower", "--tgt", "a red flower", "guidance=sdxl", "edit.iterations=2", "threads=1"]


def test_edit_of_an_image(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (17, 23, 3), dtype=np.uint8)
    Image.fromarray(picture).save("flower.png")
    options = [
        "--image",
        "flower.png",
        "edit=latent",
        f"guidance.path={folder}",
        "output=run",
        *EDIT,
        "guidance.image_width=null",
    ]
    assert run_command("edit", options) == 0
    assert iio.imread("run/edited.png").shape == (17, 23, 3)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["iterations"] == 2 and metrics["psnr_to_source_db"] > 0


def test_a_preset_of_the_other_kind_is_told(folder, tiny_folder, caplog):
    for preset, path, right in (("sdxl", folder, None), ("sd15", folder, "sdxl"), ("sdxl", tiny_folder, "sd15")):
        caplog.clear()
        configured_prior(load_config("edit", [f"guidance={preset}", f"guidance.path={path}"]), torch.device("cpu"))
        told = f"guidance={preset} is not for a model such as {path}: use guidance={right} guidance.path={path}"
        assert (told in caplog.text) == (right is not None) == ("is not for" in caplog.text)


def test_edit_of_a_field(folder, capture_folder, source_run, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(source_run, tmp_path / "outputs" / "daisies" / "source")
    options = ["--capture", str(capture_folder), f"guidance.path={folder}", "edit.width=48", "output=run"]
    assert run_command("edit", [*options, *EDIT, *TINY_SCENE, *TINY_FIELD]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "metrics.json").read_text())["iterations"] == 2
    source = (tmp_path / "outputs" / "daisies" / "source" / "field.safetensors").read_bytes()
    assert (run / "field.safetensors").read_bytes() != source
