"""Pocket's parts: the constructed codec, its tokenizer, Muon, and the whole training with minuscule numbers."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from cds3d.guidance import load_prior
from cds3d.pocket.model import networks, samples, training
from cds3d.pocket.model.judge import load_judge
from cds3d.pocket.model.muon import Muon, orthogonalise
from cds3d.pocket.model.noise import coarse_noise
from cds3d.pocket.model.patch_codec import PatchCodec, write_into
from cds3d.pocket.weights_path import WEIGHTS
from cds3d.pocket.world.capture import words
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import Attributes, build_scene
from cds3d.pocket.world.vocabulary import unknown_words
from tensorf.errors import UserError

CPU = torch.device("cpu")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_pocket.py"


@pytest.fixture(scope="module")
def images():
    """(12, 48, 64, 3) uint8: small renders of the world."""
    import numpy as np

    return np.stack([render(build_scene(Attributes.sample(i), 64, 48)).image for i in range(12)])


@pytest.fixture(scope="module")
def codec(images):
    return PatchCodec.fit(images)


@pytest.fixture(scope="module")
def vae(codec):
    torch.manual_seed(0)
    vae = networks.build_vae()
    write_into(vae, codec)
    return vae.eval()


# --- The codec ---


def test_components_are_orthonormal_and_latents_white(images, codec):
    components = codec.components.flatten(1)
    assert torch.allclose(components @ components.T, torch.eye(4), atol=1e-4)
    assert (codec.scale.diff() <= 0).all()  # the strongest first
    latents = codec.encode(training.as_input(images)).transpose(0, 1).flatten(1)
    assert torch.allclose(latents.mean(1), torch.zeros(4), atol=1e-3)
    assert torch.allclose(torch.cov(latents), torch.eye(4), atol=1e-2)


def test_fit_reads_patches_in_their_places():
    # Patches that are constant but for one number: red at row 2, column 5, drawn at random.
    import numpy as np

    images = np.full((1, 64, 64, 3), 100, np.uint8)
    images[0, 2::8, 5::8, 0] = np.random.default_rng(0).integers(0, 256, (8, 8))
    codec = PatchCodec.fit(images)
    expected = torch.zeros(3, 8, 8)
    expected[0, 2, 5] = 1
    assert torch.allclose(codec.components[0], expected, atol=1e-5)
    assert codec.mean[1].flatten().tolist() == pytest.approx([100 / 127.5 - 1] * 64)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (60, 45), (61, 39), (252, 189)])
def test_constructed_encoder_computes_the_codec(vae, codec, width, height):
    torch.manual_seed(width)
    x = torch.rand(2, 3, height, width) * 2 - 1
    with torch.no_grad():
        distribution = vae.encode(x).latent_dist
    expected = codec.encode(x)
    assert expected.shape == (2, 4, height // 8, width // 8)
    assert torch.allclose(distribution.mean, expected, atol=5e-3)
    assert torch.allclose(distribution.std, torch.tensor(math.exp(-3)), rtol=0.05)
    assert vae.config.scaling_factor == 1.0


def test_decoder_starts_as_a_smooth_inverse(vae):
    v, u = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 64), indexing="ij")
    smooth = torch.stack(
        [
            torch.stack([u - 0.5, u - 0.5, u - 0.5]),
            torch.stack([0.5 * (v - u), 0.5 * (v - u), 0.4 * (v - u)]),
            0.6 * (3 * u).sin() * (2 * v).cos() * torch.ones(3, 1, 1),
        ]
    )
    with torch.no_grad():
        again = vae.decode(vae.encode(smooth).latent_dist.mean).sample
    assert again.shape == smooth.shape
    for one, truth in zip(again, smooth):
        assert 10 * math.log10(4 / (one - truth).square().mean().item()) > 20


def test_the_codec_keeps_the_world_s_images(vae, images):
    x = training.as_input(images)
    with torch.no_grad():
        again = vae.decode(vae.encode(x).latent_dist.mean).sample
    flat = x.mean((0, 2, 3), keepdim=True)
    assert (again - x).square().mean() < 0.3 * (flat - x).square().mean()


# --- The tokenizer ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return networks.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_of_the_world_is_one_token(tokenizer):
    known = set(networks.WORDS)
    for seed in range(60):
        for style in range(4):
            known.update(words(Attributes.sample(seed).caption(style)))
    ids = set()
    for word in sorted(known):
        pieces = tokenizer(word).input_ids[1:-1]
        assert len(pieces) == 1, word
        assert tokenizer.decode(pieces).strip() == word
        ids.update(pieces)
    assert len(ids) == len(known)


def test_captions_fit_and_come_back(tokenizer):
    for seed in range(40):
        caption = Attributes.sample(seed).caption(1)
        ids = tokenizer(caption).input_ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert len(ids) == len(caption.split()) + 2 <= networks.MAX_TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption
    assert tokenizer("An Orange Flower").input_ids == tokenizer("an orange flower").input_ids


def test_unknown_words_are_spelled(tokenizer):
    pieces = tokenizer("zebra").input_ids[1:-1]
    assert len(pieces) > 1 and tokenizer.decode(pieces).strip() == "zebra"


def test_caption_ids_are_of_the_captions(tokenizer):
    ids = training.caption_ids(tokenizer, 3)
    assert ids.shape == (3, training.CAPTION_STYLES, networks.MAX_TOKENS)
    assert tokenizer.decode(ids[2, 1], skip_special_tokens=True).strip() == Attributes.sample_evenly(2).caption(1)


# --- Muon ---


@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 40, 9), (1, 9, 40), (5, 16, 24)])
def test_orthogonalised_singular_values_are_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    values = torch.linalg.svdvals(orthogonalise(matrices))
    # A square random matrix may have a singular value so small that five iterations do not lift it.
    values = values[:, :-2] if shape[1] == shape[2] else values
    assert values.min() > 0.6 and values.max() < 1.4


def test_orthogonalising_keeps_the_directions():
    # 2 u1 v1' + 1 u2 v2' has the nearest orthogonal u1 v1' + u2 v2': here the diagonal's signs.
    matrix = torch.diag(torch.tensor([2.0, -1.0]))[None]
    result = orthogonalise(matrix)[0]
    assert torch.allclose(result, torch.diag(torch.diag(result)), atol=1e-5)
    assert 0.6 < result[0, 0] < 1.4 and -1.4 < result[1, 1] < -0.6


def test_batched_matrices_do_not_mix():
    matrices = torch.randn(3, 8, 12)
    together = orthogonalise(matrices)
    for one, expected in zip(matrices, together):
        assert torch.allclose(orthogonalise(one[None])[0], expected, atol=1e-5)


def small_problem():
    """(optimiser, step(lr)) of a least-squares problem with matrices, a convolution-like tensor and biases."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Linear(16, 12), torch.nn.Linear(12, 4))
    x = torch.randn(64, 10)
    y = x @ torch.randn(10, 4)
    optimizer = Muon(list(net.named_parameters()), weight_decay=1e-3)

    def step(lr):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lr)
        return loss.item()

    return net, optimizer, step


