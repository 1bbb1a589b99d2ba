"""`edit.py`: a scene's source field, or an image, edited towards a prompt; resumable."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from cds3d.commands.scenes import capture_root, load_scene
from cds3d.commands.train import source_folder, train_command
from cds3d.commands.videos import frames_of, path_cameras, resized_to, side_by_side, write_image, write_video
from cds3d.editor import EditConfig, Editor
from cds3d.forecast import field_edit_mb
from cds3d.guidance import Guidance, load_guidance
from cds3d.metrics.psnr import psnr
from cds3d.metrics.truth import TrueEdit, edit_figures
from cds3d.objectives.objective import Objective, Prompts
from cds3d.options import build, load_config, not_negative, pick_device, positive, whole
from cds3d.pocket.capture import WorldCapture, changed_region
from cds3d.pocket.vocabulary import unknown_words
from cds3d.runs import RunFolder, interrupts_between_steps, memory_mb, peak_memory_mb, reset_peak_memory, slug
from cds3d.subjects.field import FieldViews
from cds3d.subjects.image import LatentImage, PixelImage
from tensorf.captures import Capture
from tensorf.captures.pictures import read_picture
from tensorf.checkpoint import load_field, save_field
from tensorf.errors import UserError
from tensorf.render import render_view
from tensorf.runtime import give_back_free_memory

log = logging.getLogger("cds3d")


def edit_command(config: DictConfig) -> Path:
    """Edit what `config` says (configs/edit.yaml) and return the run folder."""
    positive(config, "edit.iterations", "edit.lr", "guidance.scale")
    whole(config, "save_every", least=1)
    whole(config, "seed", "video_frames")
    _check_prompts(config)
    return _edit_image(config) if config.image is not None else _edit_scene(config)


def _check_prompts(config: DictConfig) -> None:
    """Fill in the source prompt; UserError for prompts that cannot make an edit."""
    if config.tgt is None or not str(config.tgt).strip():
        raise UserError('--tgt is empty: say what it should become, as in --tgt "a red flower"')
    if config.src is None and config.image is None:
        config.src = config.scene.prompt
    if config.src is None or not str(config.src).strip():
        raise UserError('--src is missing: say what is there now, as in --src "a yellow flower"')
    config.src, config.tgt = str(config.src).strip(), str(config.tgt).strip()
    if config.src.lower() == config.tgt.lower():
        raise UserError(f'--src and --tgt are both "{config.tgt}": there is nothing to edit')
    if config.guidance.path == "pocket" and (unknown := unknown_words(config.src, config.tgt)):
        log.warning(
            "guidance=pocket does not know %s: it was trained on flowers, animals and a few objects of a procedural "
            "world only (see its model card); real prompts need real Stable Diffusion weights, as in guidance=sd14",
            ", ".join(f'"{w}"' for w in unknown),
        )


def _output(config: DictConfig, parent: Path) -> Path:
    """<parent>/<prompt>, with the objective's and the preset's name where they are not the defaults."""
    if config.output is not None:
        return Path(config.output)
    name = slug(config.tgt)
    if config.objective.kind != "cds":
        name += f"-{config.objective.kind}"
    preset = config.edit.get("name")
    return parent / (f"{name}-{preset}" if preset else name)


def _prepare(config: DictConfig, device: torch.device) -> tuple[Guidance, Objective, Prompts]:
    guidance = load_guidance(
        config.guidance.path, dtype=config.guidance.dtype, device=device, config=config.guidance.config
    )
    objective = build(Objective, config.objective, scale=float(config.guidance.scale))
    last = len(guidance.alphas) - 1
    if not 0 <= objective.t_min <= objective.t_max <= last:
        raise UserError(f"objective.t_min..t_max is {objective.t_min}..{objective.t_max}: it has to lie in 0..{last}")
    prompts = Prompts(*(guidance.encode_text(text) for text in ("", config.src, config.tgt)))
    return guidance, objective, prompts


def _optimise(editor: Editor, run: RunFolder, save_every: int) -> float:
    """Run the editor to its end with a progress bar, saving states; returns the seconds an iteration."""
    if (state := run.load_state()) is not None:
        editor.load_state_dict(state)
        log.info("resumed at iteration %d", editor.iteration)
    total, begun, before = editor.config.iterations, editor.iteration, run.seconds
    writer = run.logger()
    bar = tqdm(total=total, initial=begun, desc="edit", unit="step")

    def each(figures: dict) -> None:
        bar.update()
        for key, value in figures.items():
            writer.add_scalar(f"edit/{key}", value, editor.iteration)
        if editor.iteration % save_every == 0:
            run.save_state(editor.state_dict())
        check()

    try:
        with interrupts_between_steps() as check:
            editor.run(each)
    except KeyboardInterrupt:
        run.save_state(editor.state_dict())
        raise KeyboardInterrupt(
            f"at iteration {editor.iteration}; the state is kept: the same command with resume=true goes on"
        ) from None
    except UserError:
        run.save_state(editor.state_dict())
        raise
    finally:
        bar.close()
        writer.close()
    run.save_state(editor.state_dict())
    return (run.seconds - before) / max(1, total - begun)


# --- fields


def _edit_scene(config: DictConfig) -> Path:
    device = pick_device(config.device)
    # Whatever can be wrong is told before anything is trained or written.
    capture_root(config)
    if "width" not in config.edit:
        raise UserError("a scene is edited with edit=field or edit=published; edit=latent and pixels are for --image")
    not_negative(config, *(f"edit.{k}" for k in ("color_lr", "network_lr", "density_lr", "line_lr", "gate", "hold")))
    if not any(config.edit[key] for key in ("color_lr", "network_lr", "density_lr")):
        raise UserError("edit.color_lr, network_lr and density_lr are all 0: nothing would change")
    whole(config, "edit.width", least=16)
    source_path = source_folder(config)
    run = RunFolder(_output(config, source_path.parent), config)
    edit_config = build(EditConfig, config.edit, seed=config.seed)
    guidance, objective, prompts = _prepare(config, device)
    if not (source_path / "metrics.json").exists():
        _train_source(config, source_path)
    capture, source = load_scene(config), load_field(source_path / "field.safetensors", device)
    views = [resized_to(capture.cameras[i], config.edit.width) for i in capture.train]
    log.info(
        'editing %s: "%s" to "%s", %s, %dx%d, on %s',
        source_path, config.src, config.tgt, objective.kind, views[0].width, views[0].height, device,
    )  # fmt: skip
    subject = FieldViews(
        source,
        views,
        guidance,
        color_lr=config.edit.color_lr,
        network_lr=config.edit.network_lr,
        density_lr=config.edit.density_lr,
        line_lr=config.edit.line_lr,
        gate=config.edit.gate,
        hold=config.edit.hold,
        seed=config.seed,
    )
    editor = Editor(subject, guidance, objective, prompts, edit_config)
    expected_mb = _forecast(guidance, prompts, source, views, objective)
    run.begin()
    reset_peak_memory()  # of a source that was trained in this process
    seconds = _optimise(editor, run, config.save_every)
    edit_peak_mb = peak_memory_mb()
    save_field(subject.target, run.path / "field.safetensors")
    metrics = _judge_field(config, capture, subject, run.path)
    _videos(config, capture, subject, run.path)
    metrics |= {
        "iterations": editor.iteration,
        "seconds_per_iteration": seconds,
        "edit_seconds": seconds * editor.iteration,
        "edit_peak_memory_mb": edit_peak_mb,
        "expected_memory_mb": expected_mb,
    }
    run.finish(metrics)
    told = ", ".join(f"{k} {metrics[k]:.2f}" for k in ("edit_gain_db", "kept_psnr_db") if k in metrics)
    log.info("%s: done%s", run.path, f" ({told})" if told else "")
    return run.path


def _forecast(guidance: Guidance, prompts: Prompts, field, views: list, objective: Objective) -> float:
    """Tell, and return, the peak memory in MB that the edit is expected to need."""
    contrast = objective.kind == "cds" and objective.weight > 0
    size = (views[0].height, views[0].width)
    before = memory_mb()  # asked first: what the forecast itself frees stays with the process
    parts = field_edit_mb(guidance, prompts.target, field, len(views), *size, contrast)
    expected = before + sum(parts.values())
    told = ", ".join(f"{name} {mb:.0f}" for name, mb in parts.items())
    log.info("expecting a peak of %.1f GB of memory: %.0f MB now, and %s", expected / 1024, before, told)
    return expected


def _train_source(config: DictConfig, path: Path) -> None:
    log.info("%s is not there yet: training the source field first", path)
    train = load_config("train", [])
    for key in ("scene", "field", "capture", "device", "threads", "seed", "video_frames"):
        OmegaConf.update(train, key, config[key], force_add=True)
    train.resume = (path / "state" / "state.pt").exists()
    try:
        train_command(train)
    except UserError as error:
        raise UserError(f"{error} (of train_source.py, which trains the source)") from error
    give_back_free_memory()


@torch.no_grad()
def _judge_field(config: DictConfig, capture: Capture, subject: FieldViews, folder: Path) -> dict:
    """Held-out cameras at the editing size: pictures into views/, and figures."""
    indices = capture.test or capture.train
    cameras = [resized_to(capture.cameras[i], config.edit.width) for i in indices]
    before = [render_view(subject.source, c)["color"].cpu() for c in tqdm(cameras, desc="source views", unit="view")]
    after = [render_view(subject.target, c)["color"].cpu() for c in tqdm(cameras, desc="edited views", unit="view")]
    for k, (source, edited) in enumerate(zip(before, after)):
        write_image(folder / "views" / f"{k:02d}.png", side_by_side(source, edited))
    figures = {"psnr_to_source_db": float(np.mean([psnr(a, b) for a, b in zip(after, before)]))}
    truth = _truth(config, capture, indices, cameras)
    if truth:
        figures |= edit_figures(before, after, truth)
        for k, true in enumerate(truth):
            write_image(folder / "views" / f"{k:02d}_truth.png", true.image)
    return figures


def _truth(config: DictConfig, capture: Capture, indices: list[int], cameras) -> list[TrueEdit]:
    """What the true edit looks like from these cameras; empty where nobody knows."""
    world = WorldCapture.read(capture_root(config))
    edited = world.edited(config.src, config.tgt) if world else None
    if edited is None:
        return []
    truth = []
    for i, camera in zip(indices, cameras):
        name = Path(capture.image_names[i]).stem
        was, now = (world.view(name, a, camera.width, camera.height).image for a in (world.attributes, edited))
        changed = torch.from_numpy(changed_region(was, now))
        truth.append(TrueEdit(torch.from_numpy(now).float() / 255, changed))
    return truth


def _videos(config: DictConfig, capture: Capture, subject: FieldViews, folder: Path) -> None:
    if not config.video_frames:
        return
    cameras = path_cameras(capture, "auto", config.video_frames, config.edit.width)
    source = frames_of(subject.source, cameras, "source video")
    edited = frames_of(subject.target, cameras, "edited video")
    write_video(folder / "video.mp4", edited, fps=15)
    pairs = [side_by_side(a, b) for a, b in zip(source, edited)]
    write_video(folder / "comparison.mp4", pairs, fps=15)


# --- images


def _edit_image(config: DictConfig) -> Path:
    device = pick_device(config.device)
    path = Path(config.image)
    kinds = {"latent": LatentImage, "pixels": PixelImage}
    if config.edit.get("parameter") not in kinds:
        raise UserError("an image is edited with edit=latent or edit=pixels")
    if config.guidance.image_width is not None:
        whole(config, "guidance.image_width", least=16)
    image = read_image(path, config.guidance.image_width)
    run = RunFolder(_output(config, Path("outputs") / "images" / path.stem), config)
    edit_config = build(EditConfig, config.edit, seed=config.seed)
    guidance, objective, prompts = _prepare(config, device)
    if config.guidance.path == "pocket":
        log.warning("guidance=pocket knows only its own procedural world: photographs need guidance=sd14 or another")
    subject = kinds[config.edit.parameter](image, guidance)
    editor = Editor(subject, guidance, objective, prompts, edit_config)
    run.begin()
    seconds = _optimise(editor, run, config.save_every)
    edited = subject.image()
    as_rows = [x.permute(1, 2, 0) for x in (image, edited)]
    write_image(run.path / "edited.png", as_rows[1])
    write_image(run.path / "comparison.png", side_by_side(*as_rows))
    run.finish(
        {
            "psnr_to_source_db": psnr(as_rows[1], as_rows[0]),
            "iterations": editor.iteration,
            "seconds_per_iteration": seconds,
            "edit_seconds": seconds * editor.iteration,
        }
    )
    log.info("%s: done", run.path / "edited.png")
    return run.path


def read_image(path: Path, width: int | None = None) -> torch.Tensor:
    """(3, H, W) in [0, 1], upright by EXIF; transparency on white; made smaller if wider than `width` pixels."""
    if not path.is_file():
        raise UserError(f"--image {path}: no such file")
    try:
        picture = Image.fromarray(read_picture(path, white=True, upright=True))
    except UserError as error:
        raise UserError(f"--image {error}") from error
    if min(picture.size) < 16:
        raise UserError(f"--image {path} is {picture.width}x{picture.height}: at least 16x16 pixels are needed")
    if width is not None and picture.width > width:
        picture = picture.resize((width, max(16, round(picture.height * width / picture.width))), Image.LANCZOS)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
