"""How pocket is trained: renders of the world -> latents -> decoder and U-Net -> a pipeline folder.

`scripts/train_pocket.py` is the command. Every stage writes into a work folder, atomically, and goes on from what it
finds there; checkpoints are plain tensors, read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from cds3d.pocket.model import networks
from cds3d.pocket.model.muon import Muon
from cds3d.pocket.model.noise import coarse_noise
from cds3d.pocket.model.patch_codec import PatchCodec, write_into
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import Attributes, build_scene, training_view
from tensorf.errors import UserError
from tensorf.files import atomic, write_text
from tensorf.seeds import seed_of_step, seeded

WIDTH, HEIGHT = 256, 192
CAPTION_STYLES = 4
HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on
_CODEC_IMAGES = 600


@dataclass(frozen=True)
class Plan:
    """What to train; the defaults are the shipped weights' (weights/README.md says where their making differed)."""

    images: int = 12_000
    decoder_steps: int = 1_000
    decoder_batch: int = 8
    decoder_lr: float = 2e-3
    unet_steps: int = 2_300
    unet_batch: int = 24
    unet_lr: float = 3e-3
    noise_discount: float = 0.6  # of the U-Net's noise, see noise.py; 0 is white noise, as Stable Diffusion's
    blend: float = 1.0  # with a start: what is exported lies at this share of the way from it to the trained weights
    channels: tuple[int, ...] = (32, 64, 128)
    judge_images: int = 6_000
    judge_steps: int = 1_500
    seed: int = 0
    save_every: int = 250


def render_image(seed: int) -> np.ndarray:
    """(192, 256, 3) uint8: the training image of this seed."""
    return render(*training_view(Attributes.sample_evenly(seed), WIDTH, HEIGHT)).image


def claim_work(work: Path, start: Path | None) -> None:
    """Make the work folder, or go on in it. UserError if it was begun in another world or from other weights.

    What is in it fits together only then: captions to images, latents to the VAE's encoder.
    """
    work.mkdir(parents=True, exist_ok=True)
    world = hashlib.sha256(render_image(0).tobytes())
    world.update("".join(Attributes.sample_evenly(i).caption(0) for i in range(100)).encode())
    weights = hashlib.sha256()
    for file in sorted(start.rglob("*.safetensors")) if start else []:
        weights.update(file.read_bytes())
    origin = {"world": world.hexdigest()[:16], "start": weights.hexdigest()[:16] if start else None}
    path = work / "origin.json"
    if path.exists() and json.loads(path.read_text()) != origin:
        raise UserError(f"{work} was begun with another world or other weights to start from: give --work FOLDER")
    _write_json(path, origin)


