"""Residual branches that are zero are left out: same results, same gradients."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from cds3d.guidance import load_prior
from cds3d.guidance.idle import Shortcut, drop_idle_branches


@pytest.fixture
def vae():
    """Small, with random weights; of its encoder one block with a shortcut, one without, and the attention are idle."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    encoder = vae.encoder
    for layer in (
        encoder.down_blocks[1].resnets[0].conv2,
        encoder.mid_block.resnets[0].conv2,
        encoder.mid_block.attentions[0].to_out[0],
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return vae.eval()


def latent_and_gradient(vae):
    torch.manual_seed(1)
    image = torch.randn(1, 3, 32, 24, requires_grad=True)
    z = vae.encode(image).latent_dist.mean
    return z, torch.autograd.grad(z, image, torch.randn(z.shape))[0]


def test_results_and_gradients_stay(vae):
    expected = latent_and_gradient(copy.deepcopy(vae))
    decoded = vae.decode(expected[0]).sample
    assert drop_idle_branches(vae) == 3
    for now, before in zip(latent_and_gradient(vae), expected, strict=True):
        torch.testing.assert_close(now, before, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae.decode(expected[0]).sample, decoded)
    shortcut = vae.encoder.down_blocks[1].resnets[0]
    assert isinstance(shortcut, Shortcut) and shortcut.conv_shortcut.weight.shape[:2] == (16, 8)


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_branch_that_adds_something_stays(vae, which):
    with torch.no_grad():
        getattr(vae.encoder.mid_block.resnets[0].conv2, which).view(-1)[0] = 1e-3
        getattr(vae.encoder.mid_block.attentions[0].to_out[0], which).view(-1)[0] = 1e-3
    assert drop_idle_branches(vae) == 1
    assert type(vae.encoder.mid_block.resnets[0]).__name__ == "ResnetBlock2D"


def test_a_scaled_block_stays(vae):
    vae.encoder.mid_block.resnets[0].output_scale_factor = 2.0
    vae.encoder.mid_block.attentions[0].rescale_output_factor = 2.0
    assert drop_idle_branches(vae) == 1


def test_the_encoder_of_pocket_has_no_branches_left():
    pocket = load_prior("pocket", device=torch.device("cpu"))
    blocks = [type(m).__name__ for m in pocket.vae.encoder.modules()]
    assert blocks.count("Shortcut") == 7 and "ResnetBlock2D" not in blocks
    assert "Shortcut" not in [type(m).__name__ for m in pocket.unet.modules()]
    assert "Shortcut" not in [type(m).__name__ for m in pocket.vae.decoder.modules()]
