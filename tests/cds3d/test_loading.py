"""What loads as a prior and what is refused, on tiny folders and files of random weights."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from ldm_layout import original_layout
from safetensors.torch import load_file, save_file
from tiny_models import build_xl, copy_of, only_bin, only_fp16, set_json

from cds3d.guidance import Query, load_prior
from tensorf.errors import UserError

CPU = torch.device("cpu")


def message_of(*args, **kwargs):
    """The UserError that loading ends in; always a single line."""
    with pytest.raises(UserError) as caught:
        load_prior(str(args[0]), *args[1:], device=CPU, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def noise_of(prior, z, t, text, **kwargs):
    with torch.no_grad():
        ((answer,),) = prior.gather(prior.submit(Query(z, t, prior.embed(text), **kwargs)))
    return answer.noise


def assert_same(a, b, **tolerances):
    """Two priors give the same answers, of each network."""
    torch.manual_seed(0)
    z, image = torch.randn(1, 4, 6, 8), torch.rand(1, 3, 32, 24)
    torch.testing.assert_close(a.embed("a red flower").tokens, b.embed("a red flower").tokens, **tolerances)
    torch.testing.assert_close(noise_of(a, z, 100, "a cat"), noise_of(b, z, 100, "a cat"), **tolerances)
    torch.testing.assert_close(a.encode_image(image), b.encode_image(image), **tolerances)
    torch.testing.assert_close(a.decode_image(z), b.decode_image(z), **tolerances)


@pytest.fixture()
def folder(tiny_folder, tmp_path):
    """A copy that a test may change."""
    return copy_of(tiny_folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("xl")
    build_xl(root / "tokenizer").save_pretrained(root / "xl", safe_serialization=True)
    return root / "xl"


# --- folders


def test_networks_are_frozen(prior):
    assert prior.prediction == "epsilon"
    assert prior.alphas.shape == (1000,) and prior.alphas.dtype == torch.float32
    modules = (prior.unet, prior.vae, *prior.text.encoders)
    assert not any(p.requires_grad for m in modules for p in m.parameters())
    assert not any(m.training for m in modules)


def test_a_folder_gives_what_its_pipeline_gives(tiny_folder, prior):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    z = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text, _ = pipeline.encode_prompt("a cat", CPU, 1, False)
        expected = pipeline.unet(z, 100, text).sample
    torch.testing.assert_close(prior.embed("a cat").tokens, text)
    torch.testing.assert_close(noise_of(prior, z, 100, "a cat"), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_variant(folder, prior):
    only_fp16(folder)
    half = load_prior(str(folder), device=CPU)
    assert half.unet.dtype == torch.float32
    assert_same(half, prior, rtol=0.02, atol=0.02)
    weight = load_file(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")["conv_in.weight"]
    assert torch.equal(half.unet.conv_in.weight, weight.float())  # not random ones


def test_one_network_alone_has_a_variant(folder, prior):
    only_fp16(folder)
    for name in ("diffusion_pytorch_model", "model"):
        for file in folder.glob(f"[!u]*/{name}.fp16.safetensors"):  # all but the U-Net
            file.rename(file.with_name(f"{name}.safetensors"))
    assert_same(load_prior(str(folder), device=CPU), prior, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_in_several_files(tiny_folder, tmp_path, prior, variant):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "shards", variant=variant, max_shard_size="100KB")
    assert len(list((tmp_path / "shards" / "unet").glob(f"*.{variant}-*.safetensors"))) > 1
    assert_same(load_prior(str(tmp_path / "shards"), device=CPU), prior, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("files", [{"tokenizer.json", "vocab.json", "merges.txt"}, {"*"}], ids=["vocabulary", "all"])
def test_a_tokenizer_without_its_vocabulary_is_refused(folder, files):
    """transformers makes one of two words of it, with which all prompts are the same."""
    for pattern in files:
        for file in (folder / "tokenizer").glob(pattern):
            file.unlink()
    text = message_of(str(folder))
    assert "tokenizer/ has no vocabulary" in text and "vocab.json" in text


@pytest.mark.parametrize("there", ["fp16", "none"])
def test_a_repository_of_half_precision_alone_is_fetched(tiny_folder, monkeypatch, prior, there):
    """As diffusers answers for one that has no plain weights."""
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    asked = []

    def download(name, variant=None, **options):
        asked.append(variant)
        if variant != there:
            raise ValueError(f"Could not find the necessary `safetensors` weights in set() (variant={variant})")
        return str(tiny_folder)

    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *a, **k: {"_class_name": "StableDiffusionPipeline"})
    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    if there == "fp16":
        assert_same(load_prior("somebody/half", device=CPU), prior)
    else:
        assert "cannot get somebody/half from the hub" in message_of("somebody/half")
    assert asked == [None, "fp16"]


def test_what_is_not_needed_may_be_missing_or_broken(folder, prior):
    index = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    set_json(folder / "model_index.json", **index)
    assert not (folder / "feature_extractor").exists() and not (folder / "safety_checker").exists()
    assert_same(load_prior(str(folder), device=CPU), prior)


def test_home_in_the_path(folder, prior, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same(load_prior("~/copy", device=CPU), prior)
    assert "~/nothing" in message_of("~/nothing")


def test_v_prediction(tiny_v_folder):
    assert load_prior(str(tiny_v_folder), device=CPU).prediction == "v_prediction"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_load_in_the_type_that_they_are_used_in(tiny_folder, dtype, monkeypatch):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    asked = []
    for kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel):
        plain = kind.from_pretrained

        def spy(*args, plain=plain, **kwargs):
            loaded, told = plain(*args, **kwargs)
            asked.append({p.dtype for p in loaded.parameters()})
            return loaded, told

        monkeypatch.setattr(kind, "from_pretrained", spy)
    load_prior(str(tiny_folder), dtype=dtype, device=CPU)
    assert asked == [{{"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]}] * 3


def test_hub_id_in_the_cache_loads_without_a_network(tiny_folder, tmp_path, monkeypatch, prior):
    _offline(monkeypatch, tmp_path)
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert_same(load_prior("somebody/tiny", device=CPU), prior)


def test_hub_id_without_a_network(monkeypatch, tmp_path):
    _offline(monkeypatch, tmp_path)
    text = message_of("CompVis/stable-diffusion-v1-4")
    assert "hf download CompVis/stable-diffusion-v1-4 --local-dir" in text
    assert "guidance.path=FOLDER" in text and "guidance=pocket" in text and "HF_HUB_OFFLINE" in text


def _offline(monkeypatch, cache):
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


# --- single files


def test_single_file_loads_as_the_folder_it_came_from(tiny_folder, prior, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_folder))
    assert_same(single, prior)


def test_single_file_takes_prediction_from_the_configuration(tiny_folder, tiny_v_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_v_folder))
    assert single.prediction == "v_prediction"


def test_a_single_file_that_says_v_prediction_needs_a_configuration_that_does(tiny_folder, tiny_v_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    weights = original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None))
    save_file(weights | {"v_pred": torch.zeros(0)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="was trained with v-prediction, and its configuration says epsilon"):
        load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_folder))
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_v_folder))
    assert single.prediction == "v_prediction"


def test_single_xl_file_loads_as_the_folder_it_came_from(xl_folder, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    save_file(original_layout(pipeline), tmp_path / "xl.safetensors")
    single = load_prior(str(tmp_path / "xl.safetensors"), device=CPU, config=str(xl_folder))
    folder = load_prior(str(xl_folder), device=CPU)
    assert_same(single, folder)
    torch.testing.assert_close(single.embed("a cat").pooled, folder.embed("a cat").pooled)


def test_single_file_with_the_configuration_of_another_kind(tiny_folder, xl_folder, prior, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    text = message_of(tmp_path / "model.safetensors", config=str(xl_folder))
    assert "kind xl" in text and "kind sd" in text


STEM = "model.diffusion_model.input_blocks.0.0.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({STEM: 9, TEXT: 4}, "inpainting"),
        ({STEM: 8, TEXT: 4}, "InstructPix2Pix"),
        ({STEM: 7, TEXT: 4}, "upscaler"),
        ({STEM: 6, TEXT: 4}, "6 input channels"),
        ({STEM: 4, "conditioner.embedders.0.model.text_projection": 4}, "refiner"),
        ({STEM: 4, "conditioner.embedders.1.model.text_projection": 4}, "VAE"),
        ({STEM: 4, "edm_mean": 4}, "EDM"),
        ({STEM: 4, "first_stage_model.decoder.conv_in.weight": 4}, "text encoder"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": 4}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": 4}, "Flux"),
        ({"lora_unet_down_blocks_0.lora_up.weight": 4}, "LoRA"),
        ({"conv_in.weight": 4}, "whole folder"),
        ({"weights": 4}, "no model that is known"),
    ],
)
def test_single_files_that_are_refused(tmp_path, shapes, told):
    save_file({key: torch.zeros(2, channels, 3, 3) for key, channels in shapes.items()}, tmp_path / "x.safetensors")
    text = message_of(tmp_path / "x.safetensors")
    assert told in text and "x.safetensors" in text and "SDXL base 1.0" in text


def test_corrupt_single_file(tiny_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a safetensors file at all")
    assert str(path) in message_of(path, config=str(tiny_folder))


def test_single_file_that_lacks_weights(tiny_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    tensors = original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None))
    kept = {k: v for k, v in tensors.items() if "middle_block" not in k}
    save_file(kept, tmp_path / "model.safetensors")
    text = message_of(tmp_path / "model.safetensors", config=str(tiny_folder))
    assert "weights of model.diffusion_model.* are missing" in text


def test_missing_single_file(tmp_path):
    assert "no such file" in message_of(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert ".safetensors" in message_of(tmp_path / name)


# --- types


def test_unknown_dtype():
    assert "fp32, bf16, fp16" in message_of("pocket", dtype="fp8")


def test_fp16_on_a_cpu():
    assert "use fp32 or bf16" in message_of("pocket", dtype="fp16")


# --- folders that are refused


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("StableDiffusionXLInpaintPipeline", "inpainting"),
        ("StableDiffusionInstructPix2PixPipeline", "InstructPix2Pix"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "Flux"),
        ("Flux2Pipeline", "Flux"),
        ("StableDiffusionUpscalePipeline", "upscaler"),
        ("StableDiffusionDepth2ImgPipeline", "depth"),
        ("LatentConsistencyModelPipeline", "latent consistency"),
        ("KandinskyPipeline", "KandinskyPipeline"),
        (None, "not supported"),
        (["pipeline", "Custom"], "not supported"),
    ],
)
def test_pipelines_that_are_refused(tmp_path, name, told):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    text = message_of(tmp_path)
    assert told in text and str(tmp_path) in text and "guidance=sd14" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"in_channels": 8}, "InstructPix2Pix"),
        ({"in_channels": 7}, "upscaler"),
        ({"in_channels": 16}, "16 input channels"),
        ({"time_cond_proj_dim": 256}, "latent consistency"),
    ],
)
def test_networks_that_take_more_than_text(folder, changes, told):
    set_json(folder / "unet" / "config.json", **changes)
    assert told in message_of(folder)


def test_refiner(xl_folder, tmp_path):
    folder = copy_of(xl_folder, tmp_path / "refiner")
    set_json(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    assert "refiner" in message_of(folder)


def test_schedules_of_other_kinds(folder):
    set_json(folder / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    assert "EDM" in message_of(folder)


def test_latents_of_other_kinds(folder):
    set_json(folder / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert "normalised" in message_of(folder)


def test_scheduler_that_predicts_neither(folder):
    set_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "epsilon and v_prediction" in message_of(folder)


def test_pickled_folder(folder):
    only_bin(folder)
    text = message_of(folder)
    assert "run code" in text and "use_safetensors=False" in text and str(folder) in text


def test_the_command_in_that_line_converts(folder, prior, tmp_path):
    import subprocess
    import sys

    only_bin(folder)
    code = message_of(folder).split('python -c "')[1].split('"')[0].replace("'NEW'", repr(str(tmp_path / "new")))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True)
    assert_same(load_prior(str(tmp_path / "new"), device=CPU), prior)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_folder_that_lacks_a_part(folder, name):
    shutil.rmtree(folder / name)
    assert f"it has no {name}/" in message_of(folder)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_folder_that_lacks_a_networks_configuration(folder, name):
    (folder / name / "config.json").unlink()
    assert f"it has no {name}/config.json" in message_of(folder)


def test_an_index_that_names_no_pipeline(folder):
    (folder / "model_index.json").write_text("{}")
    assert "does not say of which pipeline" in message_of(folder)


def test_folder_that_lacks_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "no weights in vae/" in message_of(folder)


def test_network_that_lacks_weights(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "mid_block" not in k}
    save_file(kept, file, metadata={"format": "pt"})
    assert "weights of unet/ are missing" in message_of(folder)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe{"])
def test_damaged_files_in_a_folder(folder, file, content):
    (folder / file).write_bytes(content)
    assert str(folder) in message_of(folder)


def test_folder_that_holds_a_single_file(tmp_path):
    (tmp_path / "v1.safetensors").write_bytes(b"x")
    text = message_of(tmp_path)
    assert "no model_index.json" in text and "v1.safetensors" in text


@pytest.mark.parametrize("path", ["./nowhere", "/no/where/at/all", "one/two/three", "name"])
def test_missing_folder(path):
    text = message_of(path)
    assert path in text and "no such folder" in text


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("vae/config.json", {"scaling_factor": [0.5]}, "scaling_factor"),
        ("vae/config.json", {"scaling_factor": -1}, "scaling_factor"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": [77]}, "tokenizer"),
        ("vae/config.json", {"shift_factor": "a"}, "the VAE cannot encode and decode"),
        ("unet/config.json", {"class_embed_type": "identity"}, "the U-Net cannot work with the latents"),
    ],
)
def test_configurations_that_no_network_can_work_with(folder, file, changes, told):
    set_json(folder / file, **changes)
    with pytest.raises(UserError, match=f"guidance.path={folder}.*{told}"):
        load_prior(str(folder), device=torch.device("cpu"))


def test_a_vae_of_another_scale(folder):
    kinds = {"down_block_types": 3 * ("DownEncoderBlock2D",), "up_block_types": 3 * ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(**kinds, block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    assert "64x64 pixels become latents [1, 4, 16, 16]" in message_of(folder)
