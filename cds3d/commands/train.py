"""`train_source.py`: capture -> field.safetensors, figures, a video; resumable."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.commands.scenes import capture_root, load_scene, scene_name
from cds3d.commands.videos import colored_depth, frames_of, path_cameras, side_by_side, write_image, write_video
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim
from cds3d.options import build, pick_device, positive, whole
from cds3d.runs import RunFolder, interrupts_between_steps
from tensorf.captures import Capture
from tensorf.checkpoint import save_field
from tensorf.field import Field, FieldConfig
from tensorf.render import render_view
from tensorf.train import TrainConfig, Trainer

log = logging.getLogger("cds3d")


def source_folder(config: DictConfig) -> Path:
    return Path("outputs") / scene_name(config) / "source"


def train_command(config: DictConfig) -> Path:
    """Train what `config` says (configs/train.yaml) and return the run folder."""
    positive(config, "field.iterations", "field.batch", "field.resolution", "field.lr_grid")
    whole(config, "save_every", least=1)
    whole(config, "seed", "video_frames")
    device = pick_device(config.device)
    capture_root(config)  # a missing scene is told first
    run = RunFolder(Path(config.output) if config.output else source_folder(config), config)
    capture = load_scene(config)
    log.info("training %s at %dx%d on %s", run.path, capture.cameras[0].width, capture.cameras[0].height, device)
    train_config = build(TrainConfig, config.field, seed=config.seed)
    trainer = Trainer(capture, build(FieldConfig, config.field), train_config, device)
    run.begin()
    if (state := run.load_state()) is not None:
        trainer.load_state_dict(state)
        log.info("resumed at iteration %d", trainer.iteration)
    _optimise(trainer, run, config.save_every)
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
    log.info("%s: held-out PSNR %.2f dB, SSIM %.3f", run.path, metrics["psnr_db"], metrics["ssim"])
    return run.path


def _optimise(trainer: Trainer, run: RunFolder, save_every: int) -> None:
    """Run the trainer to its end with a progress bar; keep the state on Ctrl-C, and as it goes."""
    writer, smooth = run.logger(), None
    total = trainer.config.iterations
    bar = tqdm(total=total, initial=trainer.iteration, desc="train", unit="step")
    try:
        with interrupts_between_steps() as check:
            while trainer.iteration < total:
                value = trainer.step()
                smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
                bar.update()
                if trainer.iteration % 10 == 0:
                    bar.set_postfix(psnr=f"{smooth:.2f} dB", refresh=False)
                    writer.add_scalar("train/psnr_db", value, trainer.iteration)
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


@torch.no_grad()
def evaluate(field: Field, capture: Capture, folder: Path) -> dict:
    """Render the held-out views (the training ones if none is held out) into views/ and compare with the photos."""
    indices = capture.test or capture.train
    values = {"psnr_db": [], "ssim": []}
    for k, i in enumerate(tqdm(indices, desc="held-out views", unit="view")):
        rendered = render_view(field, capture.cameras[i])
        photo = capture.images[i].float() / 255
        color = rendered["color"].cpu().clamp(0, 1)
        values["psnr_db"].append(psnr(color, photo))
        values["ssim"].append(ssim(color, photo))
        if k < 4:
            write_image(folder / "views" / f"{k:02d}.png", side_by_side(photo, color))
            depth = colored_depth(rendered["depth"].cpu(), capture.near, capture.far)
            write_image(folder / "views" / f"{k:02d}_depth.png", depth)
    figures = {k: sum(v) / len(v) for k, v in values.items()}
    return figures | {"held_out_views": len(capture.test)}
