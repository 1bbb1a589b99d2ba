"""A prior on a tiny Stable Diffusion of random weights: latents, noise, features, and what a step costs."""

import copy
import gc
import math
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from cds3d.commands.preparing import build_objective
from cds3d.editor import EditConfig, Editor
from cds3d.guidance import Query, load_prior
from cds3d.guidance.prior import Prior
from cds3d.objectives.objective import Draw, Prompts
from cds3d.options import load_config
from cds3d.subjects.image import LatentImage, LatentPair

CPU = torch.device("cpu")


def ask(prior, z_t, t, text, features=None, grad=False):
    """(noise, features) of one query."""
    ((answer,),) = prior.gather(prior.submit(Query(z_t, t, prior.embed(text), features, grad)))
    return answer.noise, answer.features


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


# --- images and latents


def test_252x189_gives_latents_of_31x23(prior):
    z = prior.encode_image(torch.rand(1, 3, 189, 252))
    assert z.shape == (1, 4, 23, 31)  # 189 / 8 = 23.6, 252 / 8 = 31.5, rounded down
    assert z.dtype == torch.float32


def test_stable_diffusions_encoder_sees_the_pixels_beyond_whole_cells(prior):
    image = torch.rand(1, 3, 189, 252, requires_grad=True)
    (seen,) = torch.autograd.grad(prior.encode_image(image).square().sum(), image)
    seen = seen[0].abs().sum(0)
    assert seen[-1].mean() > 0.05 * seen.mean() and seen[:, -1].mean() > 0.05 * seen.mean()


def test_latent_is_the_scaled_mean_of_the_posterior(prior):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 24, 32)
    z = prior.encode_image(image)
    moments = prior.vae.quant_conv(prior.vae.encoder(image * 2 - 1))  # [0, 1] -> [-1, 1]; mean and log-variance
    torch.testing.assert_close(z, 0.5 * moments[:, :4])  # conftest's scaling factor
    assert torch.equal(prior.encode_image(image), z)  # nothing is sampled


def test_shift_of_the_vae_is_taken_off_and_put_back(prior):
    torch.manual_seed(0)
    image, before = torch.rand(1, 3, 24, 32), prior.vae.config.get("shift_factor")
    plain = prior.encode_image(image)
    decoded = prior.decode_image(plain)
    prior.vae.register_to_config(shift_factor=0.25)
    try:
        shifted = prior.encode_image(image)
        torch.testing.assert_close(shifted, plain - 0.5 * 0.25)  # conftest's scaling factor
        torch.testing.assert_close(prior.decode_image(shifted), decoded)
    finally:
        prior.vae.register_to_config(shift_factor=before)


def test_encoding_is_differentiable_to_the_pixels(prior):
    # The directional derivative along a random direction, against central differences.
    torch.manual_seed(1)
    image, direction = torch.rand(1, 3, 16, 24, requires_grad=True), torch.randn(1, 3, 16, 24)
    weights = torch.randn(1, 4, 2, 3)
    (gradient,) = torch.autograd.grad((prior.encode_image(image) * weights).sum(), image)
    h = 2e-3
    with torch.no_grad():
        ends = [(prior.encode_image(image + s * h * direction) * weights).sum() for s in (1, -1)]
    assert ((gradient * direction).sum()).item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=2e-2)
    assert all(p.grad is None for p in prior.vae.parameters())


def test_decoded_images_are_in_range_and_eight_times_as_large(prior):
    torch.manual_seed(2)
    image = prior.decode_image(30 * torch.randn(1, 4, 3, 5))
    assert image.shape == (1, 3, 24, 40)
    assert image.min() >= 0 and image.max() <= 1


def test_decoding_undoes_the_scaling(prior):
    z = torch.randn(1, 4, 2, 2)
    expected = (prior.vae.decode(z / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode_image(z), expected)


# --- noise


def test_added_noise_by_hand(prior):
    # Equation 3 with a_t^2 the product of (1 - beta) over the scaled-linear schedule, in plain Python.
    t, product = 321, 1.0
    for k in range(t + 1):
        product *= 1 - (math.sqrt(0.00085) + k / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2
    z, noise = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), -2.0)
    expected = 3 * math.sqrt(product) - 2 * math.sqrt(1 - product)
    torch.testing.assert_close(prior.noised(z, t, noise), torch.full_like(z, expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0, 50, 500, 949, 999])
