"""Models of random weights in the size of Stable Diffusion v1.4, and pairs of pictures, for timing and comparing."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging

from cds3d.guidance.prior import Prior
from cds3d.guidance.text import Prompt
from cds3d.objectives.objective import Prompts


class ImagePair:
    """A picture seen through the encoder, as a field's view is."""

    def __init__(self, prior: Prior, source: torch.Tensor, image: torch.Tensor):
        self.prior, self.image = prior, image.detach().clone().requires_grad_()
        with torch.no_grad():
            self.source = prior.encode_image(source)

    def target(self) -> torch.Tensor:
        self.z = self.prior.encode_image(self.image)
        return self.z.detach()

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        self.z.backward(gradient)
        return self.image.grad


def random_sd(
    dtype: torch.dtype, device: torch.device, *, share: int = 1, layout: torch.memory_format | None = None
) -> Prior:
    """Random weights in the U-Net and the VAE of Stable Diffusion v1.4 (its published configuration).

    share: what the numbers of channels are divided by, 1, or 10 for a model to try things with, which also has fewer
    layers. layout: `Prior`'s.
    """
    torch.manual_seed(0)
    diffusers_logging.set_verbosity_error()  # it would warn of every cast
    with torch.device(device if device.type == "cuda" else "cpu"):  # a GPU draws a billion numbers at once
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=tuple(n // share for n in (320, 640, 1280, 1280)),
            layers_per_block=2 if share == 1 else 1,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512) if share == 1 else (32,) * 4,
            layers_per_block=2 if share == 1 else 1,
            sample_size=512,
        )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    networks = dict(unet=unet, vae=vae, text=SimpleNamespace(encoders=[]), alphas=(1 - betas).cumprod(0))
    return Prior(**networks, prediction="epsilon", device=device, dtype=dtype, layout=layout)


def random_prompts(prior: Prior) -> Prompts:
    """Three embeddings of 77 random tokens."""
    width = prior.unet.config.cross_attention_dim
    text = 0.5 * torch.randn(3, 77, width, generator=torch.Generator().manual_seed(2))
    return Prompts(*(Prompt(tokens[None].to(prior.device)) for tokens in text))
