"""One edit of a capture's field, by the command itself, with figures that only the world can give.

The captures are those that ship, and captures of held-out scenes, which are made when they are first asked for.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from cds3d.bench.figures import Truth, picture_figures
from cds3d.commands.edit import edit_command
from cds3d.commands.scenes import capture_root, load_scene, scene_name
from cds3d.commands.train import source_folder
from cds3d.commands.videos import resized_to
from cds3d.metrics.consistency import view_consistency
from cds3d.metrics.depth import depth_error, true_depth
from cds3d.options import pick_device
from cds3d.pocket.capture import WorldCapture, write_capture
from cds3d.pocket.judge import Judge
from cds3d.pocket.world import Attributes
from tensorf.checkpoint import load_field
from tensorf.errors import UserError
from tensorf.render import render_view


def held_out_capture(name: str) -> Path:
    return Path("outputs") / "captures" / name


def check_held_out_capture(folder: Path, attributes: Attributes) -> bool:
    """Whether the folder holds a capture of the scene; UserError if it holds anything else."""
    if not folder.exists():
        return False
    try:
        world = WorldCapture.read(folder)
    except UserError:
        world = None
    if world is None or world.attributes != attributes:
        raise UserError(f"{folder} holds no capture of {attributes}: delete it, and outputs/{folder.name}")
    return True


def make_held_out_capture(folder: Path, attributes: Attributes) -> None:
    """As many and as large views as those that ship, all or nothing."""
    begun = folder.with_name(f"{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    write_capture(begun, attributes, progress=partial(tqdm, desc=str(folder), unit="view"))
    begun.rename(folder)


def edit_field(config: DictConfig, judge: Judge) -> tuple[dict, dict[str, Tensor]]:
    """Run `edit_command` on `config` (configs/edit.yaml), unless its folder holds the finished run, and judge it.

    Returns figures, means over the held-out cameras, and pictures (H, W, 3) of the first of them.
    """
    folder, capture = Path(config.output), load_scene(config)
    world = WorldCapture.read(capture_root(config))
    target = world.edited(str(config.src or config.scene.prompt), config.tgt) if world else None
    if target is None or not capture.test:
        raise UserError(f'{scene_name(config)} has no true edit towards "{config.tgt}", or no held-out view')
    if not (folder / "metrics.json").exists():
        edit_command(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    device = pick_device(config.device)
    source, edited = (load_field(f / "field.safetensors", device) for f in (source_folder(config), folder))
    cameras = [resized_to(capture.cameras[i], config.edit.width) for i in capture.test]
    before, after = (
        [{k: v.cpu() for k, v in render_view(field, c).items()} for c in cameras] for field in (source, edited)
    )
    rows, first = [], {}
    for k, (i, camera) in enumerate(zip(capture.test, cameras)):
        name = Path(capture.image_names[i]).stem
        was, now = (world.view(name, a, camera.width, camera.height) for a in (world.attributes, target))
        truth = Truth.of(was, now)
        row = picture_figures(after[k]["color"], before[k]["color"], truth, judge, target)
        depth = true_depth(capture, edited.space, camera, now.depth)
        row["depth_error"] = depth_error(after[k]["depth"], depth, torch.from_numpy(now.subject))
        rows.append(row)
        if not first:
            first = {"source": before[k]["color"], "truth": truth.image, "edit": after[k]["color"]}
    figures = {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}
    # Neighbours on a path through the held-out cameras, nearest first, see much of the same.
    order = _path(torch.stack([c.position for c in cameras]))
    figures["view_consistency_db"] = view_consistency(
        edited.space, [cameras[i] for i in order], [after[i] for i in order]
    )
    figures["seconds"] = metrics["edit_seconds"]
    figures["peak_memory_mb"] = metrics["edit_peak_memory_mb"]
    return figures, first


def _path(positions: Tensor) -> list[int]:
    """A walk from the first of n positions (n, 3), always on to the nearest not yet seen."""
    order, left = [0], set(range(1, len(positions)))
    while left:
        here = positions[order[-1]]
        order.append(min(left, key=lambda i: float((positions[i] - here).norm())))
        left.remove(order[-1])
    return order
