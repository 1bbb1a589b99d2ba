"""Guidance: the frozen diffusion model between rendered images and the objectives."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cds3d.guidance.features import FeatureTap

SMALL = 50_000_000  # parameters of a U-Net up to which one core is as fast as several


class Guidance:
    """U-Net, VAE and text encoder, all frozen. Latents and noise are float32 outside, `dtype` inside the networks.

    prediction: "epsilon" or "v_prediction", what the U-Net was trained to give. alphas (T,): cumulative products of the
    noise schedule, a_t^2 in CDS's equation 3.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        alphas: Tensor,
        prediction: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"a scheduler that predicts {prediction!r} is not supported: epsilon or v_prediction")
        self.tokenizer, self.prediction, self.device, self.dtype = tokenizer, prediction, device, dtype
        self.alphas = alphas.to(device, torch.float32)
        # Channels-last convolutions are faster on both kinds of device; the values stay the same.
        self.unet = unet.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.vae = vae.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(device, dtype).eval().requires_grad_(False)

        self._features = FeatureTap(self.unet)

    @cached_property
    def aside(self) -> Executor | None:
        """A thread for a forward of its own, on CPUs of several cores and for a U-Net with small operators only.

        The cores then share forwards: of an operator that takes microseconds there is little to share.
        """
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or self._size(self.unet) > SMALL:
            return None
        executor = ThreadPoolExecutor(1, "guidance", initializer=torch.set_num_threads, initargs=(1,))
        executor.submit(torch.get_num_threads).result()  # a thread's first question is what settles its number
        torch.set_num_threads(threads)  # for this thread again: the setting is in part the process's
        return executor

    @staticmethod
    def _size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    @property
    def parameters(self) -> int:
        """Weights of all networks together."""
        return sum(self._size(m) for m in (self.unet, self.vae, self.text_encoder))

    @torch.no_grad()
    def encode_text(self, prompt: str) -> Tensor:
        """(1, tokens, width) in `dtype`; a prompt longer than the encoder holds is cut."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        ids = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.text_encoder(ids.input_ids.to(self.device)).last_hidden_state

    def encode_image(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, C, h, w) scaled latent, the mean of the VAE's posterior; differentiable.

        h and w are H and W divided by eight and rounded down: 252x189 gives 31x23.
        """
        x = (image * 2 - 1).to(self.device, self.dtype, memory_format=torch.channels_last)
        mean = self.vae.encode(x).latent_dist.mean
        shift = self.vae.config.get("shift_factor") or 0.0
        return (mean.float() - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_image(self, z: Tensor) -> Tensor:
        """(1, C, h, w) scaled latent -> (1, 3, H, W) in [0, 1], clipped."""
        shift = self.vae.config.get("shift_factor") or 0.0
        x = self.vae.decode((z / self.vae.config.scaling_factor + shift).to(self.dtype)).sample
        return (x.float() / 2 + 0.5).clamp(0, 1)

    def add_noise(self, z: Tensor, noise: Tensor, t: int) -> Tensor:
        """CDS, equation 3: a_t z + b_t noise, with a_t^2 + b_t^2 = 1."""
        a = self.alphas[t]
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def predict(self, z_t: Tensor, t: int, text: Tensor, features: str | None = None) -> tuple[Tensor, list[Tensor]]:
        """Noise in noisy latents z_t (n, C, h, w) given text (n, tokens, width): one forward of the U-Net.

        Returns (noise (n, C, h, w) float32, feature maps (n, C_l, h_l, w_l) of each layer). features: "self", "cross",
        "score" or None; "score" gives the noise prediction as the only map.
        """
        with self._features.caught(features if features in ("self", "cross") else None) as maps:
            inputs = z_t.to(self.dtype, memory_format=torch.channels_last)
            steps = torch.full((len(z_t),), t, device=self.device)
            output = self.unet(inputs, steps, text.to(self.dtype)).sample.float()
        if self.prediction == "v_prediction":
            a = self.alphas[t]
            output = a.sqrt() * output + (1 - a).sqrt() * z_t
        return output, ([output] if features == "score" else maps)
