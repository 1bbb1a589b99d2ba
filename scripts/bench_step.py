"""One CDS step: ours against the published flow, same weights, same seed, in one process.

python scripts/bench_step.py                          # the shipped pocket: latents of 31x23 and 64x64, two pictures
python scripts/bench_step.py --model sd --images      # a random model of Stable Diffusion v1.4's size (860 million)
python scripts/bench_step.py --model sd --images --dtypes bf16 --latents 31x23

The published flow is written here anew and shares no code with ours: it makes four U-Net forwards without gradients and
two more with them, materialises its attention maps, lets the self-attention's weights collect gradients, and has its
networks in the plain memory layout. Rows of latents compare the gradient on a latent, rows of pictures the one on the
pixels, through the VAE's encoder. Both flows draw the same t, noise and patches; the table says how far apart their
gradients are. Times are the least of --repeats, in seconds of the wall clock and of the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor  # noqa: E402

from cds3d.bench.random_model import ImagePair, random_prompts, random_sd  # noqa: E402
from cds3d.commands.preparing import build_objective  # noqa: E402
from cds3d.guidance import Prior, load_prior  # noqa: E402
from cds3d.guidance.loading import DTYPES  # noqa: E402
from cds3d.jobs import usable_cores  # noqa: E402
from cds3d.objectives.objective import Prompts  # noqa: E402
from cds3d.options import load_config, pick_device  # noqa: E402
from cds3d.subjects.image import LatentPair  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402


class Published:
    """CDS's step in the manner of the authors' 2D code (Nam et al., CVPR 2024), for one prompt and one picture.

    unet, vae: in float32 and in contiguous memory. They are this object's own. text: (3, n, width), the embeddings of
    the empty, the source and the target prompt.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, prediction: str, text: torch.Tensor):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alpha_bar = torch.cumprod(1 - betas, 0)
        self.unet, self.vae, self.prediction = unet, vae, prediction
        self.null, self.source, self.target = text[:, None]
        unet.set_attn_processor(AttnProcessor())
        unet.requires_grad_(False)
        vae.requires_grad_(False)
        self.maps: list[torch.Tensor] = []
        self.size = None
        for name, module in unet.named_modules():
            if ".attn1." in name + ".":
                module.requires_grad_(True)
            if name.startswith("up_blocks") and type(module).__name__ == "Transformer2DModel":
                module.register_forward_pre_hook(lambda m, args: setattr(self, "size", args[0].shape[2:]))
            if name.startswith("up_blocks") and name.endswith(".attn1"):
                module.register_forward_hook(lambda m, args, out: self.maps.append(self.as_map(out)))

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """(2, h w, C) -> (C, h, w) of the conditional half."""
        return tokens[1].T.reshape(tokens.shape[2], *self.size)

    def scores(self, z: torch.Tensor, noise: torch.Tensor, t: int, prompt: torch.Tensor):
        """(noise without text, noise with text, feature maps) of a latent."""
        a, b = self.alpha_bar[t].sqrt().item(), (1 - self.alpha_bar[t]).sqrt().item()
        noisy = torch.cat([a * z + b * noise] * 2)
        self.maps = []
        out = self.unet(noisy, t, torch.cat([self.null, prompt])).sample
        if self.prediction == "v_prediction":
            out = a * out + b * noisy
        return out[:1], out[1:], self.maps

    def contrast(self, reference, current) -> torch.Tensor:
        total = 0.0
        for ref, cur in zip(reference, current, strict=True):
            for patch in (1, 2):
                r = F.avg_pool2d(ref.detach(), patch).flatten(1).T
                c = F.avg_pool2d(cur, patch).flatten(1).T
                places = torch.randperm(len(r))[:256].to(r.device)
                r, c = (x[places] / x[places].norm(dim=1, keepdim=True) for x in (r, c))
                same = (r * c).sum(1, keepdim=True)
                others = r @ c.T
                others[range(len(r)), range(len(r))] = -10.0
                logits = torch.cat([same, others], 1) / 0.07
                total = total + (logits.logsumexp(1) - logits[:, 0]).mean()
        return total

    def latent_gradient(self, z_src: torch.Tensor, z_tgt: torch.Tensor) -> torch.Tensor:
        """dL/dz of the target latent. Draws t, noise and patches from the global generator."""
        t = int(torch.randint(50, 950, (1,)))
        noise = torch.randn(z_tgt.shape).to(z_tgt.device)
        with torch.no_grad():
            null_t, text_t, _ = self.scores(z_tgt, noise, t, self.target)
            null_s, text_s, reference = self.scores(z_src, noise, t, self.source)
            guided_t, guided_s = null_t + 7.5 * (text_t - null_t), null_s + 7.5 * (text_s - null_s)
        z = z_tgt.detach().clone().requires_grad_()
        loss = 2000 * (z * (guided_t - guided_s)).sum() / (z.shape[2] * z.shape[3])
        loss = loss + 3.0 * self.contrast(reference, self.scores(z, noise, t, self.target)[2])
        loss.backward()
        for weight in self.unet.parameters():
            weight.grad = None
        return z.grad

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        mean = self.vae.encode(image.contiguous() * 2 - 1).latent_dist.mean
        return mean * self.vae.config.scaling_factor

    def image_gradient(self, source: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """dL/dx of the target image (1, 3, H, W) in [0, 1]."""
        x = image.detach().clone().requires_grad_()
        with torch.no_grad():
            z_src = self.encode(source)
        z = self.encode(x)
        z.backward(self.latent_gradient(z_src, z.detach()))
        return x.grad


def reference_of(prior: Prior, text: torch.Tensor) -> Published:
    """The published flow with the weights of a prior in float32, in networks of its own."""
    networks = []
    for network in (prior.unet, prior.vae):
        own = type(network).from_config(network.config)
        missing, unknown = own.load_state_dict(network.state_dict(), strict=False)
        if unknown:
            raise UserError(f"the published flow has no {unknown[0]}")
        with torch.no_grad():  # what a prior has left out are branches that are zero: here they are computed
            for name in missing:
                own.get_parameter(name).zero_()
        networks.append(own.to(prior.device).eval())
    reference = Published(*networks, prior.prediction, text)
    if not torch.allclose(reference.alpha_bar.float().to(prior.device), prior.alphas, rtol=1e-3):
        raise UserError("this model's noise schedule is not Stable Diffusion's, which the published flow has")
    return reference


def timed(step, repeats: int) -> tuple[torch.Tensor, float, float]:
    """(gradient, least wall seconds, least CPU seconds), each repeat from the same seed; the first one warms up."""
    walls, cpus = [], []
    for _ in range(repeats + 1):
        torch.manual_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        gradient = step()
        if gradient.is_cuda:
            torch.cuda.synchronize(gradient.device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return gradient, min(walls[1:]), min(cpus[1:])


def memory_of(step, prior: Prior, others: list[torch.nn.Module]) -> float | None:
    """Peak MB of one step on a GPU, without the weights of `others`, which lie there too."""
    if prior.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(prior.device)
    step()
    weights = sum(p.numel() * p.element_size() for other in others for p in other.parameters())
    return (torch.cuda.max_memory_allocated(prior.device) - weights) / 2**20


def bench(
    prior: Prior,
    reference: Published,
    others: list[torch.nn.Module],
    prompts: Prompts,
    kind: str,
    size: tuple[int, int],
    repeats: int,
) -> dict:
    """A row of the table. kind: "latent" or "image"; size: its width and height. others: as `memory_of`."""
    width, height = size
    generator = torch.Generator().manual_seed(1)
    objective = build_objective(load_config("edit", ["objective=cds", "guidance=sd14", "objective.score_scale=null"]))
    if kind == "latent":
        source, target = torch.randn(2, 1, 4, height, width, generator=generator).to(prior.device)
        pair_of, theirs_of = (lambda: LatentPair(source, torch.nn.Parameter(target))), reference.latent_gradient
    else:
        source, target = _pictures(height, width, generator).to(prior.device)
        pair_of, theirs_of = (lambda: ImagePair(prior, source, target)), reference.image_gradient

    def step() -> torch.Tensor:
        pair = pair_of()
        draw = objective.draw(pair.source, 0.0)
        return pair.backward(objective.gradient(prior, pair, prompts, draw).gradient)

    ours, wall, cpu = timed(step, repeats)
    theirs, wall_reference, cpu_reference = timed(lambda: theirs_of(source, target), repeats)
    row = {
        "kind": kind,
        "size": f"{width}x{height}",
        "seconds": wall,
        "published_seconds": wall_reference,
        "ratio": wall / wall_reference,
        "cpu_ratio": cpu / cpu_reference,
        "gradient_difference": ((ours - theirs).norm() / theirs.norm()).item(),
    }
    peak = memory_of(step, prior, others)
    return row | ({"peak_memory_mb": peak} if peak else {})


def _pictures(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """(2, 1, 3, H, W) in [0, 1]: two pictures of smooth colours with a little grain."""
    smooth = F.interpolate(torch.rand(2, 3, 5, 6, generator=generator), (height, width), mode="bicubic")
    return (smooth + 0.03 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)[:, None]


def size_of(text: str) -> tuple[int, int]:
    """ "31x23" -> (31, 23)."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} has to be WIDTHxHEIGHT, as in 31x23")
    return int(found[1]), int(found[2])


def machine(device: torch.device) -> str:
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
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
    parser.add_argument("--latents", nargs="*", type=size_of, default=[(31, 23), (64, 64)], metavar="WxH")
    parser.add_argument(
        "--images", nargs="*", type=size_of, default=[(252, 189), (512, 512)], metavar="WxH", help="in pixels"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0; auto is a GPU if there is one")
    parser.add_argument("--threads", type=int, help="of the CPU; all cores if not given")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/step.json"), help="where the figures go")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.set_num_threads(args.threads or usable_cores())
    load = lambda dtype: (  # noqa: E731
        random_sd(DTYPES[dtype], device) if args.model == "sd" else load_prior(args.model, dtype=dtype, device=device)
    )
    full = load("fp32")
    prompts = random_prompts(full)
    if prompts.null.pooled is not None:
        raise UserError(f"--model {args.model}: the published flow is for Stable Diffusion 1.x and 2.x, not for SDXL")
    reference = reference_of(full, torch.cat([prompts.null.tokens, prompts.source.tokens, prompts.target.tokens]))
    sizes = [("latent", s) for s in args.latents] + [("image", s) for s in args.images]
    result = {"model": args.model, "machine": machine(device), "rows": []}
    print(f"{args.model}, against the published flow in fp32, {machine(device)}")
    print(" dtype   kind     size   ours s  published s  ratio  CPU ratio  difference")
    for dtype in args.dtypes:
        prior = full if dtype == "fp32" else load(dtype)
        others = [reference.unet, reference.vae, *([full.unet, full.vae] if prior is not full else [])]
        rows = []
        for kind, size in sizes:
            row = bench(prior, reference, others, prompts, kind, size, args.repeats)
            rows.append(row := {"dtype": dtype, **row})
            print(
                f"{dtype:>6} {kind:>6} {row['size']:>8} {row['seconds']:8.3f} {row['published_seconds']:12.3f} "
                f"{row['ratio']:6.2f} {row['cpu_ratio']:10.2f} {row['gradient_difference']:11.1e}",
                flush=True,
            )
        result["rows"] += rows
        steps = [row for row in rows if row["kind"] == "latent"] or rows  # of pictures most of the time is the VAE's
        result[f"ratio_{dtype}"] = max(row["ratio"] for row in steps)  # of the least favourable size
        if dtype == "fp32":
            result["gradient_relative_error"] = max(row["gradient_difference"] for row in rows)
        del prior
    write_text(args.json, json.dumps(result, indent=2) + "\n")
    print(f"{args.json}: " + ", ".join(f"ratio_{d} {result[f'ratio_{d}']:.2f}" for d in args.dtypes))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
