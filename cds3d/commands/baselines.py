"""`edit.py --image ... baseline=NAME`: one picture edited by a method that CDS is compared with."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from cds3d.baselines import BASELINES
from cds3d.baselines.baseline import Baseline
from cds3d.commands.evaluation import load_clip
from cds3d.commands.images import configured_image, drive_editor, finish_image, tensor_fingerprint
from cds3d.commands.preparing import (
    check_negative_prompt,
    check_timesteps,
    configured_prior,
    embedded,
    usual_options,
)
from cds3d.editor import EditConfig, Editor
from cds3d.objectives.objective import Objective
from cds3d.options import build, pick_device
from cds3d.runs import RunFolder
from cds3d.slugs import slug
from cds3d.subjects.image import LatentImage
from tensorf.errors import UserError

log = logging.getLogger("cds3d")


def edit_by_baseline(config: DictConfig) -> Path:
    """Edit the picture `config.image` by `config.baseline` and return the run folder."""
    device = pick_device(config.device)
    if config.edit.get("parameter") != "latent":
        raise UserError("a baseline edits the latent: leave out edit=, or say edit=latent")
    if config.objective.kind != "cds":
        raise UserError(f"give either baseline={config.baseline.kind} or objective={config.objective.kind}, not both")
    method = build_baseline(config)
    edit_config = build(EditConfig, config.edit, group="edit", seed=config.seed)
    image = configured_image(config)
    check_negative_prompt(config, "baseline")
    _warn_of_unused(config, ("objective",) if isinstance(method, Objective) else ("objective", "edit"))
    run = RunFolder(_output_folder(config), config)
    prior = configured_prior(config, device)
    clip = load_clip(config.clip, device)
    subject = LatentImage(image, prior)
    prompts = embedded(prior, config)
    if isinstance(method, Objective):
        check_timesteps(method, prior, "baseline")
        editor = Editor(subject, prior, method, prompts, edit_config)
        run.begin(prior.fingerprint, tensor_fingerprint(image))
        seconds = drive_editor(editor, run, image)
        steps = editor.iteration
    else:
        method.check(prior)
        run.begin(prior.fingerprint, tensor_fingerprint(image))
        steps, seconds = _sample(method, subject, config)
    figures = {"iterations": steps, "seconds_per_iteration": seconds, "edit_seconds": seconds * steps}
    finish_image(run, image, subject.image(), figures, clip)
    return run.path


def build_baseline(config: DictConfig) -> Baseline | Objective:
    """The method that configs/baseline describes; UserError for options that make no sense."""
    kind = config.baseline.kind
    if kind not in BASELINES:
        raise UserError(f"baseline.kind={kind} is unknown; use baseline=NAME with one of: {', '.join(BASELINES)}")
    return build(BASELINES[kind], config.baseline, group="baseline")


def _warn_of_unused(config: DictConfig, unused: tuple[str, ...]) -> None:
    """One warning for options of these groups, and the guidance scale, that were set and change nothing here."""
    default = usual_options(config, "edit=latent")
    usual = default.guidance.scale
    for key in ("scale", "image_scale_end"):  # options of the groups follow them
        default.guidance[key] = config.guidance[key]
    keys = [f"{group}.{key}" for group in unused for key in config[group]]
    changed = [key for key in keys if OmegaConf.select(config, key) != OmegaConf.select(default, key)]
    if config.guidance.scale != usual:
        changed.append("guidance.scale")
    if changed:
        log.warning(
            "baseline=%s does not use %s: its own options begin with baseline.",
            config.baseline.kind,
            ", ".join(changed),
        )


def _output_folder(config: DictConfig) -> Path:
    """outputs/images/<file stem>/<prompt>-<baseline>."""
    if config.output is not None:
        return Path(config.output)
    return Path("outputs") / "images" / Path(config.image).stem / f"{slug(config.tgt)}-{config.baseline.kind}"


@torch.no_grad()
def _sample(method: Baseline, subject: LatentImage, config: DictConfig) -> tuple[int, float]:
    """Put the edited latent into `subject`; returns the steps of inversion and sampling, and the seconds each took.

    There is no state in between: a run that was stopped starts again.
    """
    count, start = 0, time.perf_counter()

    def track(steps: Iterable, label: str) -> Iterator:
        nonlocal count
        for step in tqdm(steps, desc=label, unit="step"):
            yield step
            count += 1

    generator = torch.Generator().manual_seed(config.seed)
    try:
        z = method.edit(subject.prior, subject.source, config.src, config.tgt, generator=generator, track=track)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"after {count} steps; the same command starts again") from None
    if not torch.isfinite(z).all():
        raise UserError("the edited latent is not finite: lower the baseline's scale, or use guidance.dtype=fp32")
    subject.parameter.copy_(z)
    return count, (time.perf_counter() - start) / max(1, count)
