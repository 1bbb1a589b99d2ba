"""Which edits a sweep consists of."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cds3d import yaml_files
from cds3d.commands.scenes import source_folder
from cds3d.options import RESERVED, data_folder, groups, load_config
from cds3d.slugs import slug
from tensorf.errors import UserError, reason

_LISTS = ("scenes", "edits", "objectives", "options", "seeds")
_OURS = (*RESERVED, "objective", "seed", "device", "threads", "video_frames")  # options that a sweep sets itself
_OF_THE_SWEEP = {"scene": "scenes", "objective": "objectives", "seed": "seeds", "threads": "threads_each"}
_OF_THE_SWEEP |= {name: name for name in ("device", "video_frames", "output")}  # what a sweep has in their place
_MOST = 10_000  # edits
_LONGEST = 60  # characters of a prompt in a folder's name


@dataclass(frozen=True)
class Task:
    """One edit. flags, options: of `edit.py`; folder: its run's, in `runs/`; source: of the field that it edits."""

    scene: str
    src: str | None
    tgt: str
    objective: str
    extra: tuple[str, ...]
    seed: int
    flags: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path
    source: Path


def plan(config: DictConfig, output: Path) -> list[Task]:
    """All edits of a sweep. UserError for what cannot be read, is unknown, or comes twice."""
    axes = _axes(config)
    if (count := math.prod(map(len, axes.values()))) > _MOST:
        raise UserError(f"a sweep of {count:,} edits: give shorter lists, of {_MOST:,} edits at most")
    tasks, places = [], lru_cache(None)(_places)
    for scene, edit, objective, extra, seed in product(
        *(axes[name] for name in _LISTS[:3]), axes["options"], axes["seeds"]
    ):
        tasks.append(_task(scene, edit, objective, extra, seed, output, places))
    _require_one_source(tasks)
    folders = [task.folder for task in tasks]
    if len(set(folders)) < len(folders):
        twice = next(task for task in tasks if folders.count(task.folder) > 1)
        raise UserError(f'the edit of {twice.scene} to "{twice.tgt}" comes twice with the same options')
    return tasks


def _require_one_source(tasks: list[Task]) -> None:
    """UserError where options would train one source field in two ways: there is one folder for it."""
    trained: dict[Path, tuple[str, ...]] = {}
    for task in tasks:
        own = tuple(o for o in task.extra if o.startswith(("scene.", "field.", "field=")))
        if trained.setdefault(task.source, own) != own:
            first, second = (shlex.join(o) or "none" for o in (trained[task.source], own))
            raise UserError(
                f"options: {task.source} would be trained with {first}, and with {second}: a sweep trains a scene's "
                "field once; sweep the other options in another sweep"
            )


def _axes(config: DictConfig) -> dict[str, list]:
    axes = {name: OmegaConf.to_object(v) if OmegaConf.is_config(v := config[name]) else v for name in _LISTS}
    if config.file is not None:
        path = Path(config.file)
        try:
            table = OmegaConf.to_object(yaml_files.load_yaml(path))
        except yaml_files.ERRORS as error:
            raise UserError(f"{path} cannot be read ({reason(error)}): it has to be a YAML file with lists") from error
        if not isinstance(table, dict) or (unknown := table.keys() - {*_LISTS}):
            what = f"{sorted(unknown)[0]} is unknown" if isinstance(table, dict) else "it is no mapping"
            raise UserError(f"{path}: {what}; it has to have lists, of {', '.join(_LISTS)}")
        axes |= {name: value for name, value in table.items() if axes[name] is None}  # the command line wins
    defaults = {"scenes": ["flower"], "objectives": ["cds"], "options": [""], "seeds": [0]}
    axes = {name: defaults.get(name) if value is None else value for name, value in axes.items()}
    if not axes["edits"]:
        raise UserError('edits is empty: as in edits=\'["a red flower","a yellow flower -> a blue flower"]\'')
    for name, values in axes.items():
        kind = int if name == "seeds" else str
        if not isinstance(values, list) or not values or any(type(v) is not kind for v in values):
            what = "whole numbers" if kind is int else "texts"
            raise UserError(f"{name}={values} has to be a list of {what}")
    if unknown := set(axes["objectives"]) - set(groups()["objective"]):
        raise UserError(f"objectives: {unknown.pop()} is unknown; use some of {', '.join(groups()['objective'])}")
    if min(axes["seeds"]) < 0:
        raise UserError("seeds have to be 0 or more")
    return axes


