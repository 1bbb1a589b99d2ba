"""From a configuration to a capture: shipped scenes by name, captures from anywhere by folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from cds3d.options import data_folder, positive, whole
from tensorf.captures import Capture, load_capture
from tensorf.errors import UserError


def capture_root(config: DictConfig) -> Path:
    """The capture's folder. UserError that lists the scenes there are."""
    if config.capture is not None:
        root = Path(config.capture)
        if not root.is_dir():
            raise UserError(f"--capture {root}: no such folder")
        return root
    root = Path(config.scene.root) if config.scene.root else data_folder("scenes") / str(config.scene.name)
    if not root.is_dir():
        scenes = data_folder("scenes")
        there = sorted(p.name for p in scenes.iterdir() if p.is_dir()) if scenes.is_dir() else []
        raise UserError(
            f"scene {config.scene.name}: {root} does not exist; there are: {', '.join(there) or 'none'} "
            "(--capture DIR takes a capture from anywhere)"
        )
    return root


def scene_name(config: DictConfig) -> str:
    return capture_root(config).resolve().name if config.capture is not None else str(config.scene.name)


def load_scene(config: DictConfig) -> Capture:
    scene = config.scene
    whole(config, "scene.test_every")
    if scene.width is not None:
        whole(config, "scene.width", least=16)
    if scene.bound is not None:
        positive(config, "scene.bound")
    return load_capture(
        capture_root(config), width=scene.width, space=scene.space, bound=scene.bound, test_every=scene.test_every
    )
