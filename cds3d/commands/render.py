"""`render.py`: a run folder's field along a camera path, as a video or as pictures."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.command import command
from cds3d.commands.scenes import load_scene, require_capture_of
from cds3d.commands.videos import cameras_along, check_path, even_sized, path_kind
from cds3d.options import boolean, pick_device, positive, whole
from cds3d.pictures import colored_depth, depth_range, seen_depth, write_image, write_video
from cds3d.runs import read_config
from tensorf.cameras import Camera, size_for_width
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.files import atomic, atomic_folder, write_text
from tensorf.path_files import frames_per_second
from tensorf.renderable import Renderable, load_field

log = logging.getLogger("cds3d")

# What `write_pictures` and `write_depths` leave in a folder: pictures by number, and a file that tells it is theirs.
_PICTURE, _FRAMES, _DEPTH = re.compile(r"\d{4,}\.png"), "frames.json", "depth.json"
_FPS = 15
_FAR = 2.0  # times the depth up to which nearly all pixels lie: what a 16-bit depth picture can tell apart


@command
def render_command(config: DictConfig) -> Path:
    """Render what `config` says (configs/render.yaml) and return the video's, or the pictures' folder's, path."""
    if config.run is None:
        raise UserError("which run? as in: python render.py outputs/flower/a-red-flower")
    whole(config, "frames", least=1)
    if config.fps is not None:
        positive(config, "fps")
    if config.width is not None:
        whole(config, "width", least=16)
    if config.format not in ("mp4", "png"):
        raise UserError(f"format={config.format} is unknown; use mp4 or png")
    boolean(config, "depth")
    config.path = config.path or "auto"
    check_path(config.path, "auto")
    run = Path(config.run)
    of_run = read_config(run)
    if of_run.get("image") is not None:
        raise UserError(f"{run} is the edit of an image: only fields can be rendered")
    require_capture_of(run, of_run)
    field = load_field(run / "field.safetensors", pick_device(config.device))
    capture = load_scene(of_run, run)
    cameras = _cameras(config, of_run, capture, field)
    output = _output(config, capture, run)
    of_file = frames_per_second(Path(config.path)) if config.path.endswith(".json") else None
    fps = config.fps or of_file or _FPS
    written, depths = [output], []
    colors = _colors(field, cameras, depths if config.depth else None)
    if config.format == "mp4":
        write_video(output, colors, fps)
    else:
        write_pictures(output, colors)
    if config.depth:
        written.append(output.with_name(f"{output.stem}_depth{output.suffix}"))
        if config.format == "mp4":
            low, high = depth_range(depths)
            write_video(written[1], (colored_depth(d, low, high) for d in depths), fps)
        else:
            axial = [axial_depth(field, c, d) for c, d in zip(cameras, depths, strict=True)]
            write_depths(written[1], axial, float(capture.world_from_capture[:3, 0].norm()))
    for path in written:
        log.info("%s: %d frames of %dx%d", path, len(cameras), cameras[0].width, cameras[0].height)
    return output


def _colors(field: Renderable, cameras: list[Camera], depths: list[Tensor] | None) -> Iterator[Tensor]:
    """Frames (H, W, 3), rendered as they are asked for; their depths (H, W) are added to `depths`."""
    for camera in tqdm(cameras, desc="render", unit="frame"):
        rendered = field.render(camera)
        if depths is not None:
            depths.append(seen_depth(rendered))
        yield rendered["color"].cpu()


