"""`cds3d import`: a model of TensoRF's authors -> a source field among the cameras of its capture."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from cds3d.commands.command import command
from cds3d.commands.diagnosis import mean_picture_psnr
from cds3d.commands.scenes import capture_root, load_scene, source_folder
from cds3d.commands.train import evaluate
from cds3d.commands.videos import frames_of, path_cameras, resized_to
from cds3d.metrics.psnr import psnr
from cds3d.options import pick_device, whole
from cds3d.pictures import write_video
from cds3d.runs import RunFolder
from tensorf.captures import Capture
from tensorf.captures.identity import identity
from tensorf.errors import UserError
from tensorf.official.field import OfficialField
from tensorf.official.placing import official_field, unseen_by
from tensorf.official.reading import Official, read_official

log = logging.getLogger("cds3d")

_GREY = {"white": 1.0, "black": 0.0}
_CLEARLY = 1.0  # dB by which the unusual has to fit better
_VIEWS, _WIDTH = 3, 96  # training views that decide whether the world is mirrored, and their width in pixels


@command
def import_command(config: DictConfig) -> Path:
    """Import what `config` (configs/import.yaml) says and return the run folder."""
    if config.model is None or (config.capture is None and config.scene.name is None):
        raise UserError("which model, and of which capture? as in: cds3d import model.th my_scene")
    whole(config, "video_frames")
    whole(config, "video_width", least=16)
    if config.background is not None and config.background not in _GREY:
        raise UserError(f"background={config.background} has to be white, black or null")
    if config.mirrored is not None and not isinstance(config.mirrored, bool):
        raise UserError(f"mirrored={config.mirrored} has to be true, false or null")
    device = pick_device(config.device)
    capture_root(config)  # a missing capture is told before a large file is read
    model = read_official(Path(config.model))
    run = RunFolder(Path(config.output) if config.output else source_folder(config), config)
    capture = load_scene(config)
    field = _placed(model, capture, config, device)
    _warn_of_unseen(field, capture, config)
    run.begin(capture=identity(capture))
    field.save(run.path / "field.safetensors")
    metrics = evaluate(field, capture, run.path)
    if config.video_frames:
        cameras = path_cameras(capture, config.video_frames, config.video_width)
        write_video(run.path / "video.mp4", frames_of(field, cameras, "video"), fps=15)
    run.finish(metrics | {"parameters": sum(p.numel() for p in field.parameters())})
    which = "held-out" if capture.test else "training"
    log.info("%s: %s PSNR %.2f dB, SSIM %.3f", run.path, which, metrics["psnr_db"], metrics["ssim"])
    least = mean_picture_psnr(capture)
    if least is not None and metrics["psnr_db"] < least:
        log.warning(
            "%s: its renders have %.1f dB, less than the mean of all photos with %.1f dB: is %s the capture that it "
            "was trained on?", config.model, metrics["psnr_db"], least, capture.root,
        )  # fmt: skip
    return run.path


def _placed(model: Official, capture: Capture, config: DictConfig, device: torch.device) -> OfficialField:
    """The field, the right way round."""
    background = _GREY.get(config.background)
    if not model.forward_facing or config.mirrored is not None:
        mirrored = config.mirrored is not False
        return official_field(model, capture, mirrored, background).to(device)
    fields = [official_field(model, capture, mirrored, background).to(device) for mirrored in (True, False)]
    usual, other = (_fit(field, capture) for field in fields)
    taken = int(other > usual + _CLEARLY)
    log.info(
        "against the photos, the model has %.1f dB in a mirrored world, as the authors' loader makes it, and %.1f dB "
        "in one that is not: mirrored=%s", usual, other, ("true", "false")[taken],
    )  # fmt: skip
    return fields[taken]


def _fit(field: OfficialField, capture: Capture) -> float:
    """Mean PSNR in dB of small renders of a few training views."""
    values = []
    for i in capture.train[:: max(1, len(capture.train) // _VIEWS)][:_VIEWS]:
        camera = resized_to(capture.cameras[i], min(_WIDTH, capture.cameras[i].width))
        photo = capture.images[i].permute(2, 0, 1)[None].float() / 255
        size = (camera.height, camera.width)
        small = F.interpolate(photo, size, mode="area")[0].permute(1, 2, 0)
        mask = capture.mask(i)
        counts = None if mask is None else F.interpolate(mask[None, None].float(), size, mode="area")[0, 0] > 0.999
        values.append(psnr(field.render(camera)["color"].cpu(), small, counts))
    return sum(values) / len(values)


def _warn_of_unseen(field: OfficialField, capture: Capture, config: DictConfig) -> None:
    unseen, used = unseen_by(field, capture), len(capture.train) + len(capture.test)
    if unseen:
        log.warning(
            "%s: %d of %d cameras of %s do not see the model's box, the first is %s: is it the capture that the model "
            "was trained on?", config.model, len(unseen), used, capture.root, capture.image_names[unseen[0]],
        )  # fmt: skip
