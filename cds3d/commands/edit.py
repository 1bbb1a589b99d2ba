"""`edit.py`: a scene's source field, or an image, edited towards a prompt; resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cds3d.by_pictures import FitConfig, PictureEdit
from cds3d.commands.command import command
from cds3d.commands.driving import OnStep, Work, after_the_last_iteration, drive, telling
from cds3d.commands.early import check_image
from cds3d.commands.evaluation import evaluate_edit, load_clip
from cds3d.commands.history import EditHistory, take_over
from cds3d.commands.images import edit_image, tensor_fingerprint
from cds3d.commands.preparing import (
    check_prompts,
    is_local,
    log_step,
    most_views,
    output_folder,
    prepare,
    usual_options,
    warn_of_photographs,
)
from cds3d.commands.refit import begin_refit, refit_field
from cds3d.commands.regions import Pointing, given_region, read_pointing, zoomed_views
from cds3d.commands.scenes import capture_root, load_scene, source_folder
from cds3d.commands.sources import take_over_source
from cds3d.commands.train import train_command
from cds3d.commands.videos import resized_to
from cds3d.commands.worlds import fingerprint
from cds3d.editor import EditConfig, Editor
from cds3d.forecast import field_edit_mb
from cds3d.guidance.prior import Prior
from cds3d.objectives.objective import Objective, Prompts
from cds3d.options import MOST_SEED, boolean, build, load_config, pick_device, positive, require_unset, whole
from cds3d.pictures import colored_depth, depth_range, seen_depth
from cds3d.process_memory import memory_mb, peak_memory_mb, reset_peak_memory
from cds3d.redraw import RedrawConfig, RedrawnShape
from cds3d.runs import RunFolder
from cds3d.subjects.field import FieldRates, FieldViews, Preservation
from cds3d.subjects.local import LocalViews
from cds3d.subjects.region import RegionConfig
from cds3d.subjects.volume import VolumeConfig
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.field import Field
from tensorf.local import LocalField
from tensorf.renderable import Renderable, load_field
from tensorf.runtime import give_back_free_memory

log = logging.getLogger("cds3d")

_NOT_OF_REFITS = ("where", "mask", "box", "ball", "at", "region", "radius", "zoom", "carve", "paste", "preview_every")
_NOT_OF_REFITS += ("guidance", "objective")
_UNCHANGED = 60.0  # dB to the source, above which nobody sees an edit
_DEPTH_WIDTH = 126  # pixels: enough to see surfaces move, a quarter of the time


@command
def edit_command(config: DictConfig, on_step: OnStep | None = None) -> Path:
    """Edit what `config` says (configs/edit.yaml) and return the run folder.

    on_step: called after each iteration with the number of iterations that are done, how many there are, and the
    iteration's figures, as {"gradient_rms/color": 0.01, ...}. If it returns True the state is kept and `Stopped` is
    raised. A source field that is trained first calls it too, with the iterations of the training and {"psnr_db": ...}.
    It is not called while figures and videos are made in the end, nor by baselines that sample instead of iterating.
    """
    with telling(on_step):
        return _edit(config)


def _edit(config: DictConfig) -> Path:
    if config.views is not None:
        return _refit_scene(config)
    positive(config, "guidance.scale")
    whole(config, "save_every", least=1)
    whole(config, "video_frames", "preview_every")
    whole(config, "seed", most=MOST_SEED)
    history = _history(config)
    check_prompts(config)
    reset_peak_memory(pick_device(config.device))  # of what this process did before
    return edit_image(config) if history is None else _edit_scene(config, history)


def _history(config: DictConfig) -> EditHistory | None:
    """What the edit of a scene starts from; None for that of an image. UserError for what only scenes have."""
    boolean(config, "paste")
    if config.image is None:
        if config.paste:
            raise UserError("paste= is for --image, not for scenes")
        capture_root(config)  # a missing scene is told first
        return take_over(config)
    check_image(config)
    return None


def _warn_of_unused_options(config: DictConfig, pointing: Pointing) -> None:
    """UserError, or warnings, for options that change nothing in the edit of a scene."""
    require_unset(config, ("refit",), "is for --views: edits have edit.OPTION=VALUE")
    default = usual_options(config, f"edit={config.edit.get('name') or 'field'}")

    def tell(keys: Iterable[str], why: str) -> None:
        for key in keys:
            if OmegaConf.select(config, key) != OmegaConf.select(default, key):
                log.warning("%s= changes nothing %s", key, why)

    way = pointing.way
    if way is None:
        tell(("zoom", "carve"), "without a region: give one with where, mask, box, ball or at")
    elif way not in ("where", "mask"):
        tell(("carve",), f"with {way}=: it applies only to mask= and --where")
    if way is not None and not pointing.find:
        found = ("edit.volume.look", "edit.volume.agreement", "edit.fit.agreement")
        tell(found, "with a given region: it applies only to one that gradients find, as with region=both")
        if way not in ("where", "mask"):
            tell(("edit.volume.grow", "edit.fit.grow"), f"with {way}=, which says how large the region is")
    tell(("guidance.image_width",), "here: the views of a scene have edit.width")


def _edit_scene(config: DictConfig, history: EditHistory) -> Path:
    device = pick_device(config.device)
    # Whatever can be wrong is told before anything is trained or written.
    check_scene(config)
    edit_config = build(EditConfig, config.edit, group="edit", seed=config.seed)
    pointing = read_pointing(config)
    _warn_of_unused_options(config, pointing)
    maker = work_maker(config, edit_config, pointing)
    source_path = history.folder
    output = output_folder(config, source_path.parent)
    history.require_other_output(output)
    run = RunFolder(output, config)
    prior, objective, prompts = prepare(config, device)
    clip = load_clip(config.clip, device)
    capture, source = _loaded_source(config, source_path, device)
    views = [resized_to(capture.cameras[i], config.edit.width) for i in capture.train]
    _tell_what(config, source_path, views[0], device)
    given = given_region(config, pointing, capture, source, views, prior)
    if given is not None:
        views = zoomed_views(config, source, views, given)
    work, iterations, shown = maker(source, views, prior, objective, prompts, given)
    expected_mb = _forecast(prior, prompts, source, shown.cameras, objective, is_local(config), "redraw" in config.edit)
    masks = tensor_fingerprint(given) if pointing.way == "mask" else None
    run.begin(prior.fingerprint, fingerprint(source_path), masks)
    reset_peak_memory(device)  # of a source that was trained in this process
    each = log_step(work, iterations, partial(_pictures, shown))
    if config.preview_every:
        each = _previewing(each, work, shown, run.path / "state" / "preview.safetensors", config.preview_every)
    seconds = drive(work, iterations, run, save_every=config.save_every, label="edit", each=each)
    edit_peak_mb = peak_memory_mb(device)
    with after_the_last_iteration():
        edited = shown.edited()
        edited.save(run.path / "field.safetensors")
        metrics = evaluate_edit(config, run.path, capture, source, edited, clip, history, shown.region_in_space())
    if history.edits:
        metrics["history"] = history.told
    metrics |= {
        "iterations": work.iteration,
        "seconds_per_iteration": seconds,
        "edit_seconds": seconds * work.iteration,
        "edit_peak_memory_mb": edit_peak_mb,
        "expected_memory_mb": expected_mb,
    }
    run.finish(metrics)
    _tell_result(run.path, metrics)
    return run.path


def _loaded_source(config: DictConfig, path: Path, device: torch.device) -> tuple[Capture, Renderable]:
    """The capture and its source field, which is trained first if need be. UserError for a field of another kind."""
    if not (path / "metrics.json").exists():  # never so after --run
        train_source(config, path)
    capture, source = load_scene(config), load_field(path / "field.safetensors", device)
    warn_of_photographs(config, [capture.root])
    if is_local(config) and not isinstance(source, Field | LocalField):
        name = config.edit.get("name")
        raise UserError(f"{path} holds a {type(source).__name__}: edit={name} is for TensoRF's fields")
    return capture, source


def _tell_what(config: DictConfig, source_path: Path, view: Camera, device: torch.device) -> None:
    """Log what is going to be edited, and how."""
    if view.width < config.edit.width:
        log.warning("edit.width=%d is more than the photos have: %d is taken", config.edit.width, view.width)
    log.info(
        'editing %s: "%s" to "%s", %s, %dx%d, on %s',
        source_path, config.src, config.tgt, config.objective.kind, view.width, view.height, device,
    )  # fmt: skip
    if config.edit.get("name") is None:
        log.info(
            "edit=field changes colours and keeps the shape; edit=pictures is for materials too, and edit=shape lets "
            "the shape change"
        )


def _tell_result(folder: Path, metrics: dict) -> None:
    """Log the figures of a finished edit. Warns if it has changed next to nothing."""
    told = ", ".join(f"{k} {metrics[k]:.2f}" for k in ("edit_gain_db", "kept_psnr_db") if k in metrics)
    log.info("%s: done%s", folder, f" ({told})" if told else "")
    if metrics.get("psnr_to_source_db", 0.0) > _UNCHANGED:
        log.warning(
            "next to nothing has changed (%.0f dB to the source): take a larger region, more iterations or other words",
            metrics["psnr_to_source_db"],
        )


@torch.no_grad()
def _pictures(shown: Shown) -> dict[str, Tensor]:
    """What TensorBoard shows of a running edit: its pictures, and the depth (H, W, 3) of what its first camera sees."""
    camera = resized_to(shown.cameras[0], min(_DEPTH_WIDTH, shown.cameras[0].width))
    depth = seen_depth(shown.target.render(camera))
    return shown.pictures() | {"depth": colored_depth(depth, *depth_range([depth]))}


def _previewing(each: Callable, work: Work, shown: Shown, path: Path, every: int) -> Callable:
    """`each`, and now and then the field as it is, once a local edit has a region."""

    def both(figures: dict, bar, writer) -> None:
        each(figures, bar, writer)
        unedited = isinstance(shown.target, LocalField) and not shown.target.region.any()
        if work.iteration % every == 0 and not unedited:
            shown.target.save(path)

    return both


class Shown(Protocol):
    """What an edit shows of itself on the way, and gives at its end."""

    target: Renderable
    cameras: list[Camera]

    def pictures(self) -> dict[str, Tensor]: ...

    def edited(self) -> Renderable: ...

    def region_in_space(self) -> Tensor | None: ...


def work_maker(config: DictConfig, edit: EditConfig, pointing: Pointing) -> Callable[..., tuple[Work, int, Shown]]:
    """A function (source, cameras, prior, objective, prompts, given region) -> (work, its iterations, what shows it).

    UserError for options that make no sense, before anything is loaded.
    """
    rates = build(FieldRates, config.edit, group="edit")
    redraw = build(RedrawConfig, config.edit.redraw, group="edit.redraw") if "redraw" in config.edit else None
    if "fit" in config.edit:
        region = build(RegionConfig, config.edit.region, group="edit.region")
        fit = build(FitConfig, config.edit.fit, group="edit.fit")

        def by_pictures(source, views, prior, objective, prompts, given):
            work = PictureEdit(source, views, prior, objective, prompts, edit, fit, rates, region, given, pointing.find)
            return work, work.iterations, work

        return by_pictures
    views_of = views_maker(config, pointing.find)

    def directly(source, views, prior, objective, prompts, given):
        subject = views_of(source, views, prior, given=given)
        editor = Editor(subject, prior, objective, prompts, edit)
        if redraw is None:
            return editor, edit.iterations, subject
        work = RedrawnShape(editor, subject, prior, prompts, redraw, rates, config.seed)
        return work, work.iterations, work

    return directly


def views_maker(config: DictConfig, find: bool = True) -> Callable[..., FieldViews | LocalViews]:
    """A function (source field, cameras, prior, given=None) -> the subject of an `Editor`, as `config.edit` says.

    For edit=field, shape and published. cameras: at the size to edit at. given: (z, y, x) bool in the cells of the
    source's occupancy, the only ones in which anything changes. find: whether gradients find the region, inside the
    given one if there is one. UserError for options that make no sense.
    """
    check_scene(config)
    if "fit" in config.edit:
        raise UserError(f"edit={config.edit.get('name')} draws pictures and fits the field to them: it has no views")
    rates = build(FieldRates, config.edit, group="edit")
    region = build(RegionConfig, config.edit.region, group="edit.region")
    if "volume" not in config.edit:
        kept = build(Preservation, config.edit, group="edit")
        boolean(config, "edit.exact")
        parts = dict(rates=rates, region=region, preservation=kept, views=most_views(config, find))
        return partial(FieldViews, **parts, find=find, exact=config.edit.exact, seed=config.seed)
    volume = build(VolumeConfig, config.edit.volume, group="edit.volume")
    iterations = build(EditConfig, config.edit, group="edit", seed=config.seed).iterations
    looks = max(1, round(volume.look * iterations)) if find else 0
    if looks >= iterations:
        raise UserError(
            f"edit.volume.look={volume.look} of edit.iterations={iterations} leaves no iteration to edit in: "
            "take more iterations"
        )
    steps = {"looks": looks, "clear_from": round(volume.haze_from * iterations)}
    return partial(LocalViews, rates=rates, region=region, volume=volume, seed=config.seed, **steps)


def _refit_scene(config: DictConfig) -> Path:
    if config.image is not None:
        raise UserError("--views is for scenes: give either --image or --views")
    check_scene(config)
    like = load_config("edit", ["edit=field", f"edit.width={config.edit.width}"])  # the width is that of the figures
    if config.edit != like.edit:
        raise UserError("edit= is not used with --views, where the pictures say what changes: use refit.OPTION=VALUE")
    require_unset(config, _NOT_OF_REFITS, "is not used with --views, where the pictures say what changes")
    if config.clip is not None and (config.tgt is None or (config.src or config.scene.prompt) is None):
        raise UserError("clip= compares pictures with prompts: give --src and --tgt too")
    whole(config, "save_every", least=1)
    whole(config, "video_frames")
    whole(config, "seed", most=MOST_SEED)
    if config.src is None and config.tgt is not None:
        config.src = config.scene.prompt
    source_path = source_folder(config)  # a missing scene is told first
    take_over_source(config, source_path, field=False)
    reset_peak_memory(pick_device(config.device))  # of what this process did before
    run, refit = begin_refit(config, source_path.parent)
    EditHistory(source_path, (), source_path).require_other_output(run.path)
    if not (source_path / "metrics.json").exists():
        train_source(config, source_path)
    return refit_field(config, source_path, run, refit)


def check_scene(config: DictConfig) -> None:
    """UserError for presets and options that edit images."""
    if config.baseline.kind != "none":
        raise UserError(f"baseline={config.baseline.kind} edits images, not scenes: give one with --image FILE")
    if "width" not in config.edit:
        raise UserError(
            "a scene is edited with edit=field, edit=shape, edit=redraw, edit=pictures or edit=published; "
            "edit=latent and edit=pixels are for --image"
        )
    whole(config, "edit.width", least=16)


def _forecast(
    prior: Prior,
    prompts: Prompts,
    field: Renderable,
    views: list,
    objective: Objective,
    local: bool,
    redrawn: bool,
) -> float:
    """Tell, and return, the peak memory in MB that the edit is expected to need."""
    size = (views[0].height, views[0].width)
    before = memory_mb(prior.device)  # asked first: what the forecast itself frees stays with the process
    parts = field_edit_mb(prior, prompts.target, field, len(views), *size, objective.unet_graphs, local, redrawn)
    expected = before + sum(parts.values())
    told = " + ".join(f"{name} {mb:.0f} MB" for name, mb in parts.items())
    log.info("expecting a peak of %.1f GB of memory: %.0f MB in use now + %s", expected / 1024, before, told)
    return expected


def train_source(config: DictConfig, path: Path) -> None:
    log.info("%s is not there yet: training the source field first", path)
    train = load_config("train", [])
    for key in ("scene", "field", "capture", "device", "threads", "seed", "video_frames"):
        OmegaConf.update(train, key, config[key], force_add=True)
    train.resume = (path / "state" / "state.pt").exists()
    try:
        train_command(train)  # tells `on_step` too
    except UserError as error:
        if (path / "metrics.json").exists():  # another process has finished it meanwhile
            return
        raise UserError(f"{error} (of train_source.py, which trains the source)") from error
    give_back_free_memory()
