"""Pocket's parts in exactly the classes of Stable Diffusion v1, a few hundred times smaller."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cds3d.pocket.world.scenes import COLORS, GROUNDS, MATERIALS, SPECIES

MAX_TOKENS = 16
TEXT_WIDTH = 128

# Words of the world's captions, and a few that people add to prompts and that later worlds may use.
_EXTRA_WORDS = [
    "a",
    "an",
    "photo",
    "picture",
    "of",
    "and",
    "with",
    "standing",
    "sitting",
    "close",
    "up",
    "image",
    "background",
]
WORDS = list(
    dict.fromkeys(
        _EXTRA_WORDS
        + [*SPECIES, *(name for names in SPECIES.values() for name in names), *COLORS, *MATERIALS]
        + [word for place in GROUNDS.values() for word in place.split()]
    )
)


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a CLIP byte-pair tokenizer in which every word of the world is one token, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges(WORDS)
    letters = _byte_alphabet()
    vocabulary = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = dict(
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=MAX_TOKENS, **special)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is a single token."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for parts in spelled.values():
            for pair in zip(parts, parts[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = max(sorted(counts), key=counts.get)
        merges.append(best)
        for word, parts in spelled.items():
            spelled[word] = _merge(parts, best)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append("".join(pair))
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, which CLIP's tokenizer uses too."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def build_vae() -> AutoencoderKL:
    """An untrained VAE: 3 channels to 4 latent channels at an eighth of the size, 1M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=256,
        scaling_factor=1.0,  # the encoder's latents are whitened: unit variance already
    )


def build_unet(channels: tuple[int, ...] = (32, 64, 128)) -> UNet2DConditionModel:
    """An untrained U-Net; residual branches start at zero, which makes small models learn several times faster."""
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(c // 32 for c in channels),  # diffusers' old name for the number of heads
        norm_num_groups=4,
    )
    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        elif name.endswith("proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder: 2 layers, 128 wide, 16 tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """SD v1's noise schedule: 1000 steps, betas scaled-linear from 0.00085 to 0.012, noise prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save_pipeline(folder: Path, *, vae, unet, text_encoder, tokenizer) -> None:
    """Write a fp16 folder that a plain `StableDiffusionPipeline.from_pretrained` loads, with transformers 4 too."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    # transformers loads a text encoder as it is stored, diffusers the rest as float32: a plain load has to agree.
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    _as_transformers_4_has_it(folder)


def _as_transformers_4_has_it(folder: Path) -> None:
    """Write the text encoder and its vocabulary as every version of transformers can read them.

    Since 5.6 it leaves `text_model.` out of the weights' names, and writes no `vocab.json` and `merges.txt`; it reads
    both ways.
    """
    path = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
