"""The field against a plain reference in one process: training, rendering, a view's gradient, and how they grow.

python scripts/bench_field.py                                  # needs outputs/flower/source (train_source.py)
python scripts/bench_field.py --train-steps 0 --json view.json # views only
python scripts/bench_field.py --run none --train-steps 1000    # training only

The reference is the textbook: every step of every ray, tables read by `grid_sample`, a colour wherever the weight is
above 1e-4, no space skipped. It holds the same tables, so both pictures have to agree. Its time for a view is that of
--reference-rays random rays, scaled up. Seconds are of the CPU (all threads together), or of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tensorf.runtime  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorf.train as training  # noqa: E402
from cds3d.metrics.psnr import psnr  # noqa: E402
from tensorf import lookup  # noqa: E402
from tensorf.captures import load_capture  # noqa: E402
from tensorf.checkpoint import load_field  # noqa: E402
from tensorf.field import Field, FieldConfig  # noqa: E402
from tensorf.occupancy import Samples, cell_index  # noqa: E402
from tensorf.render import Rendering, render_view  # noqa: E402
from tensorf.space import Rays  # noqa: E402
from tensorf.train import TrainConfig, Trainer  # noqa: E402
from tensorf.visibility import View  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FAINT = 1e-4  # TensoRF's threshold for a colour query


def plain_render(field: Field, rays: Rays, jitter: Tensor | None = None, near: float = 0.0) -> Rendering:
    """What `render_rays` gives, sample by sample over whole rays; near is not for NDC, and not needed."""
    n, steps, device = len(rays), field.steps, rays.origins.device
    dt = field.space.t_span / steps
    offset = torch.full((n,), 0.5, device=device) if jitter is None else jitter
    t = (rays.t_near + offset * dt)[:, None] + torch.arange(steps, device=device) * dt
    x = field.space.normalise(rays.origins[:, None] + t[..., None] * rays.directions[:, None])
    inside = (x.abs() <= 1).all(-1) & (t < rays.t_far[:, None])
    rate = torch.zeros(n, steps, device=device)
    # What occupancy has taken out was trained no further: it is evaluated, and then left out of the picture.
    occupied = field.occupancy.view(-1)[cell_index(field.occupancy.shape, x[inside])]
    rate[inside] = field.opacity_rate(x[inside]) * occupied
    alpha = 1 - torch.exp(-rate)
    clear = torch.cumprod(torch.cat([torch.ones(n, 1, device=device), 1 - alpha + 1e-10], 1), 1)[:, :-1]
    weights = alpha * clear
    seen = weights > FAINT
    color = torch.zeros(n, steps, 3, device=device)
    color[seen] = field.color(x[seen], rays.viewdirs[:, None].expand(-1, steps, -1)[seen])
    opacity = weights.sum(1)
    total = (weights[..., None] * color).sum(1) + (1 - opacity)[:, None] * field.space.background
    depth = field.space.depth((weights * t).sum(1) / opacity.clamp(min=1e-6), rays)
    ray = torch.arange(n, device=device).repeat_interleave(steps)
    samples = Samples(x.view(-1, 3), ray, t.reshape(-1), torch.arange(n, device=device) * steps, n)
    return Rendering(total, opacity, depth, weights.reshape(-1), samples)


class Plain:
    """While active, the field's tables are read without the compiled loops, and training renders plainly."""

    def __enter__(self):
        self.kept = (lookup.compiled_for, training.render_rays)
        lookup.compiled_for = lambda *tensors: False
        training.render_rays = plain_render

    def __exit__(self, *error):
        lookup.compiled_for, training.render_rays = self.kept


