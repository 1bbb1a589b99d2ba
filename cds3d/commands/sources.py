"""The source field that an edit starts from: its capture has to be read as it was read for the training."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cds3d.commands.scenes import capture_root, scene_name
from cds3d.commands.worlds import PLACING
from cds3d.options import data_folder, groups, load_config
from cds3d.runs import read_config
from tensorf.errors import UserError


def take_over_source(config: DictConfig, source: Path, *, field: bool = True) -> None:
    """Fill in the options of the scene, and of the field, that the finished run `source` was trained with.

    Another space, order or width would put the cameras at other places than those of the training. Does nothing if the
    source is not trained yet. field: whether the field's options are taken over too.

    Raises UserError if `config` asks for something else, or if the source was trained on another capture.
    """
    if not (source / "metrics.json").exists():
        return
    of_source = read_config(source)
    _require_same_capture(config, of_source, source)
    defaults = _scene_defaults(config)
    for key in PLACING:
        if key in of_source.scene:
            _take(config, source, f"scene.{key}", OmegaConf.select(of_source, f"scene.{key}"), defaults.get(key))
    if field and isinstance(of_source.get("field"), DictConfig):  # imported fields have no such options
        defaults = OmegaConf.load(data_folder("configs") / "field" / "default.yaml")
        for key in config.field:
            if key in of_source.field:  # sources of older versions lack the newer ones
                _take(config, source, f"field.{key}", of_source.field[key], defaults.get(key))


def _take(config: DictConfig, source: Path, key: str, trained, default) -> None:
    asked = OmegaConf.select(config, key)
    if asked == trained:
        return
    if asked != default:
        raise UserError(
            f"{source} was trained with {key}={trained}, not {asked}: leave {key} out, or the preset that sets it; or "
            f"train the source again with it (train_source.py ... {key}={asked} overwrite=true)"
        )
    OmegaConf.update(config, key, trained, force_add=True)


def _scene_defaults(config: DictConfig) -> DictConfig:
    name = config.scene.name if config.scene.name in groups()["scene"] else "capture"
    return load_config("train", [f"scene={name}"]).scene


def _require_same_capture(config: DictConfig, of_source: DictConfig, source: Path) -> None:
    """UserError if the source's capture is still there and is another one. One that was moved or copied is fine."""
    now, before = _root(config), _root(of_source)
    if now is not None and before is not None and not now.samefile(before) and _files(now) != _files(before):
        raise UserError(
            f"{source} was trained on {before}, not on {now}, and both have the name {scene_name(config)}: "
            "rename one of the folders, or train the source again (train_source.py ... overwrite=true)"
        )


def _root(config: DictConfig) -> Path | None:
    """The capture's folder, if it is still there."""
    try:
        root = capture_root(config)
    except UserError:
        return None
    return root if root.is_dir() else None


def _files(folder: Path) -> set[tuple[str, int]]:
    """(path in the folder, bytes) of every file, but for hidden ones: a Mac's Finder leaves .DS_Store behind."""
    files = (file for file in folder.rglob("*") if file.name[0] != "." and file.is_file())
    return {(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files}