def _cameras(config: DictConfig, of_run: DictConfig, capture: Capture, field: Renderable) -> list[Camera]:
    """The path at its size: of `config.width` pixels, any, else of the run's views, or a file's own."""
    cameras = cameras_along(
        capture, config.path if config.path != "auto" else path_kind(capture, "auto"), config.frames
    )
    width = config.width
    if width is None and not config.path.endswith(".json"):
        width = min(of_run.get("edit", {}).get("width") or cameras[0].width, cameras[0].width)
    if width is not None:
        cameras = [c.resized(*size_for_width(c.width, c.height, width)) for c in cameras]
    if config.format == "mp4":
        size = even_sized(cameras[0])  # a file's cameras may differ, a video's frames may not
        cameras = [c.resized(size.width, size.height) for c in cameras]
    for i, camera in enumerate(cameras):  # in NDC a path may look where there is nothing: told before work is done
        try:
            field.space.rays(camera.resized(4, 4))
        except UserError as error:
            remedy = "path=spiral stays where the photos were taken" if config.path == "orbit" else str(error)
            raise UserError(f"path={config.path}: camera {i} looks aside or back from the scene: {remedy}") from error
    return cameras


def _output(config: DictConfig, capture: Capture, run: Path) -> Path:
    kind = path_kind(capture, config.path)
    name = Path(kind).stem if kind.endswith(".json") else kind
    if config.format == "mp4":
        output = Path(config.output) if config.output else run / f"{name}.mp4"
        if output.suffix != ".mp4":
            raise UserError(f"output={output} has to end in .mp4, or give format=png")
        return output
    output = Path(config.output) if config.output else run / f"{name}_frames"
    if output.suffix == ".mp4" or (output.exists() and not output.is_dir()):
        raise UserError(f"output={output} has to be a folder's name for format=png")
    folders = {output: _FRAMES}
    if config.depth:
        folders[output.with_name(f"{output.name}_depth")] = _DEPTH
    for folder, ours in folders.items():
        names = {p.name for p in folder.iterdir()} - {".DS_Store"} if folder.exists() else set()
        if names and (ours not in names or any(not _PICTURE.fullmatch(name) for name in names - {ours})):
            raise UserError(f"{folder} holds other files: give another output=")
    return output


def write_pictures(folder: Path, frames: Iterable[Tensor]) -> None:
    """frames (H, W, 3) as 0000.png, 0001.png, ..., and frames.json, which says how many; older pictures go."""
    with atomic_folder(folder) as begun:
        count = 0
        for frame in frames:
            write_image(begun / f"{count:04d}.png", frame)
            count += 1
        write_text(begun / _FRAMES, json.dumps({"frames": count}) + "\n")


def write_depths(folder: Path, depths: list[Tensor], scale: float) -> None:
    """Depths (H, W) along the optical axis as 16-bit pictures, and depth.json, which tells what a level is.

    depths: world units, infinite where nothing is seen, which becomes 0. scale: world units in one of the capture's.
    One pixel that looks into the distance must not take the levels from all others: the farthest hundredth of what is
    seen shares the highest level where it lies much farther.
    """
    farthest = max((float(d[d.isfinite()].max()) for d in depths if d.isfinite().any()), default=65535.0)
    unit = min(farthest, _FAR * depth_range(depths)[1]) / 65535
    with atomic_folder(folder) as begun:
        for i, depth in enumerate(depths):
            levels = torch.where(depth.isfinite(), (depth / unit).round().clamp(1, 65535), 0)
            picture = Image.fromarray(levels.numpy().astype(np.uint16))
            with atomic(begun / f"{i:04d}.png") as partial:
                picture.save(partial)
        told = {"capture_units_per_level": unit / scale, "nothing_seen": 0, "this_or_farther": 65535}
        told["depth"] = "along the optical axis"
        write_text(begun / _DEPTH, json.dumps(told, indent=1) + "\n")


def axial_depth(field: Renderable, camera: Camera, depth: Tensor) -> Tensor:
    """(H, W) as the renderer counts depths (`Space.depth`) -> along the camera's optical axis; infinite stays."""
    points = field.space.points(camera, depth.nan_to_num(posinf=0.0))
    along = ((points - camera.position) @ camera.forward).view(depth.shape)
    return along.masked_fill(depth.isinf(), torch.inf)
