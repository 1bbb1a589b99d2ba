"""The start of pocket's VAE: weights that make it an exact linear codec of 8x8 patches, before any training.

Trained from scratch on a CPU this VAE stalls below 20 dB. So the encoder is *constructed* as the best linear map of
8x8 patches to 4 numbers (whitened principal components), written into the real architecture, and frozen; the decoder
starts as its smooth linear inverse and is trained. GroupNorm and SiLU are made linear by two facts:

- a pair of channels (a, -a) followed by SiLU and a subtraction is the identity: silu(a) - silu(-a) = a;
- two constant channels (K, -K) with K large fix a group's mean at 0 and its variance, hence its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

_ENCODER_CONSTANT = 100.0
_DECODER_CONSTANT = 8.0
PATCH = 8


@dataclass(frozen=True)
class PatchCodec:
    """Whitened principal components of 8x8 RGB patches in [-1, 1].

    mean (3, 8, 8); components (4, 3, 8, 8) orthonormal; scale (4,) their standard deviations.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    @staticmethod
    def fit(images: np.ndarray) -> PatchCodec:
        """images: (n, H, W, 3) uint8, H and W multiples of 8."""
        n, height, width, _ = images.shape
        blocks = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
        patches = blocks.reshape(-1, 3 * PATCH * PATCH).astype(np.float64) / 127.5 - 1
        mean = patches.mean(0)
        values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
        top = vectors[:, ::-1][:, :4].T
        top = top * np.where(top.sum(1, keepdims=True) < 0, -1, 1)  # a sign that does not hang on LAPACK
        as_tensor = lambda a, *shape: torch.from_numpy(np.ascontiguousarray(a)).float().reshape(*shape)  # noqa: E731
        return PatchCodec(
            as_tensor(mean, 3, PATCH, PATCH),
            as_tensor(top, 4, 3, PATCH, PATCH),
            as_tensor(np.sqrt(values[::-1][:4]), 4),
        )

    @staticmethod
    @torch.no_grad()
    def read(vae: AutoencoderKL) -> PatchCodec:
        """The codec that `write_into` wrote into this VAE, read off its answers to single pixels.

        Of the mean only the part that the components see is known; `encode` needs no other.
        """
        zero, impulses = torch.zeros(1, 3, PATCH, PATCH), torch.eye(3 * PATCH * PATCH).view(-1, 3, PATCH, PATCH)
        bias = vae.encode(zero).latent_dist.mean.view(1, 4)
        filters = (vae.encode(impulses).latent_dist.mean.view(-1, 4) - bias).T
        scale = 1 / filters.norm(dim=1)
        components = filters * scale[:, None]
        mean = -(components * (bias[0] * scale)[:, None]).sum(0)
        return PatchCodec(mean.view(3, PATCH, PATCH), components.view(4, 3, PATCH, PATCH), scale)

    @property
    def filters(self) -> Tensor:
        """(4, 3, 8, 8): latent = <filter, patch> + bias."""
        return self.components / self.scale.view(4, 1, 1, 1)

    @property
    def bias(self) -> Tensor:
        return -(self.filters * self.mean).sum((1, 2, 3))

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> (n, 4, H // 8, W // 8): what the constructed encoder computes, in one call."""
        return F.conv2d(images, self.filters.to(images), self.bias.to(images), stride=PATCH)


@torch.no_grad()
def write_into(vae: AutoencoderKL, codec: PatchCodec) -> None:
    """Set the weights of `networks.build_vae()` so that it encodes as `codec` does and decodes its smooth inverse."""
    for module in vae.modules():  # every residual branch starts at zero: only shortcuts carry the signal
        name = type(module).__name__
        if name == "ResnetBlock2D":
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        elif name == "Attention":
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()
    _write_encoder(vae, codec)
    _write_decoder(vae, codec)


def _pass_through(conv, channels: int | None = None) -> None:
    """Make the first channels of a convolution the identity and leave the others at zero or as they were."""
    channels = channels or min(conv.weight.shape[:2])
    middle = conv.weight.shape[-1] // 2
    conv.weight[:channels].zero_()
    conv.bias[:channels].zero_()
    for i in range(channels):
        conv.weight[i, i, middle, middle] = 1


def _write_encoder(vae: AutoencoderKL, codec: PatchCodec) -> None:
    encoder = vae.encoder
    encoder.conv_in.weight.zero_()
    encoder.conv_in.bias.zero_()
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    for block in encoder.down_blocks:
        if block.resnets[0].conv_shortcut is not None:
            _pass_through(block.resnets[0].conv_shortcut)
    half, quarter, eighth = (encoder.down_blocks[i].downsamplers[0].conv for i in range(3))
    for conv in (half, quarter, eighth):
        conv.weight.zero_()
        conv.bias.zero_()
    # 1/2: space to depth, channel (y, x, c). 1/4: each 4x4 cell answers for all four quadrants of a patch.
    # 1/8: each patch adds up its four quadrants' answers, and gives them as pairs (z, -z).
    filters = codec.filters
    for y in range(2):
        for x in range(2):
            for c in range(3):
                half.weight[(y * 2 + x) * 3 + c, c, y, x] = 1
    for qy in range(2):
        for qx in range(2):
            for k in range(4):
                answer = (qy * 2 + qx) * 4 + k
                for y in range(2):
                    for x in range(2):
                        top, left = qy * 4 + y * 2, qx * 4 + x * 2
                        cell = filters[k, :, top : top + 2, left : left + 2]  # (c, y, x)
                        quarter.weight[answer, :12, y, x] = cell.permute(1, 2, 0).reshape(12)
                eighth.weight[2 * k, answer, qy, qx] = 1
                eighth.weight[2 * k + 1, answer, qy, qx] = -1
    for k in range(4):
        eighth.bias[2 * k], eighth.bias[2 * k + 1] = codec.bias[k], -codec.bias[k]
    eighth.bias[8], eighth.bias[9] = _ENCODER_CONSTANT, -_ENCODER_CONSTANT
    group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    encoder.conv_norm_out.weight.fill_((2 * _ENCODER_CONSTANT**2 / group) ** 0.5)
    encoder.conv_norm_out.bias.zero_()
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    encoder.conv_out.bias[4:] = -6.0  # log variance: a standard deviation of 0.05
    for k in range(4):
        encoder.conv_out.weight[k, 2 * k, 1, 1] = 1
        encoder.conv_out.weight[k, 2 * k + 1, 1, 1] = -1
    _pass_through(vae.quant_conv)


def _write_decoder(vae: AutoencoderKL, codec: PatchCodec) -> None:
    decoder = vae.decoder
    _pass_through(vae.post_quant_conv)
    _pass_through(decoder.conv_in, 4)
    tent = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks:
        if block.upsamplers:  # nearest-neighbour doubling, then a tent: close to bilinear
            conv = block.upsamplers[0].conv
            conv.weight.zero_()
            conv.bias.zero_()
            for i in range(conv.weight.shape[0]):
                conv.weight[i, i] = tent[:, None] * tent[None]
    _pass_through(decoder.up_blocks[2].resnets[0].conv_shortcut, 4)
    # The last change of width turns the 4 latent channels into the mean colour of their components.
    to_color = decoder.up_blocks[3].resnets[0].conv_shortcut
    color = (codec.components * codec.scale.view(4, 1, 1, 1)).mean((2, 3))  # (4, 3)
    base = codec.mean.mean((1, 2))
    to_color.weight[:8].zero_()
    to_color.bias[:8].zero_()
    for c in range(3):
        to_color.weight[2 * c, :4, 0, 0], to_color.weight[2 * c + 1, :4, 0, 0] = color[:, c], -color[:, c]
        to_color.bias[2 * c], to_color.bias[2 * c + 1] = base[c], -base[c]
    to_color.bias[6], to_color.bias[7] = _DECODER_CONSTANT, -_DECODER_CONSTANT
    group = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    gain = (2 * _DECODER_CONSTANT**2 / group) ** 0.5
    decoder.conv_norm_out.weight[:8] = gain
    decoder.up_blocks[3].resnets[1].norm1.weight[:8] = gain
    decoder.conv_out.weight.mul_(0.1)
    decoder.conv_out.bias.zero_()
    decoder.conv_out.weight[:, :8].zero_()
    for c in range(3):
        decoder.conv_out.weight[c, 2 * c, 1, 1] = 1
        decoder.conv_out.weight[c, 2 * c + 1, 1, 1] = -1
