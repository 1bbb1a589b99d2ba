"""`edit.py --image`: one picture edited towards a prompt, by optimising its latent or its pixels."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from cds3d.commands.driving import after_the_last_iteration, drive
from cds3d.commands.early import require_picture_file
from cds3d.commands.evaluation import clip_figures, load_clip
from cds3d.commands.preparing import log_step, output_folder, prepare, warn_of_photographs
from cds3d.editor import EditConfig, Editor
from cds3d.masks import averaged
from cds3d.metrics.psnr import psnr
from cds3d.options import build, pick_device, whole
from cds3d.pictures import side_by_side, write_image
from cds3d.runs import RunFolder
from cds3d.subjects.image import LatentImage, PixelImage
from tensorf.captures.pictures import read_picture
from tensorf.errors import UserError

log = logging.getLogger("cds3d")

_PASTE_BLUR = 0.02  # side of the square over which a change is averaged, as a share of the width
_PASTE_LEAST = 0.02  # mean change below which a place counts as unchanged
_PARAMETERS = {"latent": LatentImage, "pixels": PixelImage}


def edit_image(config: DictConfig) -> Path:
    """Edit the picture `config.image` and return the run folder."""
    if config.baseline.kind != "none":
        from cds3d.commands.baselines import edit_by_baseline  # which builds on this module

        return edit_by_baseline(config)
    device, path = pick_device(config.device), Path(config.image)
    image = configured_image(config)
    edit_config = build(EditConfig, config.edit, group="edit", seed=config.seed)
    run = RunFolder(output_folder(config, Path("outputs") / "images" / path.stem), config)
    prior, objective, prompts = prepare(config, device)
    clip = load_clip(config.clip, device)
    subject = _PARAMETERS[config.edit.parameter](image, prior)
    editor = Editor(subject, prior, objective, prompts, edit_config)
    run.begin(prior.fingerprint, tensor_fingerprint(image))
    seconds = drive_editor(editor, run, image)
    figures = {"iterations": editor.iteration, "seconds_per_iteration": seconds}
    figures["edit_seconds"] = seconds * editor.iteration
    with after_the_last_iteration():
        finish_image(run, image, subject.image(), figures, clip)
    return run.path


def tensor_fingerprint(values: Tensor) -> str:
    """Tells a picture, or the cells of a region, from others: 16 hexadecimal digits."""
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:16]


def drive_editor(editor: Editor, run: RunFolder, image: Tensor) -> float:
    """Edit (3, H, W) `image` to the last iteration; returns the seconds an iteration."""
    iterations = editor.config.iterations

    def pictures() -> dict[str, Tensor]:
        return {"source_and_edit": torch.cat([image, editor.subject.image().to(image.device)], 2).permute(1, 2, 0)}

    each = log_step(editor, iterations, pictures)
    return drive(editor, iterations, run, save_every=run.config.save_every, label="edit", each=each)


def configured_image(config: DictConfig) -> Tensor:
    """(3, H, W) in [0, 1]: the picture `config.image`, its longer side `guidance.image_width` pixels.

    So portraits and landscapes are as large as the model's training pictures. UserError if it cannot be read.
    """
    if config.guidance.image_width is not None:
        whole(config, "guidance.image_width", least=16)
    try:
        image = read_image(Path(config.image), config.guidance.image_width)
    except UserError as error:
        raise UserError(f"--image {error}") from error
    around = list(Path(config.image).absolute().parents)[:2]  # a capture's photos lie in it or in its images/
    warn_of_photographs(config, around)
    return image


def finish_image(run: RunFolder, source: Tensor, edited: Tensor, figures: dict, clip) -> None:
    """Write edited.png, comparison.png and metrics.json. source, edited: (3, H, W) in [0, 1]; clip: `load_clip`'s."""
    before, after = (x.permute(1, 2, 0) for x in (source, edited))
    write_image(run.path / "edited.png", after)
    write_image(run.path / "comparison.png", side_by_side(before, after))
    if run.config.paste:
        whole = read_image(Path(run.config.image)).permute(1, 2, 0)
        write_image(run.path / "edited_full.png", pasted(whole, before, after))
    told = clip_figures(clip, run.config.src, run.config.tgt, [before], [after])
    run.finish({"psnr_to_source_db": psnr(after, before), **told, **figures})
    log.info("%s: done", run.path / "edited.png")


def pasted(whole: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What changed from `before` to `after` (h, w, 3), enlarged, in the picture `whole` (H, W, 3) that `before` is of.

    All else stays as it is, with its details: also where the change is no more than that of most of the picture, which
    the model's decoder makes everywhere. All in [0, 1].
    """
    size = (after - before).abs().amax(-1)[None, None]
    spread = max(3, round(_PASTE_BLUR * before.shape[1])) // 2 * 2 + 1
    mean = averaged(size, spread)
    low = max(_PASTE_LEAST, 1.5 * float(mean.median()))
    weight = ((mean - low) / low).clamp(0, 1)
    both = torch.cat([after.permute(2, 0, 1)[None], weight], 1)
    large = F.interpolate(both, whole.shape[:2], mode="bicubic", align_corners=False)[0].permute(1, 2, 0).clamp(0, 1)
    return torch.lerp(whole, large[..., :3], large[..., 3:])


def read_image(path: Path, longest: int | None = None) -> torch.Tensor:
    """(3, H, W) in [0, 1], upright by EXIF; transparency on white; the longer side resized to `longest` pixels,
    or to more if the shorter one would have fewer than 16.

    UserError if it cannot be read, or has fewer than 16x16 pixels.
    """
    require_picture_file(path)
    picture = Image.fromarray(read_picture(path, white=True, upright=True))
    if min(picture.size) < 16:
        raise UserError(f"{path} is {picture.width}x{picture.height}: at least 16x16 pixels are needed")
    if longest is not None and max(picture.size) != longest:
        scale = max(longest / max(picture.size), 16 / min(picture.size))  # strips keep 16 pixels, and their shape
        size = [round(side * scale) for side in picture.size]
        if max(picture.size) < longest:
            log.info(
                "%s is %dx%d: enlarged to %dx%d, as the model was trained on such pictures "
                "(guidance.image_width=null leaves it as it is)", path, *picture.size, *size,
            )  # fmt: skip
        picture = picture.resize(size, Image.LANCZOS)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
