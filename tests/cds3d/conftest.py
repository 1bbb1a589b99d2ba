"""A Stable Diffusion of a few thousand random weights, a capture of six small photos, and a field trained on them."""

import logging
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from fakes import TINY_FIELD, TINY_SCENE
from transformers import CLIPTextConfig, CLIPTextModel

from cds3d.cli import run_command
from cds3d.guidance import Prior, load_prior
from cds3d.pocket.model.networks import MAX_TOKENS, build_tokenizer
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes

TEXT_WIDTH = 32
SCALING = 0.5  # of the latents; not 1, so that leaving it out is noticed


def build_pipeline(prediction: str, tokenizer_folder: Path) -> StableDiffusionPipeline:
    """Real classes, random weights: two up-blocks of two attention layers each; latents an eighth of the image."""
    tokenizer = build_tokenizer(tokenizer_folder)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=128,
        scaling_factor=SCALING,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        steps_offset=1,
        clip_sample=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


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


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded():
    """One thread, as the commands under test are told too: sums come out in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("tensorf").setLevel(logging.INFO)
    yield
    torch.set_num_threads(threads)
