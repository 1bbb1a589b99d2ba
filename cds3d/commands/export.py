"""`cds3d export RUN FORMAT`: a run's field as other programs read it."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from cds3d.commands.command import command
from cds3d.commands.scenes import load_scene, naming_options, require_capture_of
from cds3d.commands.videos import cameras_along, check_path
from cds3d.export.field import FORMATS, own_views, write_export
from cds3d.options import boolean, pick_device, whole
from cds3d.runs import read_config
from tensorf.cameras import size_for_width
from tensorf.errors import UserError
from tensorf.renderable import load_field

log = logging.getLogger("cds3d")

_DATASET = ("images", "sparse", "points.ply", "transforms.json", ".DS_Store")  # what a dataset consists of


@command
def export_command(config: DictConfig) -> Path:
    """Export what `config` (configs/export.yaml) says and return the folder or file."""
    if config.run is None or config.format is None:
        raise UserError("which run, and as what? as in: cds3d export outputs/flower/a-red-flower dataset")
    if config.format not in FORMATS:
        raise UserError(f"format={config.format} is unknown; use one of: {', '.join(FORMATS)}")
    if config.path is not None and config.format != "dataset":
        raise UserError(f"path= adds views to a dataset; {config.format} has none")
    if config.path is not None:
        check_path(config.path)
    boolean(config, "overwrite")
    whole(config, "frames", "points", least=1)
    run = Path(config.run)
    output = _output(config, run)
    of_run = read_config(run)
    if of_run.get("image") is not None:
        raise UserError(f"{run} is the edit of an image: only fields can be exported")
    require_capture_of(run, of_run)
    field, capture = load_field(run / "field.safetensors", pick_device(config.device)), load_scene(of_run, run)
    names, cameras = own_views(capture)
    if config.path is not None:
        along = cameras_along(capture, config.path, config.frames)
        cameras += [c.resized(cameras[0].width, cameras[0].height) for c in along]
        names += _new_names(names, len(along))
    if config.width is not None:
        whole(config, "width", least=16)
        cameras = [c.resized(*size_for_width(c.width, c.height, config.width)) for c in cameras]
    with naming_options("scene", "space"):
        count = write_export(field, capture, config.format, output, names, cameras, config.points)
    if config.format == "splats":
        log.info("a preview: one round Gaussian for each of %d pixels; to train splats, export a dataset", count)
    log.info("%s: %s", output, f"{len(names)} views and {count} points" if output.is_dir() else count)
    return output


def _new_names(taken: list[str], count: int) -> list[str]:
    """Names for views of a path: a capture may be an export, which has such views already."""
    prefix = "path"
    while any(name.startswith(f"{prefix}_") for name in taken):
        prefix += "_more"
    return [f"{prefix}_{i:04d}" for i in range(count)]


def _output(config: DictConfig, run: Path) -> Path:
    """UserError for what is there already, or has the wrong name."""
    dataset = config.format == "dataset"
    default = run / "export" / (config.format if dataset else f"{config.format}.ply")
    output = Path(config.output) if config.output is not None else default
    if not dataset and output.suffix != ".ply":
        raise UserError(f"output={output} has to end in .ply")
    if output.exists():
        if not config.overwrite:
            raise UserError(f"{output} exists: pass overwrite=true, or output=")
        ours = ("transforms.json", "points.ply", "sparse/0/cameras.bin")  # a capture has the first one, too
        if output.is_dir() != dataset or (dataset and not all((output / name).exists() for name in ours)):
            raise UserError(f"{output} is no export of this format: give another output=")
        others = sorted(p.name for p in output.iterdir() if p.name not in _DATASET) if dataset else []
        if others:  # such as runs of a field that was trained on it
            raise UserError(
                f"{output} holds more than an export ({', '.join(others[:3])}), which overwrite=true would delete: "
                "give another output="
            )
    return output
