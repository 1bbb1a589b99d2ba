"""What loads as a prior and what is refused, on tiny folders and files of random weights."""

import errno
import json
import logging
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EDMEulerScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from ldm_layout import original_layout
from safetensors.torch import load_file, save_file
from tiny_models import build_xl, copy_of, only_bin, only_fp16, set_json
from transformers.utils import logging as transformers_logging

from cds3d.guidance import Prior, Query, load_prior, loading
from cds3d.guidance.loading import _try
from tensorf.errors import UserError

CPU = torch.device("cpu")
LIBRARIES = (diffusers_logging, transformers_logging)


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
        text = message_of("somebody/half")
        assert "cannot get somebody/half from the hub: it has only pickled weights" in text
        assert "from_pretrained('somebody/half', use_safetensors=False)" in text and "hf download" not in text
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


def of_the_hub(name, status):
    """As the hub's client raises it."""
    kind = getattr(errors, name, errors.EntryNotFoundError)  # which is it in earlier clients
    return kind("told by the hub\nin two lines", response=SimpleNamespace(headers={}, request=None, status_code=status))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (of_the_hub("GatedRepoError", 403), "it is gated: ask for access at https://huggingface.co/somebody/model"),
        (of_the_hub("RepositoryNotFoundError", 404), "there is no such model, or it is private: mind the spelling"),
        (of_the_hub("RevisionNotFoundError", 404), "it has no revision None"),
        (of_the_hub("RemoteEntryNotFoundError", 404), "it lacks what belongs to such a model (somebody/model does not"),
        (of_the_hub("HfHubHTTPError", 403), "the hub refuses it (told by the hub): log in with `hf auth login`"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room in "),
    ],
)
def test_what_a_network_alone_does_not_help(monkeypatch, error, told):
    """As diffusers tells it, which wraps what the hub's client raises."""

    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    text = message_of("somebody/model")
    assert f"cannot get somebody/model from the hub: {told}" in text and "where there is a network" not in text


def test_the_reason_is_told_where_a_network_may_help(monkeypatch):
    def load_config(*args, **kwargs):
        raise OSError("the server is on fire\nand more")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    assert "from the hub (the server is on fire): download it where there is a network" in message_of("somebody/model")


def test_a_full_disk_in_the_midst_of_a_download(monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("Data processing error: No space left on device (os error 28)")

    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *a, **k: {"_class_name": "StableDiffusionPipeline"})
    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    assert "the disk is full" in message_of("somebody/model")  # which a sweep tries again


def _offline(monkeypatch, cache):
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


# --- single files


def test_single_file_loads_as_the_folder_it_came_from(tiny_folder, prior, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_folder))
    assert_same(single, prior)


def test_single_file_takes_prediction_from_the_configuration(tiny_folder, tiny_v_folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_v_folder))
    assert single.prediction == "v_prediction"


def test_a_single_file_that_says_v_prediction_needs_a_configuration_that_does(tiny_folder, tiny_v_folder, tmp_path):
    weights = original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None))
    save_file(weights | {"v_pred": torch.zeros(0)}, tmp_path / "model.safetensors")
    told = "was trained with prediction_type=v_prediction, and its configuration says prediction_type=epsilon"
    with pytest.raises(UserError, match=told):
        load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_folder))
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_v_folder))
    assert single.prediction == "v_prediction"


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_a_single_file_that_says_zero_snr_needs_a_configuration_that_does(tiny_v_folder, tmp_path, scheduler):
    weights = original_layout(StableDiffusionPipeline.from_pretrained(tiny_v_folder, safety_checker=None))
    save_file(weights | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "model.safetensors")
    config = copy_of(tiny_v_folder, tmp_path / "config")
    set_json(config / "model_index.json", scheduler=["diffusers", scheduler])
    set_json(config / "scheduler" / "scheduler_config.json", _class_name=scheduler)
    text = message_of(tmp_path / "model.safetensors", config=str(config))
    assert "was trained with prediction_type=v_prediction, rescale_betas_zero_snr=True, and its configuration" in text
    set_json(config / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    single = load_prior(str(tmp_path / "model.safetensors"), device=CPU, config=str(config))
    assert single.alphas[999] < 1e-6 < 1e-3 < single.alphas[900]
    assert torch.equal(single.alphas, load_prior(str(config), device=CPU).alphas)


def test_schedules_of_other_kinds_in_a_configuration_from_the_hub(tiny_folder, tmp_path, monkeypatch):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    pipeline.scheduler = EDMEulerScheduler()
    monkeypatch.setattr(AutoencoderKL, "from_single_file", lambda *args, **more: pipeline.vae)
    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", lambda *args, **more: pipeline)
    text = message_of(tmp_path / "model.safetensors", config="somebody/model")
    assert "somebody/model is a model with a noise schedule of another kind" in text


def test_single_xl_file_loads_as_the_folder_it_came_from(xl_folder, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    save_file(original_layout(pipeline), tmp_path / "xl.safetensors")
    single = load_prior(str(tmp_path / "xl.safetensors"), device=CPU, config=str(xl_folder))
    folder = load_prior(str(xl_folder), device=CPU)
    assert_same(single, folder)
    torch.testing.assert_close(single.embed("a cat").pooled, folder.embed("a cat").pooled)


def test_single_file_with_the_configuration_of_another_kind(tiny_folder, xl_folder, prior, tmp_path):
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
        ({STEM: 4, "edm_vpred.sigma_max": 4}, "EDM"),
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


def test_a_configuration_that_is_not_there(tiny_folder, tmp_path, monkeypatch):
    _offline(monkeypatch, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)), path)
    for config in (str(tmp_path / "nowhere"), "./nowhere", "nowhere", str(path)):
        assert f"guidance.config={config}: no such folder" in message_of(path, config=config)
    text = message_of(path, config="some/where")
    assert "with guidance.config=some/where of the hub (HF_HUB_OFFLINE is set)" in text
    assert "`hf download some/where --local-dir FOLDER`, and pass guidance.config=FOLDER" in text