def seconds(action, device: torch.device, repeats: int = 3, warm: bool = True) -> float:
    """The least of `repeats`, after a first one that warms up."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    taken = []
    for _ in range(repeats + warm):
        start = clock()
        action()
        if gpu:
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return min(taken[warm:])


def bench_views(field: Field, camera, widths: list[int], reference_rays: int) -> list[dict]:
    rows = []
    for width in widths:
        resized = camera.resized(width, round(camera.height * width / camera.width))
        view = View(field, resized)
        target = torch.randn(resized.height, resized.width, 3, device=field.device)
        index = torch.randperm(len(view.rays), generator=torch.Generator().manual_seed(0))[:reference_rays]
        rays = view.rays[index.to(field.device)]
        full = render_view(field, resized)["color"]

        def gradient(view=view, target=target):
            view.render(field)
            view.backward(field, target)

        def plain_gradient(rays=rays):
            for start in range(0, len(rays), 1024):
                part = rays[start : start + 1024]
                with torch.no_grad():
                    plain_render(field, part)
                plain_render(field, part).color.sum().backward()

        with Plain(), torch.no_grad():
            truth = torch.cat([plain_render(field, rays[i : i + 1024]).color for i in range(0, len(rays), 1024)])
        with Plain():
            reference = seconds(plain_gradient, field.device, repeats=1) * len(view.rays) / len(rays)
        ours = seconds(gradient, field.device)
        rows.append(
            {
                "view": f"{resized.width}x{resized.height}",
                "full_render_seconds": seconds(lambda r=resized: render_view(field, r), field.device),
                "render_and_gradient_seconds": ours,
                "reference_seconds": reference,
                "times_faster": reference / ours,
                "full_to_reference_db": psnr(full.view(-1, 3)[index], truth),
                "fast_to_full_db": psnr(full - view.residue.view(full.shape), full),
            }
        )
    return rows


def bench_training(capture, device: torch.device, steps: int) -> list[dict]:
    """TensoRF's small forward-facing job: batch 512, grids of 40 to 96 points, the same steps for both."""
    rows = []
    config = TrainConfig(iterations=steps, batch=512, resolution=96, stages=(0.42, 0.7, 1.0))
    Trainer(capture, FieldConfig(), config, device).step()  # compiles
    for name in ("ours", "reference"):
        trainer = Trainer(capture, FieldConfig(), config, device)

        def train(trainer=trainer):
            while trainer.iteration < steps:
                trainer.step()

        if name == "reference":
            trainer._prune = lambda *ignored: None
            with Plain():
                taken = seconds(train, device, repeats=1, warm=False)
        else:
            taken = seconds(train, device, repeats=1, warm=False)
        held = [
            psnr(render_view(trainer.field, capture.cameras[i])["color"].cpu(), capture.images[i].float() / 255)
            for i in capture.test
        ]
        rows.append({"trainer": name, "steps": steps, "seconds": taken, "held_out_psnr_db": sum(held) / len(held)})
    return rows


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=str(ROOT / "outputs/flower/source"), help="run folder with a field, or none")
    parser.add_argument("--capture", type=Path, default=ROOT / "scenes/flower")
    parser.add_argument("--widths", type=int, nargs="+", default=[126, 252, 504], help="of the views, pixels")
    parser.add_argument("--reference-rays", type=int, default=2048)
    parser.add_argument("--train-steps", type=int, default=300, help="of both trainers; 0 leaves training out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    result = {"machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"}
    print(result["machine"])
    if args.run != "none":
        field = load_field(Path(args.run) / "field.safetensors", device)
        capture = load_capture(args.capture)
        result["views"] = bench_views(field, capture.cameras[capture.train[0]], args.widths, args.reference_rays)
        _print(result["views"])
    if args.train_steps:
        result["training"] = bench_training(load_capture(args.capture, width=126), device, args.train_steps)
        _print(result["training"])
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the whole benchmark, reference included: {result['peak_memory_mb']:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _print(rows: list[dict]) -> None:
    print("  ".join(rows[0]))
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("  ".join(cell.rjust(len(key)) for key, cell in zip(row, cells, strict=True)))


if __name__ == "__main__":
    main()
