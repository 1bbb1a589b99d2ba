"""`train_source.py`: capture -> field.safetensors, figures, a video; resumable."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.commands.diagnosis import diagnose, mean_picture_psnr
from cds3d.commands.scenes import capture_root, load_scene, scene_name
from cds3d.commands.videos import (
    colored_depth,
    depth_range,
    frames_of,
    path_cameras,
    seen_depth,
    side_by_side,
    write_image,
    write_video,
)
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim
from cds3d.options import build, pick_device, whole
from cds3d.runs import RunFolder, interrupts_between_steps
from tensorf.captures import Capture
from tensorf.checkpoint import save_field
from tensorf.field import Field, FieldConfig
from tensorf.render import render_view
from tensorf.settings import TrainConfig
from tensorf.train import Trainer

log = logging.getLogger("cds3d")

_SAMPLES_A_SECOND = 1.5e6  # of a CPU core, for runs whose cost is told beforehand: rough, measured
_LONG = 0.25  # hours


def source_folder(config: DictConfig) -> Path:
    return Path("outputs") / scene_name(config) / "source"


def train_command(config: DictConfig) -> Path:
    """Train what `config` says (configs/train.yaml) and return the run folder."""
    whole(config, "save_every", least=1)
    whole(config, "seed", "video_frames")
    device = pick_device(config.device)
    capture_root(config)  # a missing scene is told first
    for space in ("ndc", "box", "unbounded"):  # and wrong options, before poses are estimated
        field_options(config, space)
    run = RunFolder(Path(config.output) if config.output else source_folder(config), config)
    capture = load_scene(config)
    log.info("training %s at %dx%d on %s", run.path, capture.cameras[0].width, capture.cameras[0].height, device)
    trainer = Trainer(capture, *field_options(config, capture.space), device)
    _tell_cost(trainer)
    run.begin()
    if (state := run.load_state()) is not None:
        trainer.load_state_dict(state)
        log.info("resumed at iteration %d", trainer.iteration)
    mean_picture = mean_picture_psnr(capture)
    warned = _optimise(trainer, run, config.save_every, mean_picture)
    trainer.finish()
    save_field(trainer.field, run.path / "field.safetensors")
    training_seconds = run.seconds
    metrics = evaluate(trainer.field, capture, run.path)
    if config.video_frames:
        cameras = path_cameras(capture, "auto", config.video_frames, config.video_width)
        write_video(run.path / "video.mp4", frames_of(trainer.field, cameras, "video"), fps=15)
    metrics |= {
        "iterations": trainer.iteration,
        "training_seconds": training_seconds,
        "seconds_per_iteration": training_seconds / trainer.iteration,
        "parameters": sum(p.numel() for p in trainer.field.parameters()),
    }
    run.finish(metrics)
    which = "held-out" if capture.test else "training"
    log.info("%s: %s PSNR %.2f dB, SSIM %.3f", run.path, which, metrics["psnr_db"], metrics["ssim"])
    held_out = metrics["psnr_db"] if capture.test else None
    problem = diagnose(held_out, metrics["train_psnr_db"], mean_picture, capture.space)
    if problem is not None and not warned:
        log.warning("%s", problem)
    return run.path


def field_options(config: DictConfig, space: str) -> tuple[FieldConfig, TrainConfig]:
    """What configs/field says for a capture of this space: where it says null, its `by_space` decides.

    UserError for what is wrong with it.
    """
    options = dict(config.field)
    choices = options.pop("by_space", None) or {}
    options |= {k: v for k, v in (choices.get(space) or {}).items() if options.get(k) is None}
    return build(FieldConfig, options), build(TrainConfig, options, seed=config.seed)


def _tell_cost(trainer: Trainer) -> None:
    """Log the size of the run where it takes long."""
    config, field = trainer.config, trainer.field
    resolution, samples = trainer.final_size()
    # Pruning leaves about a fifth of all samples on average.
    total = 0.2 * config.iterations * config.batch * samples
    hours = total / _SAMPLES_A_SECOND / torch.get_num_threads() / 3600
    if trainer.device.type == "cpu" and hours < _LONG:
        return
    grid = "x".join(map(str, resolution))
    log.info(
        "%d steps of %d rays, up to %d samples each, on grids of up to %s points: %s", config.iterations, config.batch,
        samples, grid, f"about {hours:.1f} hours on this CPU" if trainer.device.type == "cpu" else field.device,
    )  # fmt: skip


def _optimise(trainer: Trainer, run: RunFolder, save_every: int, mean_picture: float | None) -> bool:
    """Run the trainer to its end with a progress bar; keep the state on Ctrl-C, and as it goes.

    Halfway, and later, warns once if held-out pixels say that it goes wrong. Returns whether it has warned.
    """
    writer, smooth, held_out, warned = run.logger(), None, None, False
    total = trainer.config.iterations
    look_every = max(1, total // 12)
    bar = tqdm(total=total, initial=trainer.iteration, desc="train", unit="step")
    try:
        with interrupts_between_steps() as check:
            while trainer.iteration < total:
                value = trainer.step()
                smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
                bar.update()
                if trainer.iteration % 10 == 0:
                    figures = {"psnr": f"{smooth:.2f} dB"}
                    if held_out is not None:
                        figures["held_out"] = f"{held_out:.2f} dB"
                    bar.set_postfix(figures, refresh=False)
                    writer.add_scalar("train/psnr_db", value, trainer.iteration)
                if trainer.iteration % look_every == 0:
                    held_out = trainer.held_out_psnr()
                    if held_out is not None:
                        writer.add_scalar("held_out/psnr_db", held_out, trainer.iteration)
                    late = trainer.iteration >= total / 2 and trainer.iteration >= 300
                    problem = diagnose(held_out, smooth, mean_picture, trainer.field.space.kind) if late else None
                    if problem is not None and not warned:
                        bar.clear()
                        log.warning("at iteration %d, %s", trainer.iteration, problem)
                        warned = True
                if trainer.iteration % save_every == 0:
                    run.save_state(trainer.state_dict())
                check()
    except KeyboardInterrupt:
        run.save_state(trainer.state_dict())
        raise KeyboardInterrupt(
            f"at iteration {trainer.iteration}; the state is kept: the same command with resume=true goes on"
        ) from None
    finally:
        bar.close()
        writer.close()
    run.save_state(trainer.state_dict())
    return warned


@torch.no_grad()
def evaluate(field: Field, capture: Capture, folder: Path) -> dict:
    """Render the held-out views (the training ones if none is held out) into views/ and compare with the photos.

    `train_psnr_db` is the mean of at most six training views, evenly spread.
    """
    indices = capture.test or capture.train
    values = {"psnr_db": [], "ssim": [], "train_psnr_db": []}
    for i in capture.train[:: math.ceil(len(capture.train) / 6)]:
        color = render_view(field, capture.cameras[i])["color"].cpu().clamp(0, 1)
        values["train_psnr_db"].append(psnr(color, capture.images[i].float() / 255))
    for k, i in enumerate(tqdm(indices, desc="held-out views", unit="view")):
        rendered = render_view(field, capture.cameras[i])
        photo = capture.images[i].float() / 255
        color = rendered["color"].cpu().clamp(0, 1)
        values["psnr_db"].append(psnr(color, photo))
        values["ssim"].append(ssim(color, photo))
        if k < 4:
            write_image(folder / "views" / f"{k:02d}.png", side_by_side(photo, color))
            depth = seen_depth(rendered)
            write_image(folder / "views" / f"{k:02d}_depth.png", colored_depth(depth, *depth_range([depth])))
    figures = {k: sum(v) / len(v) for k, v in values.items()}
    return figures | {"held_out_views": len(capture.test)}
