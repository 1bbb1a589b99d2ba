"""Small random networks of the real classes, saved as the real ones are, for the tests of metrics that need weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from cds3d.pocket.model.networks import build_tokenizer

CLIP_SIZE, CLIP_WORDS = 32, 12


def save_clip(folder: Path) -> Path:
    """A CLIP of two small transformers and pocket's tokenizer."""
    tokenizer = build_tokenizer(folder)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {**common, **special, "vocab_size": len(tokenizer), "max_position_embeddings": CLIP_WORDS}
    vision = {**common, "image_size": CLIP_SIZE, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    _loud(model)
    model.save_pretrained(folder)
    return folder


def save_dino(folder: Path, layers: int = 2) -> Path:
    """A vision transformer of 28x28 patches, 56 pixels wide in training, so that positions have to be interpolated."""
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(**shape, image_size=56, patch_size=28), add_pooling_layer=False)
    _loud(model)
    model.save_pretrained(folder)
    return folder


def save_trunk(path: Path, net: str) -> Path:
    """Random weights with the names and shapes of vgg16, alexnet or squeezenet1_1, classifier included."""
    torch.manual_seed(2)
    weights = {}
    for name, shape in _SHAPES[net].items():
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"features.{name}.weight"] = torch.randn(shape) * (2 / fan_in) ** 0.5
        weights[f"features.{name}.bias"] = torch.randn(shape[0]) * 0.1
    weights["classifier.1.weight"] = torch.randn(3, 4)
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def _loud(model: nn.Module) -> None:
    """Weights large enough that inputs matter; transformers begins with ones near zero."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)


def _fire(number: int, channels: int, squeezed: int, expanded: int) -> dict[str, tuple]:
    return {
        f"{number}.squeeze": (squeezed, channels, 1, 1),
        f"{number}.expand1x1": (expanded, squeezed, 1, 1),
        f"{number}.expand3x3": (expanded, squeezed, 3, 3),
    }


_SHAPES: dict[str, dict[str, tuple]] = {
    "vgg": {
        str(n): (out, into, 3, 3)
        for n, into, out in zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
            (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        )
    },
    "alex": {
        "0": (64, 3, 11, 11),
        "3": (192, 64, 5, 5),
        "6": (384, 192, 3, 3),
        "8": (256, 384, 3, 3),
        "10": (256, 256, 3, 3),
    },
    "squeeze": {
        "0": (64, 3, 3, 3),
        **_fire(3, 64, 16, 64),
        **_fire(4, 128, 16, 64),
        **_fire(6, 128, 32, 128),
        **_fire(7, 256, 32, 128),
        **_fire(9, 256, 48, 192),
        **_fire(10, 384, 48, 192),
        **_fire(11, 384, 64, 256),
        **_fire(12, 512, 64, 256),
    },
}
