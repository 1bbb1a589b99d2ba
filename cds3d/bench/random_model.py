"""Models of random weights in the sizes of Stable Diffusion v1.4 and XL, and pairs of pictures, to measure with."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cds3d.guidance.prior import Prior
from cds3d.guidance.text import Prompt
from cds3d.objectives.objective import Prompts
from cds3d.quiet import quiet


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


@quiet()  # diffusers would warn of every cast
def random_sd(
    dtype: torch.dtype, device: torch.device, *, share: int = 1, layout: torch.memory_format | None = None
) -> Prior:
    """Random weights in the U-Net and the VAE of Stable Diffusion v1.4 (its published configuration).

    share: what the numbers of channels are divided by, 1, or 10 for a model to try things with, which also has fewer
    layers. layout: `Prior`'s.
    """
    torch.manual_seed(0)
    with torch.device(device if device.type == "cuda" else "cpu"):  # a GPU draws a billion numbers at once
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=tuple(n // share for n in (320, 640, 1280, 1280)),
            layers_per_block=2 if share == 1 else 1,
        )
        vae = _sd_vae(share)
    return _prior(unet, vae, dtype, device, layout)


@quiet()
def random_sdxl(dtype: torch.dtype, device: torch.device) -> Prior:
    """Random weights in the U-Net and the VAE of Stable Diffusion XL base 1.0 (its published configuration)."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 2.6 billion weights: in fp32 they alone would take 10 GB
    try:
        unet = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = _sd_vae(1)
    finally:
        torch.set_default_dtype(default)
    return _prior(unet, vae, dtype, device, None)


def _sd_vae(share: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512) if share == 1 else (32,) * 4,
        layers_per_block=2 if share == 1 else 1,
        sample_size=512,
    )


def _prior(unet, vae, dtype: torch.dtype, device: torch.device, layout: torch.memory_format | None) -> Prior:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    networks = dict(unet=unet, vae=vae, text=SimpleNamespace(encoders=[]), alphas=(1 - betas).cumprod(0))
    return Prior(**networks, prediction="epsilon", device=device, dtype=dtype, layout=layout)


def text_parameters(xl: bool) -> int:
    """How many the published text encoders of Stable Diffusion v1.4, or of XL, have; nothing is allocated."""
    sizes = [(768, 12, 12, 3072)] + [(1280, 32, 20, 5120)] * xl
    count = 0
    for number, (width, layers, heads, inner) in enumerate(sizes):
        config = CLIPTextConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            projection_dim=width,
        )
        with torch.device("meta"):
            encoder = (CLIPTextModelWithProjection if number else CLIPTextModel)(config)
        count += sum(p.numel() for p in encoder.parameters())
    return count


def random_prompts(prior: Prior) -> Prompts:
    """Three embeddings of 77 random tokens; for SDXL with the pooled one."""
    width = prior.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(2)
    text = 0.5 * torch.randn(3, 77, width, generator=generator)
    pooled = torch.randn(3, 1, 1280, generator=generator).to(prior.device)
    xl = prior.unet.config.addition_embed_type == "text_time"
    return Prompts(
        *(Prompt(tokens[None].to(prior.device), p if xl else None) for tokens, p in zip(text, pooled, strict=True))
    )