def workers(jobs: int) -> ProcessPoolExecutor:
    """Processes of one thread each, started afresh: a fork of a process whose OpenMP threads have run would hang."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))


def render_images(work: Path, count: int, jobs: int) -> np.ndarray:
    """Render seeds 0..count-1 into `images.npy`, in blocks, so that a stopped run goes on where it was."""
    path, progress = work / "images.npy", work / "images.json"
    done = json.loads(progress.read_text())["done"] if progress.exists() else 0
    shape = (count, HEIGHT, WIDTH, 3)
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
        done = 0
    images = np.load(path, mmap_mode="r+")
    with workers(jobs) as pool, tqdm(total=count, initial=done, desc="render", unit="image") as bar:
        while done < count:
            block = range(done, min(done + 256, count))
            for i, image in zip(block, pool.map(render_image, block, chunksize=16)):
                images[i] = image
            images.flush()
            done = block.stop
            _write_json(progress, {"done": done})
            bar.update(len(block))
    return images


def fit_codec(work: Path, images: np.ndarray, start: Path | None = None) -> PatchCodec:
    """The codec of the pipeline `start`, else one fitted to the images."""
    path = work / "codec.pt"
    if not path.exists():
        codec = PatchCodec.fit(np.asarray(images[:_CODEC_IMAGES])) if start is None else PatchCodec.read(_vae_of(start))
        _save(path, vars(codec))
    return PatchCodec(**torch.load(path, weights_only=True))


def encode_images(work: Path, images: np.ndarray, codec: PatchCodec) -> torch.Tensor:
    """(n, 2, 4, 24, 32) float16 latents of all images and of their mirror images."""
    path = work / "latents.pt"
    if path.exists():
        latents = torch.load(path, weights_only=True)
        if len(latents) == len(images):
            return latents
    latents = torch.empty(len(images), 2, 4, HEIGHT // 8, WIDTH // 8, dtype=torch.float16)
    for start in tqdm(range(0, len(images), 64), desc="encode", unit="batch"):
        x = as_input(images[start : start + 64])
        latents[start : start + 64] = torch.stack([codec.encode(x), codec.encode(x.flip(3))], 1).half()
    _save(path, latents)
    return latents


def as_input(images: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def caption_ids(tokenizer, count: int) -> torch.Tensor:
    """(count, CAPTION_STYLES, MAX_TOKENS) token ids of the captions of seeds 0..count-1."""
    captions = [Attributes.sample_evenly(i).caption(style) for i in range(count) for style in range(CAPTION_STYLES)]
    ids = tokenizer(captions, padding="max_length", max_length=networks.MAX_TOKENS, truncation=True).input_ids
    return torch.tensor(ids).view(count, CAPTION_STYLES, networks.MAX_TOKENS)


def _vae_of(start: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)


@torch.no_grad()
def blend(start: Path, unet: nn.Module, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, share: float) -> None:
    """Move the networks to `share` of the way from the weights of `start`, which they began from, to their own.

    Weights on that line work too (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
    """
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    trained = [p.clone() for p in parameters]
    _begin_from(start, unet, text_encoder, tokenizer)
    torch._foreach_lerp_(parameters, trained, share)


def _begin_from(start: Path, unet: nn.Module, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Take the weights of the pipeline `start`; a word that both vocabularies know keeps its vector."""
    old = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    unet.load_state_dict(old.state_dict())
    state = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32).state_dict()
    known = CLIPTokenizer.from_pretrained(start / "tokenizer").get_vocab()
    table = next(k for k in state if k.endswith("token_embedding.weight"))
    vectors = text_encoder.state_dict()[table].clone()
    for word, place in tokenizer.get_vocab().items():
        if word in known:
            vectors[place] = state[table][known[word]]
    text_encoder.load_state_dict({**state, table: vectors})


class _Progress:
    """Seconds of training so far, over all resumes, and the checkpoint that carries them."""

    def __init__(self, path: Path):
        self.path, self.before, self.start = path, 0.0, time.monotonic()
        self.state = torch.load(path, weights_only=True) if path.exists() else None
        if self.state:
            self.before = self.state["seconds"]

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def save(self, **state) -> None:
        _save(self.path, {"seconds": self.seconds, **state})


def train_decoder(
    work: Path, images: np.ndarray, codec: PatchCodec, plan: Plan, device: str, start: Path | None = None
):
    """Train the VAE's decoder behind the frozen, constructed encoder, on 128x128 crops. Returns (vae, seconds)."""
    torch.manual_seed(plan.seed)
    if start is None:
        vae = networks.build_vae()
        write_into(vae, codec)
    else:
        vae = _vae_of(start)
    vae = vae.to(device, memory_format=torch.channels_last)
    parameters = [*vae.decoder.named_parameters(), *vae.post_quant_conv.named_parameters(prefix="post_quant_conv")]
    optimizer, progress, first = Muon(parameters, weight_decay=0.0), _Progress(work / "decoder.pt"), 0
    if progress.state:
        vae.load_state_dict(progress.state["vae"])
        optimizer.load_state_dict(progress.state["optimizer"])
        first = progress.state["step"]
    crop, held_in = 128, len(images)
    bar = tqdm(range(first, plan.decoder_steps), initial=first, total=plan.decoder_steps, desc="decoder", unit="step")
    for step in bar:
        rng = np.random.default_rng([plan.seed, 1, step])
        rows, cols = rng.integers(0, (HEIGHT - crop) // 8 + 1) * 8, rng.integers(0, (WIDTH - crop) // 8 + 1) * 8
        chosen = np.sort(rng.integers(0, held_in, plan.decoder_batch))
        x = as_input(images[chosen][:, rows : rows + crop, cols : cols + crop])
        z = codec.encode(x)
        z = z + 0.05 * torch.from_numpy(rng.standard_normal(z.shape, np.float32))  # the posterior's own noise
        x = x.to(device, memory_format=torch.channels_last)
        error = vae.decode(z.to(device, memory_format=torch.channels_last)).sample - x
        # Plain error for colour, gradients for edges, pooled error for tone.
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = error.abs().mean() + 0.5 * edges + 0.5 * F.avg_pool2d(error, 4).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        optimizer.step(plan.decoder_lr * _cosine(step, plan.decoder_steps, flat=0.0))
        if step % 20 == 0:
            bar.set_postfix(psnr=f"{10 * math.log10(4 / error.detach().square().mean().item()):.1f} dB")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.decoder_steps:
            progress.save(vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
    return vae.cpu().to(memory_format=torch.contiguous_format), progress.seconds


@torch.no_grad()
def reconstruction_psnr(vae, count: int = 64) -> float:
    """Mean PSNR in dB of encode-decode over held-out renders."""
    values = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count):
        x = as_input(render(build_scene(Attributes.sample(seed), WIDTH, HEIGHT)).image[None])
        error = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) - x
        values.append(10 * math.log10(4 / error.square().mean().item()))
    return float(np.mean(values))


