"""The field against a plain reference in one process: training, rendering, a view's gradient, and how they grow.

python scripts/bench_field.py                                  # all; needs outputs/flower/source (train_source.py)
python scripts/bench_field.py --only views                     # or grids, training, goal, edit
python scripts/bench_field.py --only training --train-steps 300
python scripts/bench_field.py --only training --captures my/garden my/flower

Training is of captures as small as TensoRF's authors' code can do on a CPU: an object seen from all sides (200x200, as
the synthetic lego scene), a forward-facing one (126x94), one of fine texture (126x94), and those of --captures, 126
pixels wide if they are forward-facing, else 200. Ours is given more steps until it is as good. "goal" is the time that
`train_source.py scene=flower` takes to --goal dB of the held-out photos.

The reference is the textbook: every step of every ray, tables read by `grid_sample`, a colour wherever the weight is
above 1e-4, no space skipped. It holds the same tables, so both pictures have to agree. Its time for a view is that of
--reference-rays random rays, scaled up. Seconds are of the CPU (all threads together), or of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tensorf.train as training  # noqa: E402
from cds3d.commands.edit import edit_command  # noqa: E402
from cds3d.commands.train import field_options, source_folder  # noqa: E402
from cds3d.jobs import usable_cores  # noqa: E402
from cds3d.metrics.psnr import psnr  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.pocket.world import capture as world_capture  # noqa: E402
from cds3d.pocket.world.scenes import Attributes, build_scene  # noqa: E402
from cds3d.process_memory import peak_memory_mb, reset_peak_memory  # noqa: E402
from tensorf import lookup  # noqa: E402
from tensorf.captures import load_capture  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.field import Field  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.occupancy import Samples, cell_index  # noqa: E402
from tensorf.render import Rendering  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402
from tensorf.space import Rays  # noqa: E402
from tensorf.train import Trainer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FAINT = 1e-4  # TensoRF's threshold for a colour query


def plain_render(field: Field, rays: Rays, jitter: Tensor | None = None, near: float = 0.0) -> Rendering:
    """What `render_rays` gives, sample by sample over whole rays; near is not for NDC, and not needed."""
    n, steps, device = len(rays), field.steps, rays.origins.device
    dt = field.space.t_span / steps
    offset = torch.full((n,), 0.5, device=device) if jitter is None else jitter
    t = (rays.t_near + offset * dt)[:, None] + torch.arange(steps, device=device) * dt
    far = t  # along the ray, in its units
    if field.space.kind == "unbounded":
        index = torch.arange(n, device=device)
        edges = [field.space.distance(t[:, k] + e * dt, rays, index) for k in range(steps) for e in (-0.5, 0, 0.5)]
        low, far, high = torch.stack(edges, 1).view(n, steps, 3).unbind(-1)
        half = field.space.box[1, 0] - field.space.box.mean(0)[0]
        center = field.space.box.mean(0)
        x = field.space.normalise(center + half * rays.origins[:, None] + far[..., None] * rays.viewdirs[:, None])
        length = (high - low) / half
    else:
        x = field.space.normalise(rays.origins[:, None] + t[..., None] * rays.directions[:, None])
        length = torch.full_like(t, dt)
    inside = (x.abs() <= 1).all(-1) & (t < rays.t_far[:, None])
    rate = torch.zeros(n, steps, device=device)
    # What occupancy has taken out was trained no further: it is evaluated, and then left out of the picture.
    occupied = field.occupancy.view(-1)[cell_index(field.occupancy.shape, x[inside])]
    rate[inside] = field.density(x[inside]) * length[inside] * occupied
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
    first = torch.arange(n, device=device) * steps
    samples = Samples(x.view(-1, 3), ray, t.reshape(-1), length.reshape(-1), first, n)
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
            torch.cuda.synchronize(device)
        taken.append(clock() - start)
    return min(taken[warm:])


def bench_views(field: Field, camera, widths: list[int], reference_rays: int) -> dict:
    rows = []
    middle = camera.resized(252, round(camera.height * 252 / camera.width))
    reset_peak_memory(field.device)
    view = field.view(middle)
    view.color(field).backward(torch.randn(len(view), 3, device=field.device))
    peak = peak_memory_mb(field.device)
    for width in widths:
        resized = camera.resized(width, round(camera.height * width / camera.width))
        view = field.view(resized)
        target = torch.randn(len(view), 3, device=field.device)
        index = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))[:reference_rays]
        rays = field.space.rays(resized).to(field.device)[index.to(field.device)]
        full = field.render(resized)["color"]

        def gradient(view=view, target=target):
            view.color(field).backward(target)

        def plain_gradient(rays=rays):
            for start in range(0, len(rays), 1024):
                part = rays[start : start + 1024]
                with torch.no_grad():
                    plain_render(field, part)
                plain_render(field, part).color.sum().backward()

        with Plain(), torch.no_grad():
            truth = torch.cat([plain_render(field, rays[i : i + 1024]).color for i in range(0, len(rays), 1024)])
        with Plain():
            reference = seconds(plain_gradient, field.device, repeats=1) * len(view) / len(rays)
        ours = seconds(gradient, field.device)
        rows.append(
            {
                "view": f"{resized.width}x{resized.height}",
                "full_render_seconds": seconds(lambda r=resized: field.render(r), field.device),
                "render_and_gradient_seconds": ours,
                "reference_seconds": reference,
                "times_faster": reference / ours,
                "full_to_reference_db": psnr(full.view(-1, 3)[index], truth),
                "fast_to_full_db": psnr(full - view.residue.view(full.shape), full),
            }
        )
    main = next((row for row in rows if row["view"].startswith("252x")), rows[-1])
    return {
        "views": rows,
        "view_render_and_gradient_seconds": main["render_and_gradient_seconds"],
        "fast_render_psnr_db": main["fast_to_full_db"],
        "view_peak_memory_mb": peak,
    }


ALL_SIDES = dict(batch=1024, resolution=96, stages=(0.5, 0.75, 1.0))
FORWARD_FACING = dict(batch=512, resolution=96, stages=(0.42, 0.7, 1.0))
MORE_STEPS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0)


def training_jobs(shipped: Path, folders: list[Path]) -> dict:
    """Name -> capture of all that training is measured on."""
    with tempfile.TemporaryDirectory() as folder:
        chair = Attributes(2_000_102, "object", "chair", "red", "sky", "wooden")
        world_capture.write_orbit(Path(folder, "chair"), chair)
        jobs = {"all sides, 200x200": load_capture(Path(folder, "chair"), width=200)}
        write_fine(Path(folder, "fine"))
        fine = load_capture(Path(folder, "fine"), width=126)
    jobs["forward-facing, 126x94"] = load_capture(shipped, width=126)
    jobs["fine texture, 126x94"] = fine
    for folder in folders:
        capture = load_capture(folder, width=200)
        capture = load_capture(folder, width=126) if capture.space == "ndc" else capture
        size = f"{capture.cameras[0].width}x{capture.cameras[0].height}"
        jobs[f"{folder.resolve().name}, {size}"] = capture
    return jobs


def write_fine(folder: Path, views: int = 34) -> None:
    """A forward-facing capture, 252x188: a striped cat on gravel before bricks, with twice the shipped one's detail."""

    def fine(attributes: Attributes, width: int, height: int):
        scene = build_scene(attributes, width, height)
        solids = [replace(s, grain=0.4, pattern_scale=2 * s.pattern_scale) for s in scene.solids]
        return replace(scene, ground=replace(scene.ground, grain=0.6, grain_scale=(2.0, 2.0)), solids=solids)

    cat = Attributes(2_000_100, "animal", "cat", "white", "wall")
    with mock.patch.object(world_capture, "build_scene", fine):
        world_capture.write_capture(folder, cat, views=views, width=252, height=188)