def test_noise_keeps_unit_variance(prior, t):
    one, zero = torch.ones(1), torch.zeros(1)
    a, b = prior.noised(one, t, zero), prior.noised(zero, t, one)
    assert (a**2 + b**2).item() == pytest.approx(1)


def test_noise_is_undone(prior):
    torch.manual_seed(9)
    z, noise = torch.randn(2, 1, 4, 3, 5)
    torch.testing.assert_close(prior.denoised(prior.noised(z, 700, noise), 700, noise), z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [None, "self", "score"])
def test_v_prediction_becomes_noise(tiny_v_folder, prior, kind):
    # eps = a v + b z_t, with v what the same U-Net gives as plain output.
    other = load_prior(str(tiny_v_folder), device=CPU)
    assert other.prediction == "v_prediction"
    torch.manual_seed(3)
    z_t, t = torch.randn(1, 4, 6, 5), 700
    v, _ = ask(prior, z_t, t, "a cat")  # the epsilon folder holds the same weights and hands the output on
    a, b = prior.alphas[t].sqrt(), (1 - prior.alphas[t]).sqrt()
    noise, features = ask(other, z_t, t, "a cat", kind)
    torch.testing.assert_close(noise, a * v + b * z_t)
    if kind == "score":
        torch.testing.assert_close(features[0], (a * v + b * z_t)[0])  # the score is the noise, not v


# --- text


def test_text_embeddings(prior):
    short, other = prior.embed("a red flower").tokens, prior.embed("a blue flower").tokens
    assert short.shape == (1, 16, 32)
    assert not torch.equal(short, other)
    assert prior.embed("").tokens.shape == (1, 16, 32)
    assert prior.embed("").pooled is None


def test_long_prompts_are_cut(prior):
    # 16 tokens: one at the start, one at the end, 14 words between them.
    long = prior.embed(" ".join(["red"] * 100)).tokens
    assert long.shape == (1, 16, 32)
    assert torch.equal(long, prior.embed(" ".join(["red"] * 14)).tokens)
    assert not torch.equal(long, prior.embed(" ".join(["red"] * 13)).tokens)


def test_a_text_is_embedded_once(prior, monkeypatch):
    first = prior.embed("a striped mug")
    monkeypatch.setattr(prior, "text", None)
    assert prior.embed("a striped mug") is first


# --- features