def train_unet(work: Path, latents: torch.Tensor, plan: Plan, device: str, start: Path | None = None):
    """Train U-Net and text encoder together on noise prediction. Returns (unet, text_encoder, tokenizer, seconds)."""
    torch.set_flush_denormal(True)  # zero-initialised branches start with numbers that are slow to compute with
    torch.manual_seed(plan.seed)
    tokenizer = networks.build_tokenizer(work / "tokenizer")
    unet, text_encoder = networks.build_unet(plan.channels), networks.build_text_encoder(tokenizer)
    if start is not None:
        _begin_from(start, unet, text_encoder, tokenizer)
    unet, text_encoder = unet.to(device, memory_format=torch.channels_last), text_encoder.to(device)
    ids = caption_ids(tokenizer, len(latents)).to(device)
    no_caption = torch.tensor(
        tokenizer("", padding="max_length", max_length=networks.MAX_TOKENS).input_ids, device=device
    )
    named = [("unet." + n, p) for n, p in unet.named_parameters()]
    named += [("text." + n, p) for n, p in text_encoder.named_parameters()]
    parameters = [p for _, p in named]
    optimizer, progress, first = Muon(named), _Progress(work / "unet.pt"), 0
    average = [p.detach().clone() for p in parameters]
    if progress.state:
        for p, saved in zip(parameters, progress.state["parameters"]):
            p.data.copy_(saved)
        for p, saved in zip(average, progress.state["average"]):
            p.copy_(saved)
        optimizer.load_state_dict(progress.state["optimizer"])
        first = progress.state["step"]
    alphas = networks.build_scheduler().alphas_cumprod.to(device)
    latents, smooth = latents.to(device), None
    bar = tqdm(range(first, plan.unet_steps), initial=first, total=plan.unet_steps, desc="unet", unit="step")
    for step in bar:
        g = seeded(device, seed_of_step(plan.seed, step))
        pick = lambda high: torch.randint(high, (plan.unet_batch,), generator=g, device=device)  # noqa: B023, E731
        image, t = pick(len(latents)), pick(len(alphas))
        z, text = latents[image, pick(2)].float(), ids[image, pick(CAPTION_STYLES)]
        text = torch.where((torch.rand(plan.unet_batch, 1, generator=g, device=device) < 0.1), no_caption, text)
        noise = coarse_noise(z.shape, plan.noise_discount, g)
        a = alphas[t].view(-1, 1, 1, 1)
        z_t = (a.sqrt() * z + (1 - a).sqrt() * noise).to(memory_format=torch.channels_last)
        error = (unet(z_t, t, text_encoder(text).last_hidden_state).sample - noise).square().mean((1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * snr.clamp(max=5) / snr).mean()  # min-SNR-5 weighting (Hang et al., 2023)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(plan.unet_lr * _cosine(step, plan.unet_steps, flat=0.5))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.9985, (1 + step) / (10 + step)))
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            bar.set_postfix(loss=f"{smooth:.4f}")
            with open(work / "unet.log", "a") as log:
                log.write(f"step {step + 1} loss {smooth:.4f} seconds {progress.seconds:.0f}\n")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.unet_steps:
            state = dict(parameters=[p.detach() for p in parameters], average=average)
            progress.save(**state, optimizer=optimizer.state_dict(), step=step + 1)
    for p, mean in zip(parameters, average):
        p.data.copy_(mean)
    return unet.cpu().to(memory_format=torch.contiguous_format), text_encoder.cpu(), tokenizer, progress.seconds


def _cosine(step: int, steps: int, *, flat: float) -> float:
    """Warm-up of 40 steps, then 1 for the share `flat` of the run, then a half cosine down to 0."""
    late = max(0.0, (step / steps - flat) / (1 - flat))
    return min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * late))


def _save(path: Path, state) -> None:
    with atomic(path) as partial:
        torch.save(state, partial)


def _write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
