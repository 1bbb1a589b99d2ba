"""Edits in sequence: `edit.py --run FOLDER` edits the field of a finished run on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from cds3d.commands.scenes import require_capture_of, source_folder
from cds3d.commands.sources import take_over_source
from cds3d.commands.worlds import edited_from, fingerprint
from cds3d.runs import read_config
from tensorf.errors import UserError
from tensorf.untrusted import load_json

log = logging.getLogger("cds3d")


@dataclass(frozen=True)
class EditHistory:
    """What an edit starts from. folder: of the run whose field is edited. edits: the run, source and target prompt of
    every edit before it, the first one first. first: folder of the source that the first of them started from.
    """

    folder: Path
    edits: tuple[tuple[str, str, str], ...]
    first: Path

    def require_other_output(self, output: Path) -> None:
        """UserError if `output` is a folder that the edit starts from, or that an edit before it started from."""
        needed = (self.folder, self.first, *(Path(run) for run, _, _ in self.edits))
        if output.resolve() in {folder.resolve() for folder in needed}:
            raise UserError(f"output={output} is a field that this edit starts from: give another output folder")

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """(source, target) of every edit."""
        return [(src, tgt) for _, src, tgt in self.edits]

    @property
    def told(self) -> list[dict[str, str]]:
        """As metrics.json has it."""
        return [dict(zip(("run", "src", "tgt"), edit, strict=True)) for edit in self.edits]


def take_over(config: DictConfig) -> EditHistory:
    """The history of the edit that `config` describes; what `config.run` has decided is filled in.

    That is the scene, and the source prompt if none is given. Without a run, the source field decides how its scene is
    read (`take_over_source`). UserError for a folder without a finished run of a field.
    """
    if config.run is None:
        folder = source_folder(config)
        take_over_source(config, folder)
        return EditHistory(folder, (), folder)
    run = Path(config.run)
    edits: list[tuple[str, str, str]] = []
    of_run = _finished(run)
    require_capture_of(run, of_run)
    config.scene, config.capture = of_run.scene, of_run.get("capture")
    if config.src is None:
        config.src = of_run.get("tgt", of_run.scene.prompt)
    folder, seen = run, set()
    while "tgt" in of_run and folder.resolve() not in seen:  # a source's configuration has no prompts
        seen.add(folder.resolve())  # folders that were moved by hand may lead in a circle
        edits.append((str(folder), *(str(of_run.get(key) or "") for key in ("src", "tgt"))))  # "": refitted without
        if of_run.get("run") is None:
            return EditHistory(run, tuple(reversed(edits)), source_of(folder, of_run))
        before = Path(of_run.run)
        if not (before / "config.yaml").exists():
            edits += reversed(_told_before(folder))
            log.warning("%s is gone, which %s starts from: its prompts are those that were noted", before, folder)
            return EditHistory(run, tuple(reversed(edits)), source_of(folder, of_run))
        folder, of_run = before, read_config(before)
    return EditHistory(run, tuple(reversed(edits)), folder)


def source_of(run: Path, of_run: DictConfig) -> Path:
    """The folder of the source that an edit started from: `source` beside it, else the scene's in `outputs`.

    Where the run has noted which field it was, that one of them. There need not be any.
    """
    beside, usual = run.parent / "source", source_folder(of_run)
    there = [folder for folder in (beside, usual) if (folder / "field.safetensors").exists()]
    if (field := edited_from(run)) is not None and of_run.get("run") is None:
        if same := [folder for folder in there if fingerprint(folder) == field]:
            return same[0]
        if there:
            log.warning("%s is another field than %s was edited from: figures compare it with this one", there[0], run)
    return there[0] if there else usual


def _told_before(run: Path) -> list[tuple[str, str, str]]:
    """The edits before a run, as its metrics.json has them, the first one first."""
    try:
        history = load_json(run / "metrics.json").get("history", [])
        return [(str(step["run"]), str(step["src"]), str(step["tgt"])) for step in history]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _finished(run: Path) -> DictConfig:
    of_run = read_config(run)
    if of_run.get("image") is not None:
        raise UserError(f"--run {run} is the edit of an image: only fields can be edited on")
    if not (run / "metrics.json").exists():
        raise UserError(f"--run {run} did not finish: go on with it first (resume=true)")
    return of_run
