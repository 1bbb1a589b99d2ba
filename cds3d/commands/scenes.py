"""From a configuration to a capture: shipped scenes by name; captures, photos and videos from anywhere by path."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from cds3d.commands.worlds import require_fitting_cameras
from cds3d.options import data_folder, positive, whole
from tensorf.captures import Capture, load_capture
from tensorf.captures.estimate import estimate_capture, require_pycolmap
from tensorf.captures.sources import Source, find_source, folder_of, name_of, other_estimate
from tensorf.errors import UserError

log = logging.getLogger("cds3d")

_LEAST_HEIGHT = 6  # pixels: what SSIM needs

ESTIMATES = Path("outputs") / "captures"  # where captures are kept whose poses were estimated
INSTALL = 'in a checkout, pip install ".[colmap]"'


@contextmanager
def naming_options(group: str, *names: str) -> Iterator[None]:
    """Add the option's full name to a UserError about the argument `names` of a package that knows no options."""
    try:
        yield
    except UserError as error:
        about = [name for name in names if re.search(rf"(?<![\w.]){name}(=| \()", str(error))]
        if not about:
            raise
        raise UserError(f"{error} ({', '.join(f'{group}.{name}=...' for name in about)})") from error


def capture_root(config: DictConfig) -> Path:
    """The capture's folder. UserError that lists the scenes there are.

    For photos without poses and for a video: the folder that their estimate is in, or will be in once `load_scene` has
    made it.
    """
    return _find(config)[0]


def _find(config: DictConfig) -> tuple[Path, Source | None]:
    """(folder, source): the capture's folder, and what its poses have yet to be estimated from; None where they exist.

    `config.capture` becomes the folder of a finished estimate, so that the run's config.yaml tells with which poses its
    field is trained: render.py then needs neither the photos nor pycolmap. Tells (UserError) what can be told without
    work.
    """
    if config.capture is not None:
        return _find_capture(config)
    root = Path(config.scene.root) if config.scene.root else data_folder("scenes") / str(config.scene.name)
    if not root.is_dir():
        scenes = data_folder("scenes")
        there = sorted(p.name for p in scenes.iterdir() if p.is_dir()) if scenes.is_dir() else []
        raise UserError(
            f"scene {config.scene.name}: {root} does not exist; there are: {', '.join(there) or 'none'} "
            "(--capture DIR takes a capture from anywhere)"
        )
    return root, None


def scene_name(config: DictConfig) -> str:
    return name_of(capture_root(config).resolve()) if config.capture is not None else str(config.scene.name)


def source_folder(config: DictConfig) -> Path:
    """Where the scene's field is trained, unless another folder is asked for."""
    return Path("outputs") / scene_name(config) / "source"


def load_scene(config: DictConfig, run: Path | None = None) -> Capture:
    """The capture; the poses of photos alone and of videos are estimated first, which takes minutes, once.

    run: whose field is seen from the capture's cameras; unless given, that which an edit or the viewer starts from.
    UserError if the capture has changed since, so that the cameras do not fit the field.
    """
    scene = config.scene
    whole(config, "scene.test_every")
    if scene.width is not None:
        whole(config, "scene.width", least=16)
    if scene.bound is not None:
        positive(config, "scene.bound")
    root, source = _find(config)
    if source is not None:
        estimate_capture(source, root, config.threads, show_progress=True)
        config.capture = str(root)
    check = scene.get("check", True)  # runs of older versions have no such option
    if not isinstance(check, bool):
        raise UserError(f"scene.check={check} has to be true or false")
    ships = config.capture is None and not scene.root  # and may be linked to where packages are kept
    with naming_options("scene", "width", "space", "bound", "order", "test_every", "outside"):
        capture = load_capture(
            root,
            width=scene.width,
            space=scene.space,
            bound=scene.bound,
            order=scene.get("order", "auto"),
            check=check,
            test_every=scene.test_every,
            outside=ships or may_lie_outside(config),
            show_progress=True,
        )
    height, width = capture.images.shape[1:3]
    if height < _LEAST_HEIGHT:
        raise UserError(f"{root}: photos of {width}x{height} pixels are too small: take a larger scene.width")
    if run is None and "run" in config:  # trainings and imports start from none
        run = Path(config.run) if config.run is not None else source_folder(config)
    if run is not None:
        require_fitting_cameras(run, config, capture)
    return capture


def require_capture_of(run: Path, of_run: DictConfig) -> None:
    """UserError if the capture that a run's configuration names is not there any more."""
    capture = of_run.get("capture")
    if capture is not None and not Path(capture).exists():
        raise UserError(
            f"{run}: its capture {capture} is not there: put it back, or write its new place after capture: in "
            f"{run / 'config.yaml'}"
        )


def may_lie_outside(config: DictConfig) -> bool:
    """`scene.outside`: whether pictures may lie outside of the folder that was given. UserError for another type."""
    outside = config.scene.get("outside", False)
    if not isinstance(outside, bool):
        raise UserError(f"scene.outside={outside} has to be true or false")
    return outside


def _find_capture(config: DictConfig) -> tuple[Path, Source | None]:
    path = Path(config.capture)
    if not path.exists():
        raise UserError(f"--capture {path}: no such folder or video")
    if path.is_file():
        whole(config, "scene.frames", least=3)
    with naming_options("scene", "outside"):
        source = find_source(path, config.scene.get("frames"), may_lie_outside(config))
    if source is None:
        return path, None
    folder, finished = folder_of(source, ESTIMATES)
    if finished:
        config.capture = str(folder)
        return folder, None
    require_pycolmap(source, INSTALL)
    if other := other_estimate(source, ESTIMATES):
        of = f"{path}: its poses were estimated with scene.frames={other[1]} ({other[0]}), and not with {source.frames}"
        if "edit" in config:  # which would train another field first
            raise UserError(f"{of}: give scene.frames={other[1]} to edit that field, or train the other one first")
        log.warning("%s: this is another estimate, and another field", of)
    return folder, source
