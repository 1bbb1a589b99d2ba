"""Guidance on a tiny Stable Diffusion of random weights: loading, latents, noise, features, and what a step costs."""

import gc
import math
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from ldm_layout import original_layout
from safetensors.torch import save_file

from cds3d.guidance import load_guidance
from cds3d.objectives.objective import Objective, Prompts
from tensorf.errors import UserError

CPU = torch.device("cpu")


def prompts_of(guidance):
    return Prompts(*(guidance.encode_text(text) for text in ("", "a yellow flower", "a red flower")))


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def message_of(*args, **kwargs):
    """The UserError that loading ends in; always a single line."""
    with pytest.raises(UserError) as caught:
        load_guidance(*args, device=CPU, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- loading


def test_folder_loads_with_frozen_weights(guidance):
    assert guidance.prediction == "epsilon"
    assert guidance.alphas.shape == (1000,) and guidance.alphas.dtype == torch.float32
    modules = (guidance.unet, guidance.vae, guidance.text_encoder)
    assert not any(p.requires_grad for m in modules for p in m.parameters())
    assert not any(m.training for m in modules)
    assert guidance.parameters == sum(p.numel() for m in modules for p in m.parameters())


def test_single_file_loads_as_the_folder_it_came_from(tiny_folder, guidance, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    single = load_guidance(str(tmp_path / "model.safetensors"), device=CPU, config=str(tiny_folder))
    torch.manual_seed(0)
    z, image = torch.randn(1, 4, 6, 8), torch.rand(1, 3, 32, 24)
    text = guidance.encode_text("a red flower")
    torch.testing.assert_close(single.encode_text("a red flower"), text)
    torch.testing.assert_close(single.predict(z, 100, text)[0], guidance.predict(z, 100, text)[0])
    torch.testing.assert_close(single.encode_image(image), guidance.encode_image(image))
    torch.testing.assert_close(single.decode_image(z), guidance.decode_image(z))


def test_corrupt_single_file(tiny_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a safetensors file at all")
    text = message_of(str(path), config=str(tiny_folder))
    assert str(path) in text and "guidance.config=FOLDER" in text


def test_missing_single_file(tmp_path):
    assert "no such file" in message_of(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bf16_is_warned_of(tiny_folder, monkeypatch, caplog, native):
    monkeypatch.setattr("cds3d.guidance.loading._has_bf16_instructions", lambda: native)
    load_guidance(str(tiny_folder), dtype="bf16", device=CPU)
    assert ("slower than with fp32" in caplog.text) is not native


def test_bf16_is_close_to_fp32(tiny_folder, guidance):
    half = load_guidance(str(tiny_folder), dtype="bf16", device=CPU)
    torch.manual_seed(0)
    z, image = torch.randn(2, 4, 6, 8), torch.rand(1, 3, 32, 24)
    full_eps, _ = guidance.predict(z, 500, guidance.encode_text("a pig").expand(2, -1, -1))
    half_eps, _ = half.predict(z, 500, half.encode_text("a pig").expand(2, -1, -1))
    assert half.unet.dtype == torch.bfloat16 and half_eps.dtype == torch.float32
    assert not torch.equal(half_eps, full_eps)
    assert (half_eps - full_eps).norm() < 0.05 * full_eps.norm()  # bf16 has 8 bits: 0.4% an operation
    latent = guidance.encode_image(image)
    assert half.encode_image(image).dtype == torch.float32
    assert (half.encode_image(image) - latent).norm() < 0.05 * latent.norm()


def test_unknown_dtype():
    assert "fp32, bf16, fp16" in message_of("pocket", dtype="fp8")


def test_fp16_on_a_cpu():
    assert "use fp32 or bf16" in message_of("pocket", dtype="fp16")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert ".safetensors" in message_of(str(tmp_path / name))


def test_pickled_weights_inside_a_folder_are_refused(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    assert str(folder) in message_of(str(folder))


@pytest.mark.parametrize("path", ["./nowhere", "/no/where/at/all", "one/two/three", "name"])
def test_missing_folder(path):
    text = message_of(path)
    assert path in text and "no such folder" in text


def test_hub_id_without_a_network(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    text = message_of("CompVis/stable-diffusion-v1-4")
    assert "hf download CompVis/stable-diffusion-v1-4 --local-dir" in text
    assert "guidance.path=FOLDER" in text and "guidance=pocket" in text and "HF_HUB_OFFLINE" in text


def test_folder_that_is_no_pipeline(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    assert str(tmp_path) in message_of(str(tmp_path))


def test_damaged_weights_in_a_folder(tiny_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "torn")
    weights = tmp_path / "torn" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "torn" in message_of(str(tmp_path / "torn"))


def test_scheduler_that_predicts_neither(tiny_folder, tmp_path):
    import json
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "sample")
    path = tmp_path / "sample" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    text = message_of(str(tmp_path / "sample"))
    assert "epsilon and v_prediction" in text


# --- images and latents


def test_252x189_gives_latents_of_31x23(guidance):
    z = guidance.encode_image(torch.rand(1, 3, 189, 252))
    assert z.shape == (1, 4, 23, 31)  # 189 / 8 = 23.6, 252 / 8 = 31.5, rounded down
    assert z.dtype == torch.float32


def test_latent_is_the_scaled_mean_of_the_posterior(guidance):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 24, 32)
    z = guidance.encode_image(image)
    moments = guidance.vae.quant_conv(guidance.vae.encoder(image * 2 - 1))  # [0, 1] -> [-1, 1]; mean and log-variance
    torch.testing.assert_close(z, 0.5 * moments[:, :4])  # conftest's scaling factor
    assert torch.equal(guidance.encode_image(image), z)  # nothing is sampled


def test_encoding_is_differentiable_to_the_pixels(guidance):
    # The directional derivative along a random direction, against central differences.
    torch.manual_seed(1)
    image, direction = torch.rand(1, 3, 16, 24, requires_grad=True), torch.randn(1, 3, 16, 24)
    weights = torch.randn(1, 4, 2, 3)
    (gradient,) = torch.autograd.grad((guidance.encode_image(image) * weights).sum(), image)
    h = 2e-3
    with torch.no_grad():
        ends = [(guidance.encode_image(image + s * h * direction) * weights).sum() for s in (1, -1)]
    assert ((gradient * direction).sum()).item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=2e-2)
    assert all(p.grad is None for p in guidance.vae.parameters())


def test_decoded_images_are_in_range_and_eight_times_as_large(guidance):
    torch.manual_seed(2)
    image = guidance.decode_image(30 * torch.randn(1, 4, 3, 5))
    assert image.shape == (1, 3, 24, 40)
    assert image.min() >= 0 and image.max() <= 1


def test_decoding_undoes_the_scaling(guidance):
    z = torch.randn(1, 4, 2, 2)
    expected = (guidance.vae.decode(z / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(guidance.decode_image(z), expected)


# --- noise


def test_added_noise_by_hand(guidance):
    # Equation 3 with a_t^2 the product of (1 - beta) over the scaled-linear schedule, in plain Python.
    t, product = 321, 1.0
    for k in range(t + 1):
        product *= 1 - (math.sqrt(0.00085) + k / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2
    z, noise = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), -2.0)
    expected = 3 * math.sqrt(product) - 2 * math.sqrt(1 - product)
    torch.testing.assert_close(guidance.add_noise(z, noise, t), torch.full_like(z, expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0, 50, 500, 949, 999])
def test_noise_keeps_unit_variance(guidance, t):
    one, zero = torch.ones(1), torch.zeros(1)
    a, b = guidance.add_noise(one, zero, t), guidance.add_noise(zero, one, t)
    assert (a**2 + b**2).item() == pytest.approx(1)


def test_v_prediction_becomes_noise(tiny_v_folder, guidance):
    # eps = a v + b z_t, with v what the same U-Net gives as plain output.
    other = load_guidance(str(tiny_v_folder), device=CPU)
    assert other.prediction == "v_prediction"
    torch.manual_seed(3)
    z_t, text, t = torch.randn(1, 4, 6, 5), guidance.encode_text("a cat"), 700
    v, _ = guidance.predict(z_t, t, text)  # the epsilon folder holds the same weights and hands the output on
    a, b = guidance.alphas[t].sqrt(), (1 - guidance.alphas[t]).sqrt()
    torch.testing.assert_close(other.predict(z_t, t, text)[0], a * v + b * z_t)
    _, (score,) = other.predict(z_t, t, text, "score")
    torch.testing.assert_close(score, a * v + b * z_t)  # the score is the noise, not v


# --- text


def test_text_embeddings(guidance):
    short, other = guidance.encode_text("a red flower"), guidance.encode_text("a blue flower")
    assert short.shape == (1, 16, 32)
    assert not torch.equal(short, other)
    assert guidance.encode_text("").shape == (1, 16, 32)


def test_long_prompts_are_cut(guidance):
    # 16 tokens: one at the start, one at the end, 14 words between them.
    long = guidance.encode_text(" ".join(["red"] * 100))
    assert long.shape == (1, 16, 32)
    assert torch.equal(long, guidance.encode_text(" ".join(["red"] * 14)))
    assert not torch.equal(long, guidance.encode_text(" ".join(["red"] * 13)))


# --- features

CAUGHT = ["self", None, "cross", "score", None, "self"]


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize(("height", "width"), [(23, 31), (7, 13), (8, 8)])
def test_features_are_the_layers_outputs_with_their_height_and_width(guidance, kind, height, width):
    layer = {"self": ".attn1", "cross": ".attn2"}[kind]
    seen, handles = [], []
    for name, module in guidance.unet.up_blocks.named_modules():
        if name.endswith(layer):
            handles.append(module.register_forward_hook(lambda m, a, out: seen.append(out)))
    torch.manual_seed(4)
    text = guidance.encode_text("a red flower").expand(2, -1, -1)
    with torch.no_grad():
        _, maps = guidance.predict(torch.randn(2, 4, height, width), 10, text, kind)
    for handle in handles:
        handle.remove()
    # Two layers at half the size, rounded up as the strided convolution does, then two at the full one.
    half = (-(-height // 2), -(-width // 2))
    assert [m.shape for m in maps] == [(2, 64, *half)] * 2 + [(2, 32, height, width)] * 2
    assert len(seen) == len(maps) == 4
    for flat, m in zip(seen, maps):
        assert torch.equal(m.flatten(2).transpose(1, 2), flat)
        assert torch.equal(m[:, :, 1, 2], flat[:, m.shape[3] + 2])  # rows of the map's own width


def test_score_is_the_prediction_and_none_catches_nothing(guidance):
    z_t, text = torch.randn(1, 4, 4, 4), guidance.encode_text("a dog")
    with torch.no_grad():
        output, maps = guidance.predict(z_t, 10, text, "score")
        assert len(maps) == 1 and maps[0] is output
        plain, none = guidance.predict(z_t, 10, text)
    assert none == [] and torch.equal(plain, output)


def test_nothing_is_caught_after_an_exception_or_from_another_thread(guidance):
    z_t, text = torch.randn(1, 4, 4, 4), guidance.encode_text("a dog")
    before = hooks_of(guidance.unet)
    with torch.no_grad():
        _, wanted = guidance.predict(z_t, 10, text, "self")
        with pytest.raises(RuntimeError):
            guidance.predict(z_t, 10, torch.zeros(1, 16, 7), "self")  # a wrong text width
        assert guidance.predict(z_t, 10, text)[1] == []
        with ThreadPoolExecutor(3) as threads:
            others = [threads.submit(guidance.predict, z_t + k, 10, text, kind) for k, kind in enumerate(CAUGHT)]
            _, maps = guidance.predict(z_t, 10, text, "self")
    assert hooks_of(guidance.unet) == before  # no more with every forward
    assert [torch.equal(a, b) for a, b in zip(maps, wanted, strict=True)] == [True] * 4
    assert [len(f.result()[1]) for f in others] == [4, 0, 4, 1, 0, 4]


def test_a_step_that_is_over_keeps_no_graph(guidance):
    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    output, maps = guidance.predict(z, 10, guidance.encode_text("a dog"), "self")
    graph = weakref.ref(maps[0])
    del output, maps
    gc.collect()
    assert graph() is None


# --- what a step costs


@pytest.fixture()
def counted_unet(guidance):
    """(rows, with gradients) of each U-Net forward, and how often a backward passed its last layer."""
    forwards, backwards = [], []
    handles = [
        guidance.unet.register_forward_hook(lambda m, a, out: forwards.append((len(a[0]), out.sample.requires_grad))),
        guidance.unet.conv_in.register_full_backward_hook(lambda m, gi, go: backwards.append(len(go[0]))),
    ]
    yield forwards, backwards
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("kind", "expected", "passes"),
    [("sds", [(2, False)], 0), ("dds", [(3, False), (1, False)], 0), ("cds", [(3, False), (1, True)], 1)],
)
def test_forwards_and_backwards_of_a_step(guidance, counted_unet, monkeypatch, kind, expected, passes):
    monkeypatch.setattr(guidance, "aside", None)
    forwards, backwards = counted_unet
    gradient = step_of(kind, guidance)
    # CDS: three rows without gradients in one batch, the conditional target with
    assert sorted(forwards) == sorted(expected)
    assert backwards == [1] * passes
    modules = (guidance.unet, guidance.vae, guidance.text_encoder)
    assert all(p.grad is None and not p.requires_grad for m in modules for p in m.parameters())
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sds", [(2, False, True)]),
        ("dds", [(1, False, False), (1, False, True), (2, False, False)]),
        ("cds", [(1, False, False), (1, True, True), (2, False, False)]),
    ],
)
def test_a_thread_aside_takes_the_forwards_that_can_wait(guidance, monkeypatch, kind, expected):
    monkeypatch.setattr(guidance, "aside", None)
    alone = step_of(kind, guidance)
    seen = []
    hook = guidance.unet.register_forward_hook(
        lambda m, a, out: seen.append((len(a[0]), out.sample.requires_grad, threading.current_thread() is main))
    )
    main = threading.current_thread()
    with ThreadPoolExecutor(1) as executor:
        monkeypatch.setattr(guidance, "aside", executor)
        together = step_of(kind, guidance)
    hook.remove()
    assert sorted(seen) == expected
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def step_of(kind, guidance):
    torch.manual_seed(5)
    z_src, z_tgt = torch.randn(2, 1, 4, 9, 7).unbind()
    objective, prompts = Objective(kind, 7.5), prompts_of(guidance)
    return objective.gradient(guidance, z_tgt, objective.begin(guidance, z_src, prompts), prompts)[0]


def test_who_has_a_thread_aside(tiny_folder):
    # In a process of its own, whose number of threads is its own.
    code = f"""
import sys
import torch
from cds3d.guidance import guidance as module
from cds3d.guidance.loading import load_guidance
load = lambda: load_guidance({str(tiny_folder)!r}, device=torch.device("cpu"))
torch.set_num_threads(3)
some = load()
aside = some.aside
assert aside.submit(torch.get_num_threads).result() == 1 and torch.get_num_threads() == 3
assert some.aside is aside
torch.set_num_threads(1)
assert load().aside is None
torch.set_num_threads(3)
module.SMALL = 10
assert load().aside is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_contrastive_gradient_through_the_unet_by_differences(guidance):
    # CDS less DDS along a random direction = weight x the directional derivative of the reported loss.
    torch.manual_seed(6)
    z_src, z_tgt, direction = torch.randn(3, 1, 4, 7, 5).unbind()
    prompts, common = prompts_of(guidance), dict(scale=7.5, patches=1000, t_min=300, t_max=300)
    cds = Objective("cds", weight=4.0, temperature=0.5, **common)

    def gradient(objective, z):
        torch.manual_seed(7)
        return objective.gradient(guidance, z, objective.begin(guidance, z_src, prompts), prompts)

    pull = gradient(cds, z_tgt)[0] - gradient(Objective("dds", **common), z_tgt)[0]
    h = 5e-2  # smaller steps differ by no more than rounding does
    ends = [gradient(cds, z_tgt + s * h * direction)[1]["contrastive_loss"] for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)
    assert (pull * direction).sum().item() == pytest.approx(4 * slope, rel=0.03)
    assert abs(slope) > 1e-3


def test_attention_stays_the_fast_default(guidance):
    processors = list(guidance.unet.attn_processors.values())
    assert len(processors) == 14  # (2 down + 1 middle + 4 up) x (attn1, attn2)
    assert all(type(p) is AttnProcessor2_0 for p in processors)


def test_a_wide_batch_gives_each_row_its_own_answer(guidance):
    torch.manual_seed(8)
    z = torch.randn(3, 4, 5, 7)
    text = torch.cat([guidance.encode_text(t) for t in ("", "a cat", "a red rose")])
    with torch.no_grad():
        together, maps = guidance.predict(z, 40, text, "self")
        for i in range(3):
            alone, one = guidance.predict(z[i : i + 1], 40, text[i : i + 1], "self")
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(maps[-1][i], one[-1][0], rtol=1e-4, atol=1e-5)
