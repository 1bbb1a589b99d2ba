"""`train_source.py`: capture -> field.safetensors, figures, a video; resumable."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.commands.command import command
from cds3d.commands.diagnosis import diagnose, mean_picture_psnr
from cds3d.commands.driving import OnStep, after_the_last_iteration, drive, telling
from cds3d.commands.scenes import capture_root, load_scene, naming_options, source_folder
from cds3d.commands.videos import frames_of, path_cameras
from cds3d.metrics.coverage import rarely_seen
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim
from cds3d.options import MOST_SEED, build, pick_device, whole
from cds3d.pictures import colored_depth, depth_range, seen_depth, side_by_side, write_image, write_video
from cds3d.runs import RunFolder
from tensorf.captures import Capture
from tensorf.captures.identity import identity
from tensorf.captures.llff import is_llff
from tensorf.errors import UserError
from tensorf.field import FieldConfig
from tensorf.renderable import Renderable
from tensorf.settings import TrainConfig
from tensorf.space import SPACES
from tensorf.train import Trainer

log = logging.getLogger("cds3d")

_SAMPLES_A_SECOND = 1.5e6  # of a CPU core, for runs whose cost is told beforehand: rough, measured
_LONG = 0.25  # hours


@command
def train_command(config: DictConfig, on_step: OnStep | None = None) -> Path:
    """Train what `config` says (configs/train.yaml) and return the run folder.

    on_step: called after each iteration with the number of iterations that are done, how many there are, and
    {"psnr_db": ...} of the iteration's rays. If it returns True the state is kept and `Stopped` is raised. It is not
    called while figures and videos are made in the end.
    """
    with telling(on_step):
        return _train(config)


def _train(config: DictConfig) -> Path:
    whole(config, "save_every", least=1)
    whole(config, "video_frames")
    whole(config, "video_width", least=16)
    whole(config, "seed", most=MOST_SEED)
    device = pick_device(config.device)
    capture_root(config)  # a missing scene is told first
    for space in SPACES:  # and wrong options, before poses are estimated
        field_options(config, space)
    run = RunFolder(Path(config.output) if config.output else source_folder(config), config)
    capture = load_scene(config)
    log.info("training %s at %dx%d on %s", run.path, capture.cameras[0].width, capture.cameras[0].height, device)
    with naming_options("field", "decomposition", "decoder"):
        trainer = Trainer(capture, *field_options(config, capture.space), device)
    if trainer.exposure is not None and trainer.config.exposure is None:
        log.info(
            "neighbouring photos differ in exposure: a gain and an offset of colours are learnt for each photo, and "
            "the field gets the average ones (field.exposure=0 turns this off)"
        )
    _tell_cost(trainer)
    run.begin(capture=identity(capture))
    watch = _Watch(trainer, mean_picture_psnr(capture))
    with naming_options("field", "lr_grid"):
        drive(trainer, trainer.config.iterations, run, save_every=config.save_every, label="train", each=watch)
    with after_the_last_iteration():
        trainer.finish()
        trainer.field.save(run.path / "field.safetensors")
        training_seconds = run.seconds
        metrics = evaluate(trainer.field, capture, run.path)
        if config.video_frames:
            cameras = path_cameras(capture, config.video_frames, config.video_width)
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
    if not watch.warned and (problem := _problem(trainer, held_out, metrics["train_psnr_db"], watch.mean_picture)):
        log.warning("%s", problem)
    return run.path


def _problem(trainer: Trainer, held_out: float | None, training: float, mean_picture: float | None) -> str | None:
    """`diagnose` of the field as it is now; PSNRs in dB as there."""
    capture, field = trainer.capture, trainer.field
    named, near = not is_llff(capture.root), trainer.share_at_near_plane()
    return diagnose(held_out, training, mean_picture, capture.space, named, near, lambda: rarely_seen(field, capture))


def field_options(config: DictConfig, space: str) -> tuple[FieldConfig, TrainConfig]:
    """What configs/field says for a capture of this space: where it says null, its `by_space` decides.

    space: "ndc", "box" or "unbounded", as `Capture.space` says once a capture is read. UserError for what is wrong.
    """
    if space not in SPACES:
        raise UserError(f"space={space} is none of {', '.join(SPACES)}: take that of the capture, Capture.space")
    options = dict(config.field)
    choices = options.pop("by_space", None) or {}
    of_space = (choices.get(space) or {}) if isinstance(choices, Mapping) else choices
    if not isinstance(of_space, Mapping):
        raise UserError(f"field.by_space has no options for {space}: give field.by_space.{space}.OPTION=VALUE")
    options |= {k: v for k, v in of_space.items() if options.get(k) is None}
    return build(FieldConfig, options, group="field"), build(TrainConfig, options, group="field", seed=config.seed)


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


class _Watch:
    """Logs a training, and warns once, halfway or later, if held-out pixels say that it goes wrong."""

    def __init__(self, trainer: Trainer, mean_picture: float | None):
        self.trainer, self.mean_picture = trainer, mean_picture
        self.smooth: float | None = None
        self.held_out: float | None = None
        self.warned = False

    def __call__(self, psnr_db: float, bar, writer) -> None:
        trainer, total = self.trainer, self.trainer.config.iterations
        self.smooth = psnr_db if self.smooth is None else 0.95 * self.smooth + 0.05 * psnr_db
        if trainer.iteration % 10 == 0:
            figures = {"psnr": f"{self.smooth:.2f} dB"}
            if self.held_out is not None:
                figures["held_out"] = f"{self.held_out:.2f} dB"
            bar.set_postfix(figures, refresh=False)
            writer.add_scalar("train/psnr_db", psnr_db, trainer.iteration)
        if trainer.iteration % max(1, total // 12) == 0:
            self.held_out = trainer.held_out_psnr()
            if self.held_out is not None:
                writer.add_scalar("held_out/psnr_db", self.held_out, trainer.iteration)
            late = trainer.iteration >= total / 2 and trainer.iteration >= 300
            if late and not self.warned:
                problem = _problem(trainer, self.held_out, self.smooth, self.mean_picture)
                if problem is not None:
                    bar.clear()
                    log.warning("at iteration %d, %s", trainer.iteration, problem)
                    self.warned = True


@torch.no_grad()
def evaluate(field: Renderable, capture: Capture, folder: Path) -> dict:
    """Render the held-out views (the training ones if none is held out) into views/ and compare with the photos.

    `train_psnr_db` is the mean of at most six training views, evenly spread.
    """
    indices = capture.test or capture.train
    values = {"psnr_db": [], "ssim": [], "train_psnr_db": []}
    for i in capture.train[:: math.ceil(len(capture.train) / 6)]:
        color = field.render(capture.cameras[i])["color"].cpu().clamp(0, 1)
        values["train_psnr_db"].append(psnr(color, capture.images[i].float() / 255, capture.mask(i)))
    for k, i in enumerate(tqdm(indices, desc="held-out views", unit="view")):
        rendered = field.render(capture.cameras[i])
        photo = capture.images[i].float() / 255
        color = rendered["color"].cpu().clamp(0, 1)
        values["psnr_db"].append(psnr(color, photo, capture.mask(i)))
        values["ssim"].append(ssim(color, photo, capture.mask(i)))
        if k < 4:
            write_image(folder / "views" / f"{k:02d}.png", side_by_side(photo, color))
            depth = seen_depth(rendered)
            write_image(folder / "views" / f"{k:02d}_depth.png", colored_depth(depth, *depth_range([depth])))
    figures = {k: sum(v) / len(v) for k, v in values.items()}
    return figures | {"held_out_views": len(capture.test)}