def test_muon_solves_least_squares():
    net, optimizer, step = small_problem()
    assert len(optimizer.groups) == 2  # 16 x 10 and 12 x 16; 4 x 12 is too small, with the biases it is Adam's
    first = step(0.05)
    for k in range(150):
        last = step(0.05 * (1 - k / 150))
    assert last < 0.01 * first


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_takes_bf16_where_the_processor_has_it(monkeypatch, native, expected):
    used = []
    plain = lambda matrices: used.append(matrices.dtype) or orthogonalise(matrices)  # noqa: E731
    monkeypatch.setattr("cds3d.pocket.model.muon.has_bf16_instructions", lambda: native)
    monkeypatch.setattr("cds3d.pocket.model.muon.orthogonalise", plain)
    net, _, step = small_problem()
    step(0.05)
    assert used == [expected] * 2 and all(p.dtype == torch.float32 for p in net.parameters())


def test_muon_resumes_bit_for_bit(tmp_path):
    net, optimizer, step = small_problem()
    for _ in range(3):
        step(0.02)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    expected = [step(0.02) for _ in range(3)]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again, fresh, step_again = small_problem()
    again.load_state_dict(state["net"])
    fresh.load_state_dict(state["optimizer"])
    assert [step_again(0.02) for _ in range(3)] == expected
    for a, b in zip(net.parameters(), again.parameters()):
        assert torch.equal(a, b)


