"""What a perfect editor would gain that cannot know what a prompt leaves open: a dog's coat, a cow's patches.

The world's own true edits in other looks, scored as edits are; pose, light, camera and place are the truth's. Where the
prompt names the colour, nothing is left open, and there are no such figures.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from cds3d.bench.fields import field_case
from cds3d.bench.images import HEIGHT, WIDTH, decoded, picture_and_judge
from cds3d.bench.tasks import Case, other_looks
from cds3d.commands.videos import resized_to
from cds3d.guidance.prior import Prior
from cds3d.metrics.truth import Truth, mean_figures
from cds3d.pocket.model.judge import Judge, load_judge
from cds3d.pocket.world.capture import SUPERSAMPLE
from cds3d.pocket.world.raycast import Render, render
from cds3d.pocket.world.scenes import Attributes, build_scene

View = tuple[Tensor, Truth]  # (source (H, W, 3), the true edit)


def image_looks(case: Case, prior: Prior, judge: Judge) -> dict[str, dict[str, float]]:
    """`look_figures` of an image task's case; pictures have gone through the VAE, as those of edits."""
    if not (seeds := other_looks(case.target)):
        return {}
    before, after = (render(build_scene(a, WIDTH, HEIGHT)) for a in (case.source, case.target))
    view = decoded(before, prior), Truth.of(before, after)
    others = (render(build_scene(case.target, WIDTH, HEIGHT, look=seed)) for seed in seeds)
    return look_figures([[decoded(other, prior)] for other in others], [view], judge, case.target)


def field_looks(config: DictConfig) -> dict[str, dict[str, float]]:
    """`look_figures` from the held-out cameras of the capture that `config` (configs/edit.yaml) names.

    The source is the world's own render: no field is needed.
    """
    capture, world, target = field_case(config)
    if not (seeds := other_looks(target)):
        return {}
    views: list[View] = []
    pictures: list[list[Tensor]] = [[] for _ in seeds]
    for i in capture.test:
        size = resized_to(capture.cameras[i], config.edit.width)
        camera = world.cameras[Path(capture.image_names[i]).stem].resized(size.width, size.height)

        def seen(attributes: Attributes, look: int | None = None, camera=camera) -> Render:
            scene = build_scene(attributes, camera.width, camera.height, look=look)
            return render(scene, camera, supersample=SUPERSAMPLE)

        before = seen(world.attributes)
        views.append((_picture(before), Truth.of(before, seen(target))))
        for of_look, seed in zip(pictures, seeds, strict=True):
            of_look.append(_picture(seen(target, seed)))
    return look_figures(pictures, views, load_judge(), target)


def look_figures(
    pictures: list[list[Tensor]], views: list[View], judge: Judge, target: Attributes
) -> dict[str, dict[str, float]]:
    """pictures: of each look the true edit (H, W, 3) in it, one for each of `views`.

    another_look: the mean of the looks. best_look: the one of the largest gain. average_look: the average of the
    pictures, which is no animal of the world, but has the least mean squared error to all of them.
    """

    def figures(of_look: list[Tensor]) -> dict[str, float]:
        rows = [picture_and_judge(p, *view, judge, target) for p, view in zip(of_look, views, strict=True)]
        return dict.fromkeys(rows[0], math.nan) | mean_figures(rows)

    each = [figures(of_look) for of_look in pictures]
    return {
        "another_look": dict.fromkeys(each[0], math.nan) | mean_figures(each),
        "best_look": max(each, key=lambda row: row["edit_gain_db"]),
        "average_look": figures([torch.stack(same).mean(0) for same in zip(*pictures, strict=True)]),
    }


def _picture(view: Render) -> Tensor:
    """(H, W, 3) in [0, 1]."""
    return torch.from_numpy(view.image).float() / 255