CAUGHT = ["self", None, "cross", "score", None, "self"]


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize(("height", "width"), [(23, 31), (7, 13), (8, 8)])
def test_features_are_the_layers_outputs_with_their_height_and_width(prior, kind, height, width):
    layer = {"self": ".attn1", "cross": ".attn2"}[kind]
    seen, handles = [], []
    for name, module in prior.unet.up_blocks.named_modules():
        if name.endswith(layer):
            handles.append(module.register_forward_hook(lambda m, a, out: seen.append(out)))
    torch.manual_seed(4)
    _, maps = ask(prior, torch.randn(1, 4, height, width), 10, "a red flower", kind)
    for handle in handles:
        handle.remove()
    # Two layers at half the size, rounded up as the strided convolution does, then two at the full one.
    half = (-(-height // 2), -(-width // 2))
    assert [m.shape for m in maps] == [(64, *half)] * 2 + [(32, height, width)] * 2
    assert len(seen) == len(maps) == 4
    for flat, m in zip(seen, maps):
        assert torch.equal(m.flatten(1).T, flat[0])
        assert torch.equal(m[:, 1, 2], flat[0, m.shape[2] + 2])  # rows of the map's own width


def test_score_is_the_prediction_and_none_catches_nothing(prior):
    z_t = torch.randn(1, 4, 4, 4)
    noise, (score,) = ask(prior, z_t, 10, "a dog", "score")
    assert torch.equal(score, noise[0])
    plain, none = ask(prior, z_t, 10, "a dog")
    assert none == () and torch.equal(plain, noise)


def test_only_those_who_ask_get_features(prior):
    z_t, prompt = torch.randn(1, 4, 4, 4), prior.embed("a dog")
    ((one, other),) = prior.gather(prior.submit(Query(z_t, 10, prompt), Query(z_t, 10, prompt, "self")))
    assert one.features == () and len(other.features) == 4


def test_nothing_is_caught_after_an_exception_or_from_another_thread(prior):
    z_t = torch.randn(1, 4, 4, 4)
    before = hooks_of(prior.unet)
    _, wanted = ask(prior, z_t, 10, "a dog", "self")
    bad = replace(prior.embed("a dog"), tokens=torch.zeros(1, 16, 7))  # a wrong text width
    with pytest.raises(RuntimeError):
        prior.gather(prior.submit(Query(z_t, 10, bad, "self")))
    assert ask(prior, z_t, 10, "a dog")[1] == ()
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(ask, prior, z_t + k, 10, "a dog", kind) for k, kind in enumerate(CAUGHT)]
        _, maps = ask(prior, z_t, 10, "a dog", "self")
    assert hooks_of(prior.unet) == before  # no more with every forward
    assert [torch.equal(a, b) for a, b in zip(maps, wanted, strict=True)] == [True] * 4
    assert [len(f.result()[1]) for f in others] == [4, 0, 4, 1, 0, 4]


def test_a_step_that_is_over_keeps_no_graph(prior):
    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    output, maps = ask(prior, z, 10, "a dog", "self", grad=True)
    assert maps[0].requires_grad
    graph = weakref.ref(maps[0])
    del output, maps
    gc.collect()
    assert graph() is None


# --- what a step costs


@pytest.fixture()
def counted_unet(prior):
    """(rows, with gradients) of each U-Net forward, and how often a backward passed its last layer."""
    forwards, backwards = [], []
    handles = [
        prior.unet.register_forward_hook(lambda m, a, out: forwards.append((len(a[0]), out.sample.requires_grad))),
        prior.unet.conv_in.register_full_backward_hook(lambda m, gi, go: backwards.append(len(go[0]))),
    ]
    yield forwards, backwards
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("kind", "expected", "passes"),
    [("sds", [(2, False)], 0), ("dds", [(4, False)], 0), ("cds", [(3, False), (1, True)], 1)],
)
def test_forwards_and_backwards_of_a_step(prior, counted_unet, kind, expected, passes):
    forwards, backwards = counted_unet  # on one thread, as conftest has it: there is no thread aside
    gradient = step_of(kind, prior)
    # CDS: three rows without gradients in one batch, the conditional target with
    assert sorted(forwards) == sorted(expected)
    assert backwards == [1] * passes
    modules = (prior.unet, prior.vae, *prior.text.encoders)
    assert all(p.grad is None and not p.requires_grad for m in modules for p in m.parameters())
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sds", [(2, False, True)]),  # nothing else to do meanwhile
        ("dds", [(1, False, False), (1, False, False), (2, False, False)]),
        ("cds", [(1, False, False), (1, True, True), (2, False, False)]),
    ],
)
def test_a_thread_takes_the_forwards_without_gradients(prior, monkeypatch, kind, expected):
    alone = step_of(kind, prior)
    seen = []
    hook = prior.unet.register_forward_hook(
        lambda m, a, out: seen.append((len(a[0]), out.sample.requires_grad, threading.current_thread() is main))
    )
    main = threading.current_thread()
    with ThreadPoolExecutor(1) as executor:
        monkeypatch.setitem(prior.__dict__, "_thread", executor)
        together = step_of(kind, prior)
    hook.remove()
    assert sorted(seen) == expected
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def objective_of(kind, **changes):
    return replace(build_objective(load_config("edit", [f"objective={kind}", "guidance=sd14"])), **changes)


def gradient_of(objective, prior, z_src, z_tgt, t=500):
    torch.manual_seed(7)
    prompts = Prompts.of(prior, "a yellow flower", "a red flower")
    pair = LatentPair(z_src, torch.nn.Parameter(z_tgt))
    return objective.gradient(prior, pair, prompts, Draw(t, torch.randn(z_tgt.shape)))


