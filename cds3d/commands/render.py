"""`render.py`: a run folder's field along a camera path, as a video."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.commands.scenes import load_scene, naming_options
from cds3d.commands.videos import colored_depth, depth_range, path_cameras, resized_to, seen_depth, write_video
from cds3d.options import pick_device, positive, whole
from cds3d.runs import read_config
from tensorf.errors import UserError
from tensorf.renderable import load_field

log = logging.getLogger("cds3d")


def render_command(config: DictConfig) -> Path:
    """Render what `config` says (configs/render.yaml) and return the video's path."""
    if config.run is None:
        raise UserError("which run? as in: python render.py outputs/flower/a-red-flower")
    whole(config, "frames", least=1)
    positive(config, "fps")
    run = Path(config.run)
    of_run = read_config(run)
    if of_run.get("image") is not None:
        raise UserError(f"{run} is the edit of an image: only fields can be rendered")
    field = load_field(run / "field.safetensors", pick_device(config.device))
    capture = load_scene(of_run)
    kind = config.path
    width = config.width if config.width is not None else of_run.get("edit", {}).get("width")
    cameras = path_cameras(capture, kind, config.frames, None)
    if width is not None:
        cameras = [resized_to(c, width) for c in cameras]
    output = Path(config.output) if config.output else run / f"{'path' if kind == 'auto' else kind}.mp4"
    if output.suffix != ".mp4":
        raise UserError(f"output={output} has to end in .mp4")
    with naming_options("scene", "space"):
        rendered = [field.render(c) for c in tqdm(cameras, desc="render", unit="frame")]
    write_video(output, [r["color"].cpu() for r in rendered], config.fps)
    if config.depth:
        depths = [seen_depth(r) for r in rendered]
        frames = [colored_depth(d, *depth_range(depths)) for d in depths]
        write_video(output.with_name(output.stem + "_depth.mp4"), frames, config.fps)
    log.info("%s: %d frames of %dx%d", output, len(cameras), cameras[0].width, cameras[0].height)
    return output
