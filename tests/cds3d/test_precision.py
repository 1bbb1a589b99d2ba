"""The types of the prior's networks, and their precision in the memory layouts that they have, against float64."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cds3d.guidance import Prior, Query, load_prior
from cds3d.guidance.loading import vae_dtype
from cds3d.guidance.prior import encoder_gradient

CPU = torch.device("cpu")
WIDE = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(4))


@pytest.fixture()
def wide_vae(tiny_folder):
    """(a prior, the same VAE in float64) whose maps have a mean far from 0, as trained ones do."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        scaling_factor=1.0,
    )
    vae.encoder.conv_in.bias.data += 3
    exact = copy.deepcopy(vae).double()
    tiny = load_prior(str(tiny_folder), device=CPU)
    given = dict(unet=tiny.unet, text=tiny.text, alphas=tiny.alphas, prediction="epsilon", device=CPU)
    return Prior(vae=vae, **given), exact


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_latents_and_their_gradients_are_exact_on_wide_pictures(wide_vae, layout):
    ours, exact = wide_vae
    image = WIDE.clone(memory_format=layout).requires_grad_()
    z = ours.encode_image(image)
    (gradient,) = torch.autograd.grad(z.square().sum(), image)
    image_64 = WIDE.double().requires_grad_()
    z_64 = exact.encode(image_64 * 2 - 1).latent_dist.mean
    (gradient_64,) = torch.autograd.grad(z_64.square().sum(), image_64)
    assert relative_error(z, z_64) < 1e-5
    assert relative_error(gradient, gradient_64) < 1e-5


@pytest.mark.parametrize("size", [(23, 31), (64, 64)])
def test_noise_and_features_are_exact(tiny_folder, prior, size):
    # The U-Net is channels-last.
    torch.manual_seed(10)
    z, prompt = torch.randn(1, 4, *size), prior.embed("a dog")
    exact = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet").double()
    seen = []
    for name, module in exact.up_blocks.named_modules():
        if name.endswith("attn1"):
            module.register_forward_hook(lambda m, a, out: seen.append(out[0].T))
    with torch.no_grad():
        ((answer,),) = prior.gather(prior.submit(Query(z, 500, prompt, "self")))
        expected = exact(z.double(), 500, prompt.tokens.double()).sample
    assert relative_error(answer.noise, expected) < 1e-5
    for ours, theirs in zip(answer.features, seen, strict=True):
        assert relative_error(ours.flatten(1), theirs) < 1e-5


def relative_error(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


# --- types


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bf16_is_warned_of(tiny_folder, monkeypatch, caplog, native):
    monkeypatch.setattr("cds3d.guidance.loading.has_bf16_instructions", lambda: native)
    load_prior(str(tiny_folder), dtype="bf16", device=CPU)
    assert ("slower than with fp32" in caplog.text) is not native


@pytest.mark.parametrize(
    ("kind", "dtype", "upcast", "capability", "expected"),
    [
        ("sd", torch.float16, True, (9, 0), torch.float16),
        ("xl", torch.float16, True, (8, 0), torch.bfloat16),
        ("xl", torch.float16, True, (7, 5), torch.float32),
        ("xl", torch.float16, False, (7, 5), torch.float16),
        ("xl", torch.bfloat16, True, (9, 0), torch.bfloat16),
        ("xl", torch.float32, True, (9, 0), torch.float32),
    ],
)
def test_type_of_the_vae(monkeypatch, kind, dtype, upcast, capability, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    device = torch.device("cuda:1")
    assert vae_dtype(kind, {"force_upcast": upcast}, dtype, device) == expected
    assert set(asked) <= {device}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_small_gradients_keep_their_digits_on_the_way_through_the_encoder(tiny_folder, dtype):
    """In half precision they would be rounded to multiples of 6e-8."""
    tiny = load_prior(str(tiny_folder), device=CPU)
    vae = AutoencoderKL.from_pretrained(tiny_folder, subfolder="vae")
    given = dict(unet=tiny.unet, text=tiny.text, alphas=tiny.alphas, prediction="epsilon", device=CPU)
    prior = Prior(vae=vae, vae_dtype=dtype, **given)
    image = WIDE[:, :, :32, :48].clone().requires_grad_()
    latent = prior.encode_image(image)
    gradient = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    (plain,) = torch.autograd.grad(latent, image, gradient, retain_graph=True)
    for factor in (1.0, 2.0**-16, 2.0**-24):
        found = encoder_gradient(prior.encode_image(image), image, factor * gradient)
        assert relative_error(found / factor, plain) < (1e-2 if dtype == torch.float16 else 1e-9)
    assert not encoder_gradient(latent, image, torch.zeros_like(gradient)).any()