def step_of(kind, prior):
    torch.manual_seed(5)
    return gradient_of(objective_of(kind), prior, *torch.randn(2, 1, 4, 9, 7).unbind()).gradient


def test_who_has_a_thread(tiny_folder):
    # In a process of its own, whose number of threads is its own.
    code = f"""
import torch
from cds3d.guidance import load_prior
from cds3d.guidance import prior as module
load = lambda: load_prior({str(tiny_folder)!r}, device=torch.device("cpu"))
torch.set_num_threads(3)
some = load()
thread = some._thread
assert thread.submit(torch.get_num_threads).result() == 1 and torch.get_num_threads() == 3
assert some._thread is thread
with some.beside_others():
    assert torch.get_num_threads() == 2
assert torch.get_num_threads() == 3
torch.set_num_threads(1)
other = load()
assert other._thread is None
with other.beside_others():
    assert torch.get_num_threads() == 1
torch.set_num_threads(3)
module.SMALL = 10
assert load()._thread is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_contrastive_gradient_through_the_unet_by_differences(prior):
    # CDS less DDS along a random direction = weight x the directional derivative of the reported loss.
    torch.manual_seed(6)
    z_src, z_tgt, direction = torch.randn(3, 1, 4, 7, 5).unbind()
    cds = objective_of("cds", weight=4.0, temperature=0.5, patches=1000)
    pull = gradient_of(cds, prior, z_src, z_tgt, 300).gradient
    pull = pull - gradient_of(objective_of("dds"), prior, z_src, z_tgt, 300).gradient
    h = 5e-2  # smaller steps differ by no more than rounding does
    ends = [gradient_of(cds, prior, z_src, z_tgt + s * h * direction, 300).figures["contrastive_loss"] for s in (1, -1)]
    slope = (ends[0] - ends[1]).item() / (2 * h)
    assert (pull * direction).sum().item() == pytest.approx(4 * slope, rel=0.03)
    assert abs(slope) > 1e-3


def test_attention_stays_the_fast_default(prior):
    processors = list(prior.unet.attn_processors.values())
    assert len(processors) == 14  # (2 down + 1 middle + 4 up) x (attn1, attn2)
    assert all(type(p) is AttnProcessor2_0 for p in processors)


def test_a_wide_batch_gives_each_row_its_own_answer(prior):
    torch.manual_seed(8)
    queries = [
        Query(torch.randn(1, 4, 5, 7), t, prior.embed(p), "self") for t, p in ((4, ""), (40, "a cat"), (400, "red"))
    ]
    ((*together,),) = prior.gather(prior.submit(*queries))
    for query, answer in zip(queries, together, strict=True):
        ((alone,),) = prior.gather(prior.submit(query))
        torch.testing.assert_close(answer.noise, alone.noise, rtol=1e-4, atol=1e-5)
        for a, b in zip(answer.features, alone.features, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- types


def test_bf16_is_close_to_fp32(tiny_folder, prior):
    half = load_prior(str(tiny_folder), dtype="bf16", device=CPU)
    torch.manual_seed(0)
    z, image = torch.randn(1, 4, 6, 8), torch.rand(1, 3, 32, 24)
    (full_eps, _), (half_eps, _) = (ask(p, z, 500, "a pig") for p in (prior, half))
    assert half.unet.dtype == torch.bfloat16 and half_eps.dtype == torch.float32
    assert not torch.equal(half_eps, full_eps)
    assert (half_eps - full_eps).norm() < 0.05 * full_eps.norm()  # bf16 has 8 bits: 0.4% an operation
    latent = prior.encode_image(image)
    assert half.encode_image(image).dtype == torch.float32
    assert (half.encode_image(image) - latent).norm() < 0.05 * latent.norm()


def test_the_vae_may_have_a_type_of_its_own(tiny_folder, prior):
    fresh = load_prior(str(tiny_folder), device=CPU)
    mixed = Prior(
        unet=fresh.unet,
        vae=fresh.vae,
        text=fresh.text,
        alphas=fresh.alphas,
        prediction="epsilon",
        device=CPU,
        dtype=torch.bfloat16,
        vae_dtype=torch.float32,
    )
    image = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.encode_image(image), prior.encode_image(image))
    torch.testing.assert_close(mixed.decode_image(torch.ones(1, 4, 2, 3)), prior.decode_image(torch.ones(1, 4, 2, 3)))
    assert mixed.unet.dtype == torch.bfloat16


def test_one_batch_gives_one_kind_of_features(prior):
    z_t, prompt = torch.randn(1, 4, 4, 4), prior.embed("a cat")
    with pytest.raises(ValueError, match="cross, self"):
        prior.ask(Query(z_t, 10, prompt, "self"), Query(z_t, 10, prompt, "cross"))


@pytest.mark.parametrize("t", [-1, 1000, 5000])
def test_timesteps_that_the_prior_does_not_have_are_refused(prior, t):
    z, prompt = torch.randn(1, 4, 4, 4), prior.embed("a cat")
    asked = (
        lambda: prior.ask(Query(z, t, prompt)),
        lambda: prior.ask(Query(z, 10, prompt), Query(z, t, prompt)),
        lambda: prior.gather(prior.submit(Query(z, t, prompt))),
        lambda: prior.noised(z, t, z),
        lambda: prior.denoised(z, t, z),
    )
    for ask in asked:
        with pytest.raises(ValueError, match=f"t={t} .* 0..999"):
            ask()


def test_features_of_an_unknown_kind_are_refused(prior):
    with pytest.raises(ValueError, match="features='selfie' is unknown; use self, cross, score"):
        Query(torch.randn(1, 4, 4, 4), 10, prior.embed("a cat"), "selfie")


def test_a_device_may_be_named(tiny_folder):
    of = load_prior(str(tiny_folder), device="cpu")
    named = Prior(unet=of.unet, vae=of.vae, text=of.text, alphas=of.alphas, prediction=of.prediction, device="cpu")
    assert named.device == CPU and named.encode_image(torch.rand(1, 3, 16, 16)).shape == (1, 4, 2, 2)


def test_copies_of_what_holds_a_prior_share_it(prior):
    subject = LatentImage(torch.rand(3, 16, 16), prior)
    prompts = Prompts.of(prior, "a yellow flower", "a red flower")
    config = EditConfig(4, 0.1, "adam", lr_decay=1.0, warmup=0.0, adam_floor=0.0, seed=0)
    editor = Editor(subject, prior, build_objective(load_config("edit", [])), prompts, config)
    editor.step()
    copied, before = copy.deepcopy(editor), subject.parameter.detach().clone()
    assert copied.prior is prior and copied.subject.prior is prior
    copied.step()
    assert torch.equal(subject.parameter, before) and not torch.equal(copied.subject.parameter, before)
    editor.step()
    assert torch.equal(subject.parameter, copied.subject.parameter)


def test_ask_is_submit_and_gather(prior):
    queries = [Query(torch.randn(1, 4, 4, 4), t, prior.embed("a cat")) for t in (10, 900)]
    (later,) = prior.gather(prior.submit(*queries))
    for a, b in zip(prior.ask(*queries), later, strict=True):
        torch.testing.assert_close(a.noise, b.noise, atol=1e-5, rtol=1e-5)


def test_queries_with_gradients_in_the_same_latent_share_a_forward(prior, counted_unet):
    forwards, _ = counted_unet
    z, other = (torch.randn(1, 4, 4, 4, requires_grad=True) for _ in range(2))
    text, null = prior.embed("a dog"), prior.embed("")
    direction = torch.randn(2, 1, 4, 4, 4)

    def gradient(*answers):
        return torch.autograd.grad(sum((d * a.noise).sum() for d, a in zip(direction, answers, strict=True)), z)[0]

    queries = Query(z, 10, text, grad=True), Query(z, 10, null, grad=True)
    together = prior.ask(*queries, Query(other, 10, text, grad=True))
    assert forwards == [(2, True), (1, True)]
    alone = [prior.ask(query)[0] for query in queries]
    for a, b in zip(together, alone, strict=False):
        torch.testing.assert_close(a.noise, b.noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(*together[:2]), gradient(*alone), rtol=1e-4, atol=1e-5)
