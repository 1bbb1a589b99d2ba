"""Whether a capture's cameras still stand where they stood when the field of a run was trained."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from omegaconf import DictConfig

from cds3d.runs import read_config
from tensorf.captures import Capture
from tensorf.captures.identity import change, identity
from tensorf.errors import UserError

log = logging.getLogger("cds3d")

PLACING = ("width", "space", "bound", "order", "check", "test_every")  # of scene: where the cameras stand


def fingerprint(source: Path) -> str:
    """Tells a field from all others: a hash of its file."""
    digest = hashlib.sha256()
    with (source / "field.safetensors").open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def edited_from(run: Path) -> str | None:
    """`fingerprint` of the field that an edit was begun from, as its run has noted it; None where it has not."""
    path = run / "state" / "source.txt"
    return path.read_text(errors="replace").strip() if path.is_file() else None


def require_fitting_cameras(run: Path, config: DictConfig, capture: Capture) -> None:
    """UserError if the capture has changed since the run's field was trained, so that its cameras no longer fit.

    A warning where they still do. config: what the capture was read by. Runs of earlier versions have not noted what
    they were trained on: nothing is told of them, nor of a capture that is read otherwise.
    """
    source = _trained(run)
    if source is None or not _read_alike(config, read_config(source)):
        return
    found = change(_note(source).read_text(errors="replace"), identity(capture))
    if found is None:
        return
    what = f"{capture.root} has changed since {source} was made from it ({found.told})"
    if not found.fits:
        raise UserError(
            f"{what}, and its cameras no longer fit that field: put it back as it was, or make {source} again "
            "(overwrite=true)"
        )
    log.warning("%s: its cameras still fit that field, which knows nothing of the change", what)


def _trained(run: Path) -> Path | None:
    """The run, of those that the field of `run` goes back to, that has noted its capture; None if that cannot be told.

    An edit that has noted which field it started from goes back to that one alone.
    """
    seen = set()
    while not _note(run).is_file():
        seen.add(run.resolve())  # folders that were moved by hand may lead in a circle
        if not (run / "config.yaml").is_file() or "tgt" not in (of_run := read_config(run)):
            return None  # a source's configuration has no prompts
        before = Path(of_run.run) if of_run.get("run") is not None else run.parent / "source"
        if before.resolve() in seen or not (before / "field.safetensors").is_file():
            return None
        if (field := edited_from(run)) is not None and field != fingerprint(before):
            return None
        run = before
    return run


def _note(run: Path) -> Path:
    """Where `RunFolder.begin` keeps the identity of the capture that a run was begun with."""
    return run / "state" / "capture.txt"


def _read_alike(config: DictConfig, of_source: DictConfig) -> bool:
    return all(config.scene.get(key) == of_source.scene.get(key) for key in PLACING)
