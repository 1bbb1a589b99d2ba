"""One case of an image task: the command's own 2D edit, judged along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch import Tensor

from cds3d.baselines.baseline import Baseline
from cds3d.bench.tasks import Case
from cds3d.commands.baselines import build_baseline
from cds3d.commands.preparing import build_objective, check_timesteps
from cds3d.editor import EditConfig, Editor
from cds3d.guidance.prior import Prior
from cds3d.metrics.truth import Truth, picture_figures
from cds3d.objectives.objective import Prompts
from cds3d.options import build
from cds3d.pocket.model.judge import Judge, agrees, labels
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import Attributes, build_scene
from cds3d.process_memory import peak_memory_mb, reset_peak_memory
from cds3d.subjects.image import LatentImage

WIDTH, HEIGHT = 256, 192
STAGES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # shares of the run at which figures are taken


def edit_case(
    case: Case, config: DictConfig, prior: Prior, judge: Judge, start: str = "source"
) -> tuple[dict, list[dict], dict[str, Tensor]]:
    """Run the edit of a case's image that `config` (configs/edit.yaml with edit=latent) describes, baselines too.

    start: where the latent begins: "source", or "truth", the true edit, to see how far the method moves away from it.
    Returns the final figures with seconds, those of each stage with its iteration, and pictures (H, W, 3).
    """
    before, after = (render(build_scene(a, WIDTH, HEIGHT)) for a in (case.source, case.target))
    truth = Truth.of(before, after)
    reset_peak_memory(prior.device)
    subject = LatentImage(_picture_of(before), prior)
    source = subject.image().permute(1, 2, 0)  # decoded: what the VAE loses is nobody's edit
    if start == "truth":
        with torch.no_grad():
            subject.parameter.copy_(LatentImage(_picture_of(after), prior).source)
    stages, spent, start = [], 0.0, time.perf_counter()
    for iteration in _edited(subject, case, config, prior):
        spent += time.perf_counter() - start
        edited = subject.image().permute(1, 2, 0)
        stages.append({"iteration": iteration, **picture_and_judge(edited, source, truth, judge, case.target)})
        start = time.perf_counter()
    final = {k: v for k, v in stages[-1].items() if k != "iteration"}
    final |= {"seconds": spent, "peak_memory_mb": peak_memory_mb(prior.device)}
    return final, stages, {"source": source, "truth": truth.image, "edit": edited}


def _edited(subject: LatentImage, case: Case, config: DictConfig, prior: Prior) -> Iterator[int]:
    """Edit the subject by the configuration's objective or baseline; gives the iteration at each stage.

    A baseline that samples has one stage, its end, and no iterations.
    """
    baseline = None if config.baseline.kind == "none" else build_baseline(config)
    if isinstance(baseline, Baseline):
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            subject.parameter.copy_(baseline.edit(prior, subject.source, case.src, case.tgt, generator=generator))
        yield 0
        return
    objective = baseline or build_objective(config)
    check_timesteps(objective, prior, "baseline" if baseline else "objective")
    edit_config = build(EditConfig, config.edit, group="edit", seed=config.seed)
    editor = Editor(subject, prior, objective, Prompts.of(prior, case.src, case.tgt), edit_config)
    for share in STAGES:
        while editor.iteration < math.ceil(share * editor.config.iterations):
            editor.step()
        yield editor.iteration


def bounds(case: Case, prior: Prior, judge: Judge) -> dict[str, dict[str, float]]:
    """What doing nothing scores, and what the true edit scores once it has gone through the VAE."""
    before, after = (render(build_scene(a, WIDTH, HEIGHT)) for a in (case.source, case.target))
    truth = Truth.of(before, after)
    source, ceiling = (decoded(r, prior) for r in (before, after))
    return {
        name: picture_and_judge(image, source, truth, judge, case.target)
        for name, image in (("unedited", source), ("truth", ceiling))
    }


def decoded(rendering, prior: Prior) -> Tensor:
    """(H, W, 3): a render once it has gone through the VAE."""
    return LatentImage(_picture_of(rendering), prior).image().permute(1, 2, 0)


def _picture_of(rendering) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(rendering.image).permute(2, 0, 1).float() / 255


def picture_and_judge(
    edited: Tensor, source: Tensor, truth: Truth, judge: Judge, target: Attributes
) -> dict[str, float]:
    """`picture_figures`, and accuracy: 1 if the judge sees the target's species, colour and material, else 0."""
    seen = agrees(judge, edited.permute(2, 0, 1)[None], labels(target))
    return picture_figures(edited, source, truth) | {"accuracy": float(seen[0])}
