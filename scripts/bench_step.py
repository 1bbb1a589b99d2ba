"""One CDS step on a latent: ours against the published flow, same weights, same seed, in one process.

python scripts/bench_step.py                          # the shipped pocket, latents of 31x23 and 64x64
python scripts/bench_step.py --model sd               # a random model of Stable Diffusion v1.4's size (860 million)
python scripts/bench_step.py --model sd --dtypes bf16 --latents 31x23

The published flow makes four U-Net forwards without gradients and two more with them, materialises its attention maps
and lets the self-attention's weights collect gradients. Both flows draw the same t, noise and patches; the table says
how far apart their gradients are. Times are the least of --repeats, in seconds of the wall clock and of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0  # noqa: E402
from diffusers.utils import logging as diffusers_logging  # noqa: E402

from cds3d.commands.preparing import build_objective  # noqa: E402
from cds3d.guidance import Prior, Prompt, Query, load_prior  # noqa: E402
from cds3d.guidance.loading import DTYPES  # noqa: E402
from cds3d.objectives.cds import CDS  # noqa: E402
from cds3d.objectives.objective import Prompts, classifier_free  # noqa: E402
from cds3d.objectives.patchnce import contrastive_loss  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from tensorf.files import write_text  # noqa: E402


class Stub(torch.nn.Module):
    """Stands in for the networks that a step on a latent does not use."""


def random_sd(dtype: str, device: torch.device) -> Prior:
    """Random weights in the U-Net of Stable Diffusion v1.4 (its published configuration)."""
    torch.manual_seed(0)
    diffusers_logging.set_verbosity_error()  # it would warn of every cast
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return Prior(
        unet=unet,
        vae=Stub(),
        text=SimpleNamespace(encoders=[]),
        alphas=(1 - betas).cumprod(0),
        prediction="epsilon",
        device=device,
        dtype=DTYPES[dtype],
    )


@dataclass
class Latents:
    """The pair of an edit of a latent, as objectives take it."""

    source: torch.Tensor
    latent: torch.Tensor

    def target(self) -> torch.Tensor:
        return self.latent


def published(model: Prior, objective: CDS, pair: Latents, prompts: Prompts) -> torch.Tensor:
    """The gradient as the published 2D code computes it: with text and without in one batch, whatever is asked of it.

    It draws from the global generator as `Objective.draw` and `CDS.gradient` do.
    """
    draw = objective.draw(pair.source, 0.0)

    def both(z: torch.Tensor, prompt: Prompt, grad: bool) -> tuple:
        z_t = model.noised(z, draw.t, draw.noise)
        return model._forward([Query(z_t, draw.t, p, objective.features, grad) for p in (prompts.null, prompt)])

    model.unet.set_attn_processor(AttnProcessor())
    weights = [p for name, p in model.unet.named_parameters() if ".attn1." in name]
    for p in weights:
        p.requires_grad_(True)
    try:
        with torch.no_grad():
            scores = []
            for z, prompt in ((pair.latent, prompts.target), (pair.source, prompts.source)):
                null, reference = both(z, prompt, grad=False)
                scores.append(classifier_free(null.noise, reference.noise, objective.scale))
            gradient = objective.scaled(scores[0] - scores[1])
        z = pair.latent.detach().requires_grad_()
        _, current = both(z, prompts.target, grad=True)
        loss = contrastive_loss(
            zip(reference.features, current.features, strict=True),
            patch_sizes=objective.patch_sizes,
            patches=objective.patches,
            temperature=objective.temperature,
        )
        (objective.weight * loss).backward()
        return gradient + z.grad
    finally:
        for p in weights:
            p.requires_grad_(False)
            p.grad = None
        model.unet.set_attn_processor(AttnProcessor2_0())


def timed(step, repeats: int) -> tuple[torch.Tensor, float, float]:
    """(gradient, least wall seconds, least CPU seconds), each repeat from the same seed; the first one warms up."""
    walls, cpus = [], []
    for _ in range(repeats + 1):
        torch.manual_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        gradient = step()
        if gradient.is_cuda:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return gradient, min(walls[1:]), min(cpus[1:])


def memory_of(step, model: Prior, reference: Prior) -> float | None:
    """Peak MB of one step on a GPU, without the reference's weights."""
    if model.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    others = 0 if reference is model else sum(p.numel() * p.element_size() for p in reference.unet.parameters())
    return (torch.cuda.max_memory_allocated() - others) / 2**20


def bench(model: Prior, reference: Prior, size: tuple[int, int], repeats: int, scale: float, weight: float):
    width, height = size
    generator = torch.Generator().manual_seed(1)
    text = model.unet.config.cross_attention_dim
    pair = Latents(*torch.randn(2, 1, 4, height, width, generator=generator).to(model.device))
    tokens = (0.5 * torch.randn(3, 1, 77, text, generator=generator)).to(model.device)
    prompts = Prompts(*(Prompt(t) for t in tokens))
    options = [f"guidance.scale={scale}", f"objective.weight={weight}", "objective.center=false"]
    objective = build_objective(load_config("edit", ["objective=cds", *options]))

    def step():
        return objective.gradient(model, pair, prompts, objective.draw(pair.source, 0.0)).gradient

    ours, wall, cpu = timed(step, repeats)
    theirs, wall_reference, cpu_reference = timed(lambda: published(reference, objective, pair, prompts), repeats)
    row = {
        "latent": f"{width}x{height}",
        "seconds": wall,
        "published_seconds": wall_reference,
        "ratio": wall / wall_reference,
        "cpu_ratio": cpu / cpu_reference,
        "gradient_difference": ((ours - theirs).norm() / theirs.norm()).item(),
    }
    peak = memory_of(step, model, reference)
    return row | ({"peak_memory_mb": peak} if peak else {})


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, sd (random weights), or what guidance.path takes")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["fp32", "bf16"],
        choices=sorted(DTYPES),
        help="of ours; the reference is in fp32",
    )
    parser.add_argument("--latents", nargs="+", default=["31x23", "64x64"], metavar="WxH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/step.json"), help="where the figures go")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    load = lambda dtype: (  # noqa: E731
        random_sd(dtype, device) if args.model == "sd" else load_prior(args.model, dtype=dtype, device=device)
    )
    reference = load("fp32")
    scale, weight = 7.5, 3.0  # as published, whatever the model
    result = {"model": args.model, "machine": machine(device), "rows": []}
    print(f"{args.model}, against the published flow in fp32, {machine(device)}")
    print(" dtype   latent   ours s  published s  ratio  CPU ratio  difference")
    for dtype in args.dtypes:
        model = reference if dtype == "fp32" else load(dtype)
        rows = []
        for text in args.latents:
            size = tuple(int(n) for n in text.split("x"))
            rows.append(row := {"dtype": dtype, **bench(model, reference, size, args.repeats, scale, weight)})
            print(
                f"{dtype:>6} {row['latent']:>8} {row['seconds']:8.3f} {row['published_seconds']:12.3f} "
                f"{row['ratio']:6.2f} {row['cpu_ratio']:10.2f} {row['gradient_difference']:11.1e}",
                flush=True,
            )
        result["rows"] += rows
        result[f"ratio_{dtype}"] = max(row["ratio"] for row in rows)  # of the least favourable size
        if dtype == "fp32":
            result["gradient_relative_error"] = max(row["gradient_difference"] for row in rows)
        del model
    write_text(args.json, json.dumps(result, indent=2) + "\n")
    print(f"{args.json}: " + ", ".join(f"ratio_{d} {result[f'ratio_{d}']:.2f}" for d in args.dtypes))


if __name__ == "__main__":
    main()
