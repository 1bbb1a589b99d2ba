"""The evaluation of an edited field over held-out cameras: what `edit.py` writes and the benchmark reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from cds3d.commands.history import EditHistory
from cds3d.commands.scenes import capture_root
from cds3d.commands.videos import frames_of, path_cameras, resized_to
from cds3d.masks import dilated
from cds3d.metrics.consistency import view_consistency
from cds3d.metrics.depth import depth_error, true_depth
from cds3d.metrics.psnr import psnr
from cds3d.metrics.truth import Truth, mean_figures, picture_figures
from cds3d.pictures import side_by_side, write_image, write_video
from cds3d.subjects.given import seen_share
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.renderable import Renderable, load_field

log = logging.getLogger("cds3d")

_EDGE = 0.02  # of a view's width: pixels as close to the region's edge do not count as outside of it
_OUTSIDE = 0.05  # of what a pixel shows, the share in the region below which it is outside
# Figures that say how far an edit is from what it started from.
_AGAINST_SOURCE = ("psnr_to_source_db", "edit_gain_db", "kept_psnr_db")


def evaluate_edit(
    config: DictConfig,
    folder: Path,
    capture: Capture,
    source: Renderable,
    edited: Renderable,
    clip,
    history: EditHistory,
    region: Tensor | None = None,
) -> dict[str, float]:
    """Write views and videos of an edited field into its run folder; returns its figures.

    config: configs/edit.yaml; without both prompts there is no truth to compare with. clip: `load_clip`'s. After other
    edits (`history`) the figures are against the last field, those that begin with first_ against the first source.
    region: (z, y, x) bool in the cells of the source's occupancy, where the edit could change something; None where
    nobody knows.
    """
    views, truth = held_out_views(source, edited, capture, config.edit.width), None
    steps = [*history.prompts, (config.src, config.tgt)]
    if config.src is not None and config.tgt is not None:
        truth = known_truth(capture_root(config), capture, edited, views, steps, len(history.edits))
    first = _first_figures(config, folder, capture, edited, views, steps, truth, history) if history.edits else {}
    if not first:
        write_views(folder / "views", views, truth)
    frames = write_videos(config, capture, source, edited, folder)
    before, after = ([view["color"] for view in renders] for renders in (views.before, views.after))
    told = clip_figures(clip, config.src, config.tgt, before, after, frames)
    if region is not None:
        told |= outside_figures(source, edited, views, region)
    return edit_figures(edited, views, truth) | told | first


def _first_figures(
    config: DictConfig,
    folder: Path,
    capture: Capture,
    edited: Renderable,
    views: HeldOut,
    steps: list,
    truth: KnownTruth | None,
    history: EditHistory,
) -> dict[str, float]:
    """Figures against the first source of a sequence of edits; views with it on the left. Empty if it is gone."""
    path = history.first / "field.safetensors"
    if not path.exists():
        log.warning("%s is gone: no figures against the field that the first edit started from", path)
        return {}
    first = load_field(path, edited.device)
    whole = replace(views, before=rendered(first, views.cameras, "first source views"))
    write_views(folder / "views", views, truth, whole.before)
    if truth is not None:
        truth = known_truth(capture_root(config), capture, edited, whole, steps, 0)
    figures = edit_figures(edited, whole, truth)
    return {f"first_{key}": figures[key] for key in _AGAINST_SOURCE if key in figures}


@dataclass(frozen=True)
class HeldOut:
    """Views of source and edit from the same cameras, the held-out ones, or the training ones where none is held out.

    before, after: what `Renderable.render` gives, on the CPU. names: stems of the photos' files.
    """

    cameras: list[Camera]
    names: list[str]
    before: list[dict[str, Tensor]]
    after: list[dict[str, Tensor]]


@dataclass(frozen=True)
class KnownTruth:
    """The true edit from each held-out camera: pictures, depths (H, W) as `Space.depth` counts them, subjects (H, W)
    bool after it. accuracy: 1 where the judge sees the target in the edited picture, else 0.
    """

    views: list[Truth]
    depths: list[Tensor] = field(default_factory=list)
    subjects: list[Tensor] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@torch.no_grad()
def held_out_views(source: Renderable, edited: Renderable, capture: Capture, width: int) -> HeldOut:
    """Render both fields, `width` pixels wide."""
    indices = capture.test or capture.train
    cameras = [resized_to(capture.cameras[i], width) for i in indices]
    renders = [rendered(f, cameras, f"{label} views") for label, f in (("source", source), ("edited", edited))]
    return HeldOut(cameras, [Path(capture.image_names[i]).stem for i in indices], *renders)


@torch.no_grad()
def rendered(field: Renderable, cameras: list[Camera], label: str) -> list[dict[str, Tensor]]:
    """What `Renderable.render` gives for each camera, on the CPU."""
    return [{k: v.cpu() for k, v in field.render(c).items()} for c in tqdm(cameras, desc=label, unit="view")]


def known_truth(
    root: Path, capture: Capture, edited: Renderable, views: HeldOut, steps: list[tuple[str, str]], begin: int
):
    """A `KnownTruth`, or None where nobody knows what the true edit is: real captures, and other worlds' prompts.

    steps: (source, target prompt) of all edits of the field, in order. begin: how many of them `views.before` shows.
    """
    if not (root / "world.json").exists():
        return None
    from cds3d.pocket.model.judge import agrees, labels, load_judge  # photographs need no world
    from cds3d.pocket.world.capture import WorldCapture

    world = WorldCapture.read(root)
    if lost := set(views.names) - world.cameras.keys():
        log.warning("%s has no camera for photo %s: no true edit is known", root / "world.json", min(lost))
        return None
    shown = [world.attributes]
    for src, tgt in steps:
        shown.append(replace(world, attributes=shown[-1]).edited(str(src), str(tgt)))
        if shown[-1] is None:
            return None
    before, target = shown[begin], shown[-1]
    judge, truth = load_judge(), KnownTruth([])
    for name, camera, after in zip(views.names, views.cameras, views.after):
        was, now = (world.view(name, a, camera.width, camera.height) for a in (before, target))
        truth.views.append(Truth.of(was, now))
        truth.depths.append(true_depth(capture, edited.space, camera, now.depth))
        truth.subjects.append(torch.from_numpy(now.subject))
        seen = agrees(judge, after["color"].permute(2, 0, 1)[None], labels(target))
        truth.accuracy.append(float(seen[0]))
    return truth


def edit_figures(edited: Renderable, views: HeldOut, truth: KnownTruth | None) -> dict[str, float]:
    """Means over the held-out cameras.

    psnr_to_source_db, view_consistency_db (none where views do not overlap); with a known truth also the figures of
    `picture_figures`, depth_error and accuracy.
    """
    pairs = [(a["color"], b["color"]) for a, b in zip(views.after, views.before, strict=True)]
    figures = {"psnr_to_source_db": sum(psnr(*pair) for pair in pairs) / len(pairs)}
    # Neighbours on a path through the held-out cameras, nearest first, see much of the same.
    order = nearest_first(torch.stack([c.position for c in views.cameras]))
    consistency = view_consistency(edited.space, [views.cameras[i] for i in order], [views.after[i] for i in order])
    rows = [{"view_consistency_db": consistency}]
    figures |= mean_figures(rows)
    if truth is None:
        return figures
    rows = []
    for k, (after, before) in enumerate(pairs):
        row = picture_figures(after, before, truth.views[k])
        row["depth_error"] = depth_error(views.after[k]["depth"], truth.depths[k], truth.subjects[k])
        rows.append(row | {"accuracy": truth.accuracy[k]})
    return figures | mean_figures(rows)


@torch.no_grad()
def outside_figures(source: Renderable, edited: Renderable, views: HeldOut, region: Tensor) -> dict[str, float]:
    """kept_outside_region_db: PSNR of edit to source where neither shows a surface in the region; needs no truth.

    So where a shape has grown into empty space, pixels do not count; those behind haze do. region: as in
    `evaluate_edit`. Pixels close to its edge are left out. Empty where the region fills all views.
    """
    rows = []
    for camera, before, after in zip(views.cameras, views.before, views.after, strict=True):
        share = torch.maximum(*(seen_share(field, field.view(camera), region) for field in (source, edited))).cpu()
        outside = dilated(share, round(_EDGE * camera.width)) < _OUTSIDE
        if outside.any():
            rows.append({"kept_outside_region_db": psnr(after["color"], before["color"], outside)})
    return mean_figures(rows)


def load_clip(path: str | None, device: torch.device):
    """The CLIP model of option clip=, which squashes views to its square as Instruct-NeRF2NeRF's scores do; or None."""
    if path is None:
        return None
    from cds3d.metrics.clip import Clip  # only who asks for it needs its weights

    return Clip(path, device, fit="squash", option="clip")


