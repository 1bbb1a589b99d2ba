"""One edit of a capture's field, by the command itself, with figures that only the world can give.

The captures are those that ship, and captures of held-out scenes, which are made when they are first asked for.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.edit import edit_command
from cds3d.commands.scenes import capture_root, load_scene, scene_name
from cds3d.pocket.world.capture import WorldCapture, write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.files import atomic_folder


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
    with atomic_folder(folder) as begun:
        write_capture(begun, attributes, progress=partial(tqdm, desc=str(folder), unit="view"))


# Figures of an edit's metrics.json, under the benchmark's own names.
_FIGURES = ("edit_truth_psnr_db", "edit_gain_db", "edit_truth_ssim", "kept_psnr_db", "structure", "depth_error")
_FIGURES += ("view_consistency_db", "accuracy")


def field_case(config: DictConfig) -> tuple[Capture, WorldCapture, Attributes]:
    """The capture that `config` (configs/edit.yaml) names, its world, and what the true edit shows.

    UserError where there is no such edit, or no held-out view.
    """
    capture, world = load_scene(config), WorldCapture.read(capture_root(config))
    target = world.edited(str(config.src or config.scene.prompt), config.tgt) if world else None
    if target is None or not capture.test:
        raise UserError(f'{scene_name(config)} has no true edit towards "{config.tgt}", or no held-out view')
    return capture, world, target


def edit_field(config: DictConfig) -> tuple[dict, dict[str, Tensor]]:
    """Run `edit_command` on `config` (configs/edit.yaml), unless its folder holds the finished run, and read it.

    Returns figures, means over the held-out cameras, and pictures (H, W, 3) of the first of them.
    """
    folder = Path(config.output)
    field_case(config)
    if not (folder / "metrics.json").exists():
        edit_command(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    figures = {key: metrics.get(key, math.nan) for key in _FIGURES}
    figures |= {"seconds": metrics["edit_seconds"], "peak_memory_mb": metrics["edit_peak_memory_mb"]}
    source, edit = _picture(folder / "views" / "00.png").chunk(2, 1)
    return figures, {"source": source, "truth": _picture(folder / "views" / "00_truth.png"), "edit": edit}


def _picture(path: Path) -> Tensor:
    """(H, W, 3) in [0, 1]."""
    return torch.from_numpy(iio.imread(path)).float() / 255
