"""`edit.py --views FOLDER`: a field refitted to pictures of it that something else has edited.

    python edit.py --views my_edits                       # pictures named as the scene's photos, all or some of them
    python edit.py --capture my_scene --views my_edits --src "a cat" --tgt "a pig"

The pictures may come from any tool, or a hand. The source field is trained on, with the pictures in the photos' place:
the "dataset update" of Instruct-NeRF2NeRF (Haque et al., ICCV 2023), whose editor here is whatever made the pictures.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.driving import after_the_last_iteration, drive
from cds3d.commands.evaluation import evaluate_edit, load_clip
from cds3d.commands.history import EditHistory
from cds3d.commands.named_pictures import by_photo, picture_files, read_as_photo
from cds3d.commands.scenes import load_scene, may_lie_outside, naming_options
from cds3d.commands.train import field_options
from cds3d.commands.worlds import fingerprint
from cds3d.masks import averaged, dilated
from cds3d.options import build, pick_device
from cds3d.process_memory import peak_memory_mb, reset_peak_memory
from cds3d.runs import RunFolder
from cds3d.slugs import slug
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.field import Field
from tensorf.renderable import load_field
from tensorf.train import Trainer

log = logging.getLogger("cds3d")


@dataclass(frozen=True)
class RefitConfig:
    """How a field is trained on towards edited pictures. Raises ValueError for what makes no sense."""

    iterations: int
    lr_grid: float  # Adam's rates, which fall as in training
    lr_network: float
    mask_threshold: float  # difference to the photo, in [0, 1], from which on a pixel of the picture is taken; 0: all
    margin: float  # how far around such pixels the picture is taken too, as a share of the width
    blur: float  # side of the square over which the difference is a mean, as a share of the width
    grow: float  # how far from the source's surfaces new ones may appear, as a share of the scene's longest side

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} has to be at least 1")
        for name in ("lr_grid", "lr_network"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} has to be a number above 0")
        for name in ("mask_threshold", "margin", "blur", "grow"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 0 and below 1")


def begin_refit(config: DictConfig, parent: Path) -> tuple[RunFolder, RefitConfig]:
    """The run folder, in `parent` unless `config.output` says where, and the options.

    UserError for what can be told without work, of the folder of pictures too.
    """
    refit = build(RefitConfig, config.refit, group="refit")
    folder = Path(config.views)
    picture_files(folder, f"--views {folder}", may_lie_outside(config))
    name = slug(str(config.tgt)) if config.tgt is not None else slug(folder.resolve().name)
    return RunFolder(Path(config.output) if config.output else parent / f"{name}-views", config), refit


def refit_field(config: DictConfig, source_path: Path, run: RunFolder, refit: RefitConfig) -> Path:
    """Refit the source field to the pictures in `config.views` and return the run folder.

    source_path: the finished run of the source. UserError for pictures that do not fit, before anything is written.
    """
    device = pick_device(config.device)
    clip = load_clip(config.clip, device) if config.tgt is not None else None
    capture, source = load_scene(config), load_field(source_path / "field.safetensors", device)
    if not isinstance(source, Field):
        raise UserError(f"{source_path} holds a {type(source).__name__}: only TensoRF's fields can be refitted")
    edited = with_pictures(capture, Path(config.views), refit, may_lie_outside(config))
    _, train = field_options(config, capture.space)
    train = replace(
        train,
        iterations=refit.iterations,
        lr_grid=refit.lr_grid,
        lr_network=refit.lr_network,
        stages=(1.0,),
        upsample_at=(),
        prune_at=(0.5,),
        sightings=0.0,  # the points are the source's
        exposure=0.0,  # other colours are the edit
        view_noise=0.0,  # the source has learnt already how colours depend on the direction
    )
    trainer = Trainer(edited, source.config, train, device, start=source)
    trainer.open_occupancy(refit.grow)
    run.begin(source=fingerprint(source_path))
    reset_peak_memory(device)

    def each(psnr_db: float, bar, writer) -> None:
        if trainer.iteration % 10 == 0:
            bar.set_postfix(psnr=f"{psnr_db:.2f} dB", refresh=False)
            writer.add_scalar("refit/psnr_db", psnr_db, trainer.iteration)

    with naming_options("refit", "lr_grid"):
        seconds = drive(trainer, refit.iterations, run, save_every=config.save_every, label="refit", each=each)
    trainer.finish()
    target, peak_mb = trainer.field, peak_memory_mb(device)
    history = EditHistory(source_path, (), source_path)
    with after_the_last_iteration():
        target.save(run.path / "field.safetensors")
        metrics = evaluate_edit(config, run.path, capture, source, target, clip, history)
    run.finish(
        metrics
        | {
            "pictures": len(edited.train),
            "iterations": trainer.iteration,
            "seconds_per_iteration": seconds,
            "edit_seconds": seconds * trainer.iteration,
            "edit_peak_memory_mb": peak_mb,
        }
    )
    log.info("%s: done", run.path)
    return run.path


def with_pictures(capture: Capture, folder: Path, refit: RefitConfig, outside: bool = False) -> Capture:
    """The capture with edited pictures in place of the training photos of their names, and those views alone to train.

    outside: the pictures may be links that lead out of the folder.
    UserError if the folder has no picture of a training view, or one of another shape than its photo.
    """
    option = f"--views {folder}"
    files = by_photo(picture_files(folder, option, outside), capture, option)
    given = [i for i in files if i in set(capture.train)]
    if not given:
        raise UserError(
            f"--views {folder} has no picture of a training view, such as {capture.image_names[capture.train[0]]}"
        )
    left = len(files) - len(given)
    log.info(
        "refitting to %d of %d training views%s", len(given), len(capture.train),
        f"; {left} of held-out views are not used" if left else "",
    )  # fmt: skip
    images, taken = capture.images.clone(), []
    for i in tqdm(sorted(given), desc="pictures", unit="picture"):
        photo = capture.images[i]
        height, width = photo.shape[:2]
        picture = read_as_photo(files[i], width, height, option, white=True)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.LANCZOS)
        picture = torch.from_numpy(np.asarray(picture).copy())
        mask = changed_mask(picture, photo, refit)
        images[i] = torch.where(mask[..., None], picture, photo)
        taken.append(float(mask.float().mean()))
    log.info("%.0f%% of the pixels are taken from the pictures, the others from the photos", 100 * np.mean(taken))
    return replace(capture, images=images, train=sorted(given))


def changed_mask(picture: Tensor, photo: Tensor, refit: RefitConfig) -> Tensor:
    """(H, W) bool: where an edited picture (H, W, 3) uint8 is taken in place of its photo."""
    if refit.mask_threshold == 0:
        return torch.ones(picture.shape[:2], dtype=torch.bool)
    apart = ((picture.float() - photo.float()).abs().amax(-1) / 255)[None, None]
    side = 2 * round(refit.blur * picture.shape[1] / 2) + 1
    near = averaged(apart, side)[0, 0] > refit.mask_threshold
    return dilated(near, round(refit.margin * picture.shape[1]))