def clip_figures(
    clip, src: str, tgt: str, before: list[Tensor], after: list[Tensor], frames: tuple[list, list] = ((), ())
) -> dict[str, float]:
    """clip_direction over pictures (H, W, 3) of source and edit, and along a video's frames how constant it is.

    The latter has two formulas in the literature: clip_path_consistency and clip_motion_consistency (`metrics.clip`).
    Empty without a CLIP model.
    """
    if clip is None:
        return {}
    from cds3d.metrics.clip import motion_consistency, path_consistency, view_direction

    def embedded(images: list[Tensor]) -> Tensor:
        return torch.stack([clip.image(image) for image in images])

    row = {"clip_direction": view_direction(embedded(before), embedded(after), clip.text(src), clip.text(tgt))}
    if len(frames[0]) > 1:
        along = [embedded(f) for f in frames]
        row["clip_path_consistency"] = path_consistency(*along)
        row["clip_motion_consistency"] = motion_consistency(*along)
    return mean_figures([{key: float(value) for key, value in row.items()}])


def write_views(folder: Path, views: HeldOut, truth: KnownTruth | None, first: list | None = None) -> None:
    """views/NN.png, source left and edit right, and views/NN_truth.png where the truth is known.

    first: renders of what the first of several edits started from, which go to the left of the source.
    """
    for k, (before, after) in enumerate(zip(views.before, views.after, strict=True)):
        pictures = [r["color"] for r in ([] if first is None else [first[k]]) + [before, after]]
        write_image(folder / f"{k:02d}.png", side_by_side(*pictures))
        if truth is not None:
            write_image(folder / f"{k:02d}_truth.png", truth.views[k].image)


def write_videos(
    config: DictConfig, capture: Capture, source: Renderable, edited: Renderable, folder: Path
) -> tuple[list, list]:
    """video.mp4 and comparison.mp4 of `config.video_frames`; returns the frames (H, W, 3) of source and edit."""
    if not config.video_frames:
        for name in ("video.mp4", "comparison.mp4"):  # of the edit before it went on
            (folder / name).unlink(missing_ok=True)
        return [], []
    cameras = path_cameras(capture, config.video_frames, config.edit.width)
    before, after = (list(frames_of(f, cameras, f"{n} video")) for f, n in ((source, "source"), (edited, "edited")))
    write_video(folder / "video.mp4", after, fps=15)
    write_video(folder / "comparison.mp4", [side_by_side(a, b) for a, b in zip(before, after)], fps=15)
    return before, after


def nearest_first(positions: Tensor) -> list[int]:
    """A walk from the first of n positions (n, 3), always on to the nearest not yet seen."""
    order, left = [0], set(range(1, len(positions)))
    while left:
        here = positions[order[-1]]
        order.append(min(left, key=lambda i: float((positions[i] - here).norm())))
        left.remove(order[-1])
    return order