def test_a_folder_takes_no_configuration_of_another(tiny_folder):
    for path in (tiny_folder, "pocket", "somebody/model"):
        assert "guidance.config=elsewhere is of a single file, which" in message_of(path, config="elsewhere")


def test_a_configuration_of_another_size(tiny_folder, tmp_path):
    path, config = tmp_path / "model.safetensors", copy_of(tiny_folder, tmp_path / "config")
    save_file(original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)), path)
    set_json(config / "unet" / "config.json", block_out_channels=[32, 128])
    text = message_of(path, config=str(config))
    assert f"guidance.config={config} has to be of the same model" in text and "network" not in text


def test_single_file_that_lacks_weights(tiny_folder, tmp_path):
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


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="device=cuda:77 cannot be used"):
        load_prior("pocket", device="cuda:77")


@pytest.mark.parametrize("works", [True, False])
def test_other_libraries_are_silent_meanwhile_and_then_tell_what_they_told_before(tiny_folder, works, monkeypatch):
    meanwhile = []
    monkeypatch.setattr(loading, "_check", lambda *_: meanwhile.extend(lib.get_verbosity() for lib in LIBRARIES))
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    try:
        for library in LIBRARIES:
            library.set_verbosity_info()
            library.enable_progress_bar()
        with nullcontext() if works else pytest.raises(UserError):
            load_prior(str(tiny_folder if works else tiny_folder / "unet"), device=CPU)
        assert meanwhile == works * [logging.ERROR] * 2
        assert all(library.get_verbosity() == logging.INFO for library in LIBRARIES)
        assert all(library.is_progress_bar_enabled() for library in LIBRARIES)
        assert not are_progress_bars_disabled()
        disable_progress_bars()
        load_prior(str(tiny_folder), device=CPU)
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
        for library, (verbosity, bars) in zip(LIBRARIES, before, strict=True):
            library.set_verbosity(verbosity)
            (library.enable_progress_bar if bars else library.disable_progress_bar)()


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


def test_the_home_folder_is_spelled_out_in_the_command_that_converts(folder, monkeypatch):
    only_bin(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert f"from_pretrained('{folder}'" in message_of(f"~/{folder.name}")


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


# --- networks that overflow, and too little memory


def scaled(folder, part, name, factor):
    """The folder, with one weight of a network multiplied."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    weights[name] *= factor
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [
        ("text_encoder", "embeddings.position_embedding.weight", "the text encoder"),
        ("vae", "encoder.conv_in.weight", "the VAE's encoder"),
        ("vae", "decoder.conv_in.weight", "the VAE's decoder"),
        ("unet", "conv_in.weight", "the U-Net"),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_networks_whose_answers_are_not_finite(folder, part, name, told, dtype):
    (file,) = (folder / part).glob("*.safetensors")
    name = next(key for key in load_file(file) if key.endswith(name))
    text = message_of(scaled(folder, part, name, float("inf")), dtype=dtype)
    assert f"guidance.path={folder}: {told} gives numbers that are not finite" in text
    if "decoder" not in told:  # which has words of its own
        assert ("use guidance.dtype=fp32" if dtype == "bf16" else "weights are damaged") in text


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [
        ("vae", "encoder.conv_in.weight", "the VAE's encoder gives .*: use guidance.dtype=bf16 or fp32"),
        ("vae", "decoder.conv_in.weight", "the VAE's decoder gives .*: use guidance.dtype="),
        ("unet", "conv_out.weight", "the U-Net gives .*: use guidance.dtype=bf16 or fp32"),
    ],
)
def test_networks_that_overflow_in_half_precision(folder, part, name, told):
    prior = load_prior(str(scaled(folder, part, name, 1e6)), device=CPU)
    parts = {"unet": prior.unet, "vae": prior.vae, "text": prior.text, "alphas": prior.alphas}
    half = Prior(**parts, prediction=prior.prediction, device=CPU, dtype=torch.float16)
    with pytest.raises(UserError, match=told):
        _try("here", half)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("place", ["embed", "encode_image", "decode_image", "ask"])
def test_a_model_without_room_is_not_called_wrong(tiny_folder, monkeypatch, error, place):
    def full(*args):
        raise error

    monkeypatch.setattr(Prior, place, full)
    with pytest.raises(type(error)) as caught:
        load_prior(str(tiny_folder), device=CPU)
    assert caught.value is error


def test_weights_without_room_are_not_called_wrong(tiny_folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    path = tmp_path / "model.safetensors"
    save_file(original_layout(StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)), path)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", full)
    monkeypatch.setattr(AutoencoderKL, "from_single_file", full)
    for given, config in ((tiny_folder, None), (path, str(tiny_folder))):
        with pytest.raises(MemoryError):
            load_prior(str(given), device=CPU, config=config)