def _task(scene: str, edit: str, objective: str, extra: str, seed: int, output: Path, places) -> Task:
    src, arrow, tgt = (part.strip() for part in edit.rpartition("->"))
    if not tgt or (arrow and not src):
        raise UserError(f'edits: "{edit}" has to be a target prompt, or "source -> target"')
    more = _variant(extra)
    ships, capture, source = places(scene, objective, more)
    if not ships and not src:
        raise UserError(f'edits: "{edit}" has to be "source -> target": {scene}, a capture of your own, has no prompt')
    flags = (f"--tgt={tgt}", *([f"--src={src}"] if src else []), *([] if ships else [f"--capture={capture}"]))
    options = (f"objective={objective}", f"seed={seed}", *more)
    name = [source.parent.name, slug(tgt)[:_LONGEST], objective, f"seed{seed}"]
    complete = " ".join(tgt.lower().split()) == name[1].replace("-", " ")
    if more or src or not ships or not complete:  # a hash tells what the name does not, as of other alphabets
        place = None if ships else str(Path(capture).absolute())
        name.append(hashlib.sha256(json.dumps([src, more, tgt, place]).encode()).hexdigest()[:8])
    folder = output / "runs" / "-".join(name)
    options = (*options, *([f"scene={scene}"] if ships else []))
    return Task(scene, src or None, tgt, objective, more, seed, flags, options, folder, source)


def _variant(extra: str) -> tuple[str, ...]:
    """The options in one text, split as a shell would. UserError for what is none, or what a sweep sets itself."""
    quotes = "put quotes around a value that has spaces, as in where='the yellow flower'"
    try:
        more = tuple(shlex.split(extra))
    except ValueError as error:
        raise UserError(f"options: {extra} cannot be read ({reason(error).lower()}): {quotes}") from error
    if wrong := [o for o in more if "=" not in o or o.split("=")[0] in _OURS]:
        key, equals, _ = wrong[0].partition("=")
        if equals and key in _OF_THE_SWEEP:
            raise UserError(f"options: {wrong[0]} is for the sweep itself: give {_OF_THE_SWEEP[key]}= beside options=")
        hint = f"; {quotes}" if "=" not in wrong[0] else ""
        raise UserError(f"options: {wrong[0]} has to be an option of edit.py that a sweep does not set itself{hint}")
    return more


def scene_config(scene: str, *options: str) -> tuple[bool, DictConfig]:
    """(whether the scene ships, the configuration of an edit of it). UserError for wrong options."""
    ships = scene in groups()["scene"] and scene != "capture"
    config = load_config("edit", [f"scene={scene if ships else 'capture'}", *options])
    config.capture = None if ships else scene
    return ships, config


def _places(scene: str, objective: str, more: tuple[str, ...]) -> tuple[bool, str, Path]:
    """(whether the scene ships, its capture's folder if not, its source's folder). UserError for wrong options.

    Composing a configuration takes a good part of a second: edits that differ in prompts and seeds share it.
    """
    ships, config = scene_config(scene, f"objective={objective}", *more)
    if ships and not (data_folder("scenes") / scene).is_dir():
        raise UserError(f"scenes: {scene} is not there")
    source = source_folder(config)
    return ships, config.capture, source  # of photos whose poses are estimated: the estimate
