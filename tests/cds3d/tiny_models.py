"""Tiny models of random weights in the real classes, and changes to their folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cds3d.pocket.model.networks import MAX_TOKENS, build_tokenizer

TEXT_WIDTH = 32
SCALING = 0.5  # of the latents; not 1, so that leaving it out is noticed
WIDTHS = (32, 40)  # of the two text encoders; a single file tells them apart by their widths


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=128,
        scaling_factor=scaling_factor,
    )


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
    vae = _vae(SCALING)
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


def build_xl(tokenizer_folder: Path, zero_empty: bool = True) -> StableDiffusionXLPipeline:
    """SDXL base: attention below full size only, two text encoders, a pooled embedding and size ids."""
    tokenizer = build_tokenizer(tokenizer_folder)
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTHS[1],
        norm_num_groups=8,
    )
    vae = _vae(0.13025)
    encoders = [
        kind(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        for kind, width in zip((CLIPTextModel, CLIPTextModelWithProjection), WIDTHS)
    ]
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zero_empty,
        add_watermarker=False,
    )


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def set_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def only_fp16(folder: Path) -> None:
    """Every network's weights in half precision, under the names that `variant="fp16"` has."""
    from safetensors.torch import save_file

    for file in folder.glob("*/*.safetensors"):
        halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()


def only_bin(folder: Path) -> None:
    """Every network's weights as pickles."""
    for file in folder.glob("*/*.safetensors"):
        name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()


def open_clip_layout(encoder) -> dict:
    """Name -> tensor of a text encoder with projection, as open_clip names them."""
    state, tensors = encoder.state_dict(), {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            rows = [state["text_model." + key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            tensors[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(rows)
        elif not re.search(r"\.[kv]_proj\.|position_ids", key):
            tensors[_open_clip_name(key)] = value.T.contiguous() if key == "text_projection.weight" else value
    return tensors


def _open_clip_name(key: str) -> str:
    ends = {
        "text_projection.weight": "text_projection",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
    }
    if key in ends:
        return ends[key]
    for new, old in (
        ("encoder.layers.", "transformer.resblocks."),
        ("self_attn.", "attn."),
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
        ("final_layer_norm.", "ln_final."),
    ):
        key = key.replace(new, old)
    return key
