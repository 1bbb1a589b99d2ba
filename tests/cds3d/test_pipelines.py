"""Priors of pipelines that a program has made: the same answers as from a folder, and the pipeline stays as it is."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionInpaintPipeline, UNet2DConditionModel
from tiny_models import build_pipeline, build_xl

from cds3d import LatentImage, Prior, prior_of_pipeline
from cds3d.guidance import Query, load_prior
from tensorf.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "priors.md"
CPU = torch.device("cpu")


def build(kind, folder):
    return build_xl(folder / "tokenizer") if kind == "xl" else build_pipeline(kind, folder / "tokenizer")


def as_it_is(pipeline):
    """All of the networks that a prior might change."""
    found = []
    for name, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            found += [
                (name, key, p.dtype, p.stride(), p.requires_grad, p.detach().clone())
                for key, p in network.named_parameters()
            ]
            found += [
                (name, key, type(m).__name__, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
                for key, m in network.named_modules()
            ]
    return found


def same(a, b):
    return len(a) == len(b) and all(
        all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(mine, theirs, strict=True))
        for mine, theirs in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
def test_answers_are_those_of_the_same_model_from_a_folder(kind, tmp_path):
    pipeline = build(kind, tmp_path)
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    before = as_it_is(pipeline)
    given, loaded = prior_of_pipeline(pipeline), load_prior(str(tmp_path / "model"), device=CPU)
    z, image = torch.randn(1, 4, 6, 9), torch.rand(1, 3, 48, 72)
    answers = []
    for prior in (given, loaded):
        query = Query(z, 321, prior.embed("a red flower"), "self")
        (answer,), (empty,) = prior.ask(query), prior.ask(Query(z, 321, prior.embed("")))
        answers.append([answer.noise, *answer.features, empty.noise, prior.encode_image(image), prior.decode_image(z)])
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)  # sums hang on where memory lies
    LatentImage(image[0], given)
    assert same(as_it_is(pipeline), before)


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_types_are_the_pipelines_unless_others_are_asked_for(kind, tmp_path):
    pipeline = build(kind, tmp_path).to(torch.bfloat16)
    pipeline.vae.float()
    kept, other = prior_of_pipeline(pipeline), prior_of_pipeline(pipeline, dtype="fp32")
    assert (kept.dtype, kept.vae_dtype) == (torch.bfloat16, torch.float32)
    assert (other.dtype, other.vae_dtype) == (torch.float32, torch.float32)
    assert pipeline.unet.dtype == torch.bfloat16


def test_the_code_of_the_page_runs(tiny_folder):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert '"my/model"' in code
    exec(code.replace("my/model", str(tiny_folder)), names := {})
    assert isinstance(names["prior"], Prior)


def with_channels(pipeline, channels):
    config = dict(pipeline.unet.config) | {"in_channels": channels, "_use_default_values": []}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    return pipeline


def changed(pipeline, **parts):
    for name, part in parts.items():
        setattr(pipeline, name, part)
    return pipeline


def inpainting(pipeline):
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def hooked(pipeline):
    pipeline.unet._hf_hook = object()  # as enable_model_cpu_offload does, which needs a GPU
    return pipeline


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: with_channels(p, 9), "the pipeline is an inpainting model"),
        (inpainting, "the pipeline is an inpainting model"),
        (lambda p: p.unet, "the pipeline is a UNet2DConditionModel, which is not supported"),
        (lambda p: changed(p, text_encoder=None), "the pipeline has no text_encoder"),
        (lambda p: changed(p, tokenizer=None), "the pipeline has no tokenizer"),
        (lambda p: changed(p, vae=AutoencoderTiny()), "its vae is of the class AutoencoderTiny, not AutoencoderKL"),
        (hooked, "its unet is offloaded"),
        (lambda p: p.to(torch.float64), "unet is in torch.float64: pass dtype="),
        (lambda p: p.to(torch.float16), "dtype=fp16 needs a GPU"),
    ],
)
def test_other_pipelines_are_refused_in_one_line_before_anything_is_copied(make, told, tmp_path, monkeypatch):
    pipeline = make(build("epsilon", tmp_path))
    monkeypatch.setattr("cds3d.guidance.pipelines.copy", None)
    with pytest.raises(UserError, match=told) as error:
        prior_of_pipeline(pipeline)
    assert "\n" not in str(error.value)
