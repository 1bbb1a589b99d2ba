"""How much memory the edits of a sweep need, told before the first of them, and so how many fit at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf

import cds3d  # noqa: F401  (memory policy before torch)
from cds3d.cli import configured
from cds3d.commands.preparing import check_prompts, is_local, most_views, prepare
from cds3d.commands.regions import read_pointing
from cds3d.commands.scenes import load_scene
from cds3d.commands.train import field_options
from cds3d.commands.videos import resized_to
from cds3d.forecast import field_edit_mb
from cds3d.jobs import usable_cores
from cds3d.options import pick_device
from cds3d.process_memory import memory_mb
from cds3d.sweep.plan import Task
from tensorf.captures import Capture
from tensorf.errors import reason
from tensorf.field import Field
from tensorf.settings import finest_resolution, grid_resolution, step_count
from tensorf.space import space_of

log = logging.getLogger("cds3d")

_CONTEXT_MB = 1536.0  # what a process takes of a GPU beside its tensors: CUDA's context, the allocator's gaps; a guess


@dataclass(frozen=True)
class Forecast:
    """edit_mb: what the process of the largest edit needs at its peak, of the device it runs on; free_mb: what that has
    now.
    """

    edit_mb: float
    free_mb: float


def questions(tasks: Sequence[Task], fixed: Sequence[str]) -> list[tuple[str, ...]]:
    """Edits of which the memory is asked, each by its flags and options of `edit.py`.

    One for all edits that differ in prompts and seeds alone, which take the same memory.
    """
    kinds = {(task.scene, task.objective, task.extra): task for task in tasks}
    return [(*task.flags, *task.options, *fixed) for task in kinds.values()]


def forecast(asked: Sequence[Sequence[str]]) -> Forecast:
    """The forecast of the largest edit. asked: the flags and options of each, of one edit at least.

    Edits that cannot be made are left out; if none can, the last one's exception is raised.
    """
    needed, failure, loaded = [], None, {}
    for flags in asked:
        try:
            needed.append(_edit_mb(flags, loaded))
        except Exception as error:  # of any kind of model: the edit itself will tell
            failure = error
    if not needed:
        raise failure
    device = pick_device(configured("edit", list(asked[0])).device)
    context = _CONTEXT_MB if device.type == "cuda" else 0.0
    return Forecast(max(needed) + context, free_mb(device))


def _edit_mb(flags: Sequence[str], loaded: dict[tuple, Capture]) -> float:
    """loaded: the capture of the last edit, which is that of the next one too if the scene is the same."""
    config = configured("edit", [*flags, "scene.check=false"])
    check_prompts(config)
    device = pick_device(config.device)
    prior, objective, prompts = prepare(config, device)
    scene = config.capture, OmegaConf.to_yaml(config.scene)
    if scene not in loaded:
        loaded.clear()
        loaded[scene] = load_scene(config)
    capture = loaded[scene]
    views = [resized_to(capture.cameras[i], config.edit.width) for i in capture.train]
    if "fit" in config.edit:
        views = views[: config.edit.fit.views]
    elif not is_local(config):
        views = views[: most_views(config, read_pointing(config).find)]
    field = _untrained(config, capture).to(device)
    before, size = memory_mb(device), (views[0].height, views[0].width)
    kind = dict(local=is_local(config), redrawn="redraw" in config.edit)
    parts = field_edit_mb(prior, prompts.target, field, len(views), *size, objective.unet_graphs, **kind)
    return before + sum(parts.values())


def _untrained(config, capture: Capture) -> Field:
    """A field as large as that of the capture's source before its empty rims are cut off."""
    field_config, train = field_options(config, capture.space)
    space = space_of(capture)
    longest = round(min(train.resolution, finest_resolution(capture, space, train)) * train.stages[-1])
    resolution = grid_resolution(space, longest, train.depth_resolution)
    return Field(field_config, space, resolution, step_count(space, longest, train))


def free_mb(device: torch.device) -> float:
    """Memory of the device that is free for a new process: for a CPU what the system can give without swapping.

    macOS has no file that tells this: there it is half of the machine's memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    try:
        return int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) / 2**10
    except (OSError, TypeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20 / 2


def default_jobs(tasks: Sequence[Task], fixed: Sequence[str], threads_each: int) -> int:
    """As many edits as there are cores, and memory for. Asked in a process of its own, so that nothing of it stays."""
    cores = max(1, usable_cores() // threads_each)
    if not tasks:  # a source may be left to train
        return cores
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as other:
            told = other.submit(forecast, questions(tasks, fixed)).result()
    except (Exception, BrokenExecutor) as error:  # of any kind of model: the edits themselves will tell
        log.info("what an edit needs could not be told beforehand: %s", reason(error))
        return cores
    jobs = max(1, min(cores, int(told.free_mb // told.edit_mb)))
    log.info("an edit is expected to need %.1f GB of %.1f GB", told.edit_mb / 1024, told.free_mb / 1024)
    return jobs