# --- Training ---


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load_script():
    spec = importlib.util.spec_from_file_location("train_pocket", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder that scripts/train_pocket.py writes after two steps of each kind."""
    script = load_script()
    folder, before = tmp_path_factory.mktemp("pocket"), torch.get_num_threads()
    options = "--images 20 --decoder-steps 2 --decoder-batch 1 --unet-steps 2 --unet-batch 2 --threads 1 --device cpu"
    options += " --judge-images 8 --judge-steps 2"
    places = ["--work", str(folder / "work"), "--output", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        psnr = training.reconstruction_psnr
        patch.setattr(training, "reconstruction_psnr", lambda vae: psnr(vae, count=1))  # of 64 images
        drawn = samples.draw_samples
        patch.setattr(samples, "draw_samples", lambda folder, device: drawn(folder, count=9, device=device, steps=1))
        patch.setattr(samples, "_UNSEEN", range(training.HELD_OUT_SEED, training.HELD_OUT_SEED + 3))
        asked = samples.prompts()
        patch.setattr(samples, "prompts", lambda: asked[:7])
        script.main([*options.split(), *places, "--stage", "render"])
        assert (folder / "work" / "images.npy").exists() and not (folder / "out").exists()
        script.main([*options.split(), *places])
    torch.set_num_threads(before)
    return folder


def test_any_version_of_transformers_can_read_the_text_encoder(trained, tmp_path):
    """Versions before 5.6 know only the longer names, and version 4 only the two files of the vocabulary."""
    for folder in (trained / "out", WEIGHTS):
        assert all(name.startswith("text_model.") for name in load_file(folder / "text_encoder" / "model.safetensors"))
        shutil.copytree(folder / "tokenizer", tmp_path / folder.name)
        (tmp_path / folder.name / "tokenizer.json").unlink()
        plain, whole = (CLIPTokenizer.from_pretrained(f) for f in (tmp_path / folder.name, folder / "tokenizer"))
        for text in ("a photo of a red flower on grass", "zeppelins, 3 of them"):
            assert plain(text).input_ids == whole(text).input_ids


def test_train_pocket_writes_a_small_pipeline(trained):
    size = sum(p.stat().st_size for p in (trained / "out").rglob("*") if p.is_file())
    assert size < 30e6
    report = json.loads((trained / "out" / "training.json").read_text())
    assert report["plan"]["images"] == 20 and report["unet_samples_seen"] == 4 and report["decoder_crops_seen"] == 2
    assert report["heldout_reconstruction_psnr_db"] > 12  # the constructed start already does that
    assert not list(trained.rglob("*.part"))


def test_trained_pipeline_is_a_plain_stable_diffusion(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "out", safety_checker=None)
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red flower", width=64, height=48, num_inference_steps=1, output_type="np").images
    assert made.shape == (1, 48, 64, 3)


def test_trained_pipeline_is_a_prior(trained):
    prior = load_prior(str(trained / "out"), device=CPU)
    assert prior.alphas.shape == (1000,)
    assert prior.embed("a red flower").tokens.shape == (1, networks.MAX_TOKENS, networks.TEXT_WIDTH)
    assert prior.encode_image(torch.rand(1, 3, 45, 60)).shape == (1, 4, 5, 7)


def test_trained_judge_is_a_judge(trained):
    logits = load_judge(trained / "out" / "judge.safetensors")(torch.rand(2, 3, 45, 60))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        "species": (2, 12),
        "color": (2, 8),
        "material": (2, 3),
    }


def test_samples_are_drawn_and_judged(trained):
    report = json.loads((trained / "out" / "training.json").read_text())
    assert report["sample_prompts"] == 9
    shares = [report[f"sample_judge_agreement{name}"] for name in ("", "_species", "_color")]
    assert all(0 <= share <= 1 for share in shares)
    with Image.open(trained / "out" / "samples.jpg") as sheet:
        assert sheet.size == (6 * 192, 2 * 144)


def test_sample_prompts_are_of_the_world():
    asked = samples.prompts()
    assert len(asked) == 36 and asked[0][0].startswith("a red daisy")
    assert any("wooden" in prompt for prompt, _ in asked)
    more = samples.random_prompts(50)
    assert len(more) == 50 and {a.subject for _, a in more} == {"flower", "animal", "object"}
    assert all(a.seed >= training.HELD_OUT_SEED for _, a in more)
    for prompt, attributes in [*asked, *more]:
        assert attributes.species in prompt.split() and not unknown_words(prompt)


def test_a_file_that_is_no_judge_is_told(tmp_path):
    (tmp_path / "judge.safetensors").write_bytes(b"nothing")
    for name in ("judge.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match=f"{name} is no judge.*--stage judge"):
            load_judge(tmp_path / name)


def test_the_codec_is_read_off_a_vae(codec, vae):
    read = PatchCodec.read(vae)
    assert torch.allclose(read.filters, codec.filters, atol=1e-3 * codec.filters.abs().max())
    assert torch.allclose(read.bias, codec.bias, atol=1e-3)
    x = torch.rand(1, 3, 24, 32) * 2 - 1
    assert torch.allclose(read.encode(x), codec.encode(x), atol=5e-3)


def test_training_begins_from_an_older_pipeline(trained, tmp_path, one_thread):
    # An older vocabulary: the same words in another order, and one that is no longer there.
    old, start = StableDiffusionPipeline.from_pretrained(trained / "out", safety_checker=None), tmp_path / "old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "WORDS", ["zebra", *reversed(networks.WORDS)])
        tokenizer = networks.build_tokenizer(tmp_path / "tokenizer")
    text_encoder = networks.build_text_encoder(tokenizer)
    parts = dict(vae=old.vae, unet=old.unet, text_encoder=text_encoder, tokenizer=tokenizer)
    networks.save_pipeline(start, **parts)
    plan = training.Plan(unet_steps=0)
    unet, text, words_now, _ = training.train_unet(tmp_path, torch.zeros(1, 2, 4, 8, 8), plan, "cpu", start)
    for a, b in zip(unet.parameters(), old.unet.parameters()):
        assert torch.equal(a, b.float())
    before, now = load_prior(str(start), device=CPU), words_now("a red mug", return_tensors="pt").input_ids
    expected = before.embed("a red mug").tokens
    assert not torch.equal(now, before.text.tokenizers[0]("a red mug", return_tensors="pt").input_ids)
    assert torch.allclose(text(now).last_hidden_state, expected[:, : now.shape[1]], atol=1e-5)
    assert torch.equal(training.fit_codec(tmp_path, None, start).filters, PatchCodec.read(old.vae.float()).filters)


def test_blended_weights_lie_between_the_start_and_the_trained(trained, tmp_path):
    old = StableDiffusionPipeline.from_pretrained(trained / "out", safety_checker=None)
    tokenizer = networks.build_tokenizer(tmp_path)
    unet, text = networks.build_unet((32, 64, 128)), networks.build_text_encoder(tokenizer)
    before = [[p.detach().float().clone() for p in net.parameters()] for net in (old.unet, old.text_encoder)]
    after = [[p.detach().clone() for p in net.parameters()] for net in (unet, text)]
    training.blend(trained / "out", unet, text, tokenizer, 0.25)
    for net, a, b in zip((unet, text), before, after):
        assert all(torch.allclose(p, 0.75 * x + 0.25 * y, atol=1e-6) for p, x, y in zip(net.parameters(), a, b))


def test_train_pocket_exports_blended_weights(trained, tmp_path, one_thread):
    options = "--images 2 --decoder-steps 0 --unet-steps 1 --unet-batch 2 --threads 1 --device cpu --blend 0"
    places = ["--start", str(trained / "out"), "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "reconstruction_psnr", lambda vae: 30.0)
        load_script().main([*options.split(), *places, "--stage", "export"])
    old, new = (
        load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (trained / "out", tmp_path / "out")
    )
    assert all(torch.equal(new[name], old[name]) for name in old)  # --blend 0 is where training began


@pytest.mark.parametrize("options", [["--blend", "0.5"], ["--blend", "2"], ["--noise-discount", "1"]])
def test_training_options_that_make_no_sense_are_one_line(options, tmp_path):
    command = [sys.executable, str(SCRIPT), "--work", str(tmp_path / "work"), *options]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)  # it would train
    assert told.returncode == 1 and told.stderr.startswith(f"error: {options[0]} {float(options[1])} has to be")
    assert not (tmp_path / "work").exists()


def test_the_unet_is_trained_on_coarse_noise(tmp_path, one_thread, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "coarse_noise", lambda *a: seen.append(a[1]) or coarse_noise(*a))
    plan = training.Plan(unet_steps=1, unet_batch=2, channels=(32, 64), noise_discount=0.3)
    training.train_unet(tmp_path, torch.zeros(1, 2, 4, 8, 8), plan, "cpu")
    assert seen == [0.3]


def test_a_work_folder_of_another_world_or_start_is_refused(tmp_path, monkeypatch):
    training.claim_work(tmp_path, None)
    training.claim_work(tmp_path, None)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "unet.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match="another world or other weights"):
        training.claim_work(tmp_path, tmp_path / "old")
    monkeypatch.setattr(Attributes, "caption", lambda self, style: "a zebra")
    with pytest.raises(UserError, match="another world or other weights"):
        training.claim_work(tmp_path, None)


def test_world_s_images_are_rendered_by_seed(trained):
    import numpy as np

    images = np.load(trained / "work" / "images.npy", mmap_mode="r")
    assert images.shape == (20, training.HEIGHT, training.WIDTH, 3)
    assert np.array_equal(images[7], training.render_image(7))


def test_unet_training_resumes_bit_for_bit(tmp_path, one_thread):
    torch.manual_seed(0)
    latents = torch.randn(6, 2, 4, 8, 8).half()
    # The rate is the same for the first half of any run, so that two steps of two are the first two of four.
    plan = dict(unet_batch=2, channels=(32, 64))
    results = {}
    for name, stops in {"unbroken": (4,), "resumed": (2, 4)}.items():
        for steps in stops:
            work = tmp_path / name
            work.mkdir(exist_ok=True)
            unet, text, _, _ = training.train_unet(work, latents, training.Plan(unet_steps=steps, **plan), "cpu")
        results[name] = [*unet.parameters(), *text.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*results.values()))
    untrained = networks.build_unet(plan["channels"])
    assert untrained.conv_out.weight.eq(0).all() and results["unbroken"][0].isfinite().all()
    assert not unet.conv_out.weight.eq(0).all()