def held_out_psnr(field, capture) -> float:
    """Mean over the held-out photos, in dB."""
    pairs = ((field.render(capture.cameras[i])["color"].cpu(), capture.images[i].float() / 255) for i in capture.test)
    values = [psnr(*pair) for pair in pairs]
    return sum(values) / len(values)


def bench_goal(folder: Path, width: int | None, device: torch.device, goal: float, looks: int = 40) -> dict:
    """Seconds by the clock of training with the defaults until the held-out PSNR is `goal` dB; None if it never is.

    It is looked at `looks` times in a run; these looks, and compiling, do not count. width: of the photos, pixels.
    """
    start = time.perf_counter()
    capture = load_capture(folder, width=width)
    options = field_options(load_config("train", []), capture.space)
    first = Trainer(capture, *options, device)  # matches the photos
    taken = reading = time.perf_counter() - start
    first.step()  # compiles
    trainer, reached = Trainer(capture, *options, device), float("-inf")
    iterations = trainer.config.iterations
    while trainer.iteration < iterations and reached < goal:
        start, until = time.perf_counter(), trainer.iteration + max(1, iterations // looks)
        while trainer.iteration < min(until, iterations):
            trainer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken += time.perf_counter() - start
        reached = held_out_psnr(trainer.field, capture)
    return {
        "goal_db": goal,
        "photos": f"{capture.cameras[0].width}x{capture.cameras[0].height}",
        "seconds": taken if reached >= goal else None,
        "of_these_reading_seconds": reading,
        "steps": trainer.iteration,
        "held_out_psnr_db": reached,
    }


def bench_training(job: str, capture, device: torch.device, steps: int) -> list[dict]:
    """The reference trained for `steps`; ours for as many, then for more until its held-out PSNR is the reference's."""
    rows, settings = [], FORWARD_FACING if capture.space == "ndc" else ALL_SIDES
    field_config, defaults = field_options(load_config("train", []), capture.space)
    warm = Trainer(capture, field_config, replace(defaults, iterations=steps, **settings), device)
    warm.step()  # compiles
    for name, factor in [("reference", 1.0), *(("ours", f) for f in MORE_STEPS)]:
        config = replace(defaults, iterations=round(steps * factor), **settings)
        trainer = Trainer(capture, field_config, config, device)

        def train(trainer=trainer, config=config):
            while trainer.iteration < config.iterations:
                trainer.step()

        if name == "reference":
            trainer._prune = lambda *ignored: None
            with Plain():
                taken = seconds(train, device, repeats=1, warm=False)
        else:
            taken = seconds(train, device, repeats=1, warm=False)
        row = {"job": job, "trainer": name, "steps": config.iterations, "seconds": taken}
        rows.append(row | {"held_out_psnr_db": held_out_psnr(trainer.field, capture)})
        print(
            f"  {job}: {name}, {config.iterations} steps, {taken:.1f} s, {rows[-1]['held_out_psnr_db']:.2f} dB",
            flush=True,
        )
        if name == "ours" and rows[-1]["held_out_psnr_db"] >= rows[0]["held_out_psnr_db"]:
            break
    return rows


def speedup(rows: list[dict]) -> float | None:
    """The reference's seconds over ours, once ours is as good; None if it never was."""
    reference, last = rows[0], rows[-1]
    return reference["seconds"] / last["seconds"] if last["held_out_psnr_db"] >= reference["held_out_psnr_db"] else None


def bench_grids(field: Field, camera) -> list[dict]:
    """A 252-pixel view of the field with its grids at half, once and twice their size along each axis."""
    camera, rows = camera.resized(252, round(camera.height * 252 / camera.width)), []
    for factor in (0.5, 1, 2):
        grown = copy.deepcopy(field)
        steps = max(1, round(field.steps * factor))
        grown.resample(tuple(max(2, round(n * factor)) for n in field.resolution), steps)
        full = seconds(lambda f=grown: f.render(camera), field.device)
        reset_peak_memory(field.device)
        view = grown.view(camera)
        target = torch.randn(len(view), 3, device=field.device)
        gradient = seconds(lambda f=grown, v=view, g=target: v.color(f).backward(g), field.device)
        rows.append(
            {
                "grid": "x".join(map(str, grown.resolution)),
                "parameters": sum(p.numel() for p in grown.parameters()),
                "full_render_seconds": full,
                "render_and_gradient_seconds": gradient,
                "peak_memory_mb": peak_memory_mb(field.device),
            }
        )
    return rows


def bench_edits(camera, device: torch.device, iterations: list[int], more: list[str]) -> list[dict]:
    """Edits of scene=flower by the command: seconds by the clock of all iterations, the views' preparation too.

    And, once edited, how far the editing view of a camera is from the full render. more: options of edit.py.
    """
    rows = []
    camera = camera.resized(252, round(camera.height * 252 / camera.width))
    for count in iterations:
        with tempfile.TemporaryDirectory() as folder:
            options = [f"output={folder}/edit", "video_frames=0", f"device={device}", f"edit.iterations={count}"]
            config = load_config("edit", [*options, *more])
            config.tgt = "a red flower"
            path = edit_command(config)
            metrics = json.loads((path / "metrics.json").read_text())
            source, edited = (load_field(p / "field.safetensors", device) for p in (source_folder(config), path))
        fast, full = source.view(camera).render(edited), edited.render(camera)["color"]
        rows.append(
            {
                "iterations": count,
                "seconds": metrics["edit_seconds"],
                "peak_memory_mb": metrics["edit_peak_memory_mb"],
                "fast_to_full_db": psnr(fast, full),
            }
        )
    return rows


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("views", "grids", "training", "goal", "edit"), help="one part")
    parser.add_argument("--run", type=Path, default=ROOT / "outputs/flower/source", help="of views and grids")
    parser.add_argument("--capture", type=Path, default=ROOT / "scenes/flower")
    parser.add_argument("--captures", type=Path, nargs="+", default=[], metavar="FOLDER", help="more to train on")
    parser.add_argument("--widths", type=int, nargs="+", default=[126, 252, 504], help="of the views, pixels")
    parser.add_argument("--reference-rays", type=int, default=2048)
    parser.add_argument("--train-steps", type=int, default=1000, help="of the reference")
    parser.add_argument("--goal", type=float, default=30.0, help="PSNR in dB of the flower's held-out photos")
    parser.add_argument("--edit-iterations", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--edit-options", nargs="*", default=[], help="options of edit.py for these edits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/field.json"), help="where the figures go")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.set_num_threads(usable_cores())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result: dict = {"machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"}
    print(result["machine"])
    capture = load_capture(args.capture)
    camera = capture.cameras[capture.train[0]]
    if args.only in (None, "views", "grids"):
        field = load_field(args.run / "field.safetensors", device)
    if args.only in (None, "views"):
        result |= bench_views(field, camera, args.widths, args.reference_rays)
        _print(result["views"])
        print(f"peak memory up to a view's gradient: {result['view_peak_memory_mb']:.0f} MB")
    if args.only in (None, "grids"):
        result["grids"] = bench_grids(field, camera)
        _print(result["grids"])
    if args.only in (None, "training"):
        jobs = training_jobs(args.capture, args.captures)
        rows = {job: bench_training(job, capture, device, args.train_steps) for job, capture in jobs.items()}
        result["training"] = [row for several in rows.values() for row in several]
        speedups = {job: speedup(several) for job, several in rows.items()}
        result["train_speedups"] = speedups
        reached = [s for s in speedups.values() if s is not None]
        result["train_speedup_at_equal_psnr"] = min(reached) if len(reached) == len(speedups) else None
        _print(result["training"])
        print(f"times faster to the same PSNR: {speedups}")
    if args.only in (None, "goal"):
        result["train_to_goal"] = bench_goal(args.capture, 504, device, args.goal)
        _print([result["train_to_goal"]])
    if args.only in (None, "edit"):
        result["edits"] = bench_edits(camera, device, args.edit_iterations, args.edit_options)
        _print(result["edits"])
        full = [row["seconds"] for row in result["edits"] if row["iterations"] == 400]
        if full:
            result["edit_400_iterations_seconds"] = full[0]
    before = json.loads(args.json.read_text()) if args.only and args.json.exists() else {}  # the other parts'
    write_text(args.json, json.dumps(before | result, indent=2) + "\n")


def _print(rows: list[dict]) -> None:
    print("  ".join(rows[0]))
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("  ".join(cell.rjust(len(key)) for key, cell in zip(row, cells, strict=True)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
