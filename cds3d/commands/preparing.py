"""What edits of scenes and of images have in common before they begin: prompts, prior, objective, run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from cds3d.commands.driving import Work
from cds3d.commands.early import check_words_of_prompts
from cds3d.guidance import Prior, load_prior
from cds3d.objectives import OBJECTIVES
from cds3d.objectives.objective import Objective, Prompts, check_timesteps
from cds3d.options import build, groups, load_config, whole
from cds3d.slugs import slug
from cds3d.where import as_caption
from tensorf.errors import UserError

log = logging.getLogger("cds3d")

WAYS = ("where", "mask", "box", "ball", "at")  # to say where an edit may go
_LEAST_VIEWS = 8  # cameras of a short edit, so that it still sees the scene from several sides
_PICTURES = 8  # times in an edit that pictures go to TensorBoard


def check_prompts(config: DictConfig) -> None:
    """Fill in the source prompt; UserError for prompts that cannot make an edit. Warns of words that pocket lacks."""
    check_words_of_prompts(config)
    if config.guidance.path == "pocket":
        from cds3d.pocket.world.vocabulary import unknown_words  # other priors need no world

        where = config.get("where")
        if unknown := unknown_words(config.src, config.tgt, as_caption(str(where)) if where is not None else ""):
            log.warning(
                "guidance=pocket does not know %s: it was trained on flowers, animals and a few objects of a "
                "procedural world only (see its model card); real prompts need real Stable Diffusion weights, as in "
                "guidance=sd15",
                ", ".join(f'"{w}"' for w in unknown),
            )


def warn_of_photographs(config: DictConfig, folders: Iterable[Path]) -> None:
    """Warn if pocket is to edit what none of these folders tells to be of its own world."""
    if config.guidance.path == "pocket" and not any((folder / "world.json").exists() for folder in folders):
        log.warning(
            "guidance=pocket knows only its own procedural world: photographs need guidance=sd15 or another. It goes "
            "on, but do not expect a good result"
        )


def check_negative_prompt(config: DictConfig, group: str) -> None:
    """Warn of a negative prompt with words that pocket does not know: guidance then leads anywhere."""
    negative = config[group].get("negative_prompt")
    if config.guidance.path == "pocket" and negative:
        from cds3d.pocket.world.vocabulary import unknown_words  # other priors need no world

        if unknown := unknown_words(negative):
            words = ", ".join(f'"{w}"' for w in unknown)
            log.warning(
                "guidance=pocket does not know %s of the negative prompt, which spoils its edits: "
                "%s.negative_prompt= leaves it out",
                words,
                group,
            )


def given_way(config: DictConfig) -> str | None:
    """The option that says where the edit may go, if one does."""
    if config.get("region") == "auto":
        return None
    return next((way for way in WAYS if config.get(way) is not None), None)


def output_folder(config: DictConfig, parent: Path) -> Path:
    """<parent>/<prompt>, with the names of the objective and of the preset where they are not the defaults, and with
    the option that says where the edit may go.
    """
    if config.output is not None:
        return Path(config.output)
    objective = config.objective.get("name") or config.objective.kind
    parts = [slug(config.tgt), *([] if objective == "cds" else [objective]), config.edit.get("name"), given_way(config)]
    before = [] if config.get("run") is None else [Path(config.run).resolve().name, "then"]
    return parent / "-".join(p for p in [*before, *parts] if p)


def prepare(config: DictConfig, device: torch.device) -> tuple[Prior, Objective, Prompts]:
    """The prior, the objective and the embedded prompts; UserError for options that do not fit together."""
    objective = build_objective(config)
    check_negative_prompt(config, "objective")
    warn_of_options_of_other_objectives(config)
    prior = configured_prior(config, device)
    _warn_of_another_models_preset(config, prior)
    check_timesteps(objective, prior)
    return prior, objective, embedded(prior, config)


def _warn_of_another_models_preset(config: DictConfig, prior: Prior) -> None:
    """Warn if a model was given by guidance.path alone, with the guidance, width and so on of another one."""
    name, sample = config.guidance.get("name"), prior.unet.config.get("sample_size")
    if name == "pocket" and prior.is_large:
        log.warning(
            "guidance.path=%s is used with the settings of guidance=pocket, as its scale of %g: give the model's "
            "preset too, as in guidance=sd15 guidance.path=%s",
            config.guidance.path, config.guidance.scale, config.guidance.path,
        )  # fmt: skip
    elif config.image is not None and prior.is_large and isinstance(sample, int) and config.guidance.image_width:
        trained = 8 * sample
        if not 2 / 3 < config.guidance.image_width / trained < 3 / 2:
            log.warning(
                "guidance.image_width=%d: guidance.path=%s was trained on pictures of %d pixels",
                config.guidance.image_width, config.guidance.path, trained,
            )  # fmt: skip


def embedded(prior: Prior, config: DictConfig) -> Prompts:
    """The prompts. UserError if the prior cannot tell them apart."""
    return Prompts.of(prior, config.src, config.tgt)


def usual_options(config: DictConfig, *options: str) -> DictConfig:
    """The defaults of `edit` with the configuration's preset of guidance/, and these options."""
    name = config.guidance.get("name")
    return load_config("edit", [f"guidance={name if name in groups()['guidance'] else 'pocket'}", *options])


def warn_of_options_of_other_objectives(config: DictConfig) -> None:
    """Warn of options that only some objectives follow, where they were set for another one."""
    if "source_share" in config.objective:
        return
    instead = {"pds": "guidance.pds_scale is", "ssd": "objective.cross, edit, text and identity are"}
    changed = config.guidance.scale != usual_options(config).guidance.scale
    if config.objective.kind in instead and changed and "redraw" not in config.edit:  # where views are drawn with it
        log.warning(
            "guidance.scale=%g changes nothing: in objective=%s, %s the weight of what the prompt says",
            config.guidance.scale, config.objective.kind, instead[config.objective.kind],
        )  # fmt: skip
    name = config.edit.get("name") or config.edit.get("parameter") or "field"
    own = [f"guidance.image_scale_end={config.guidance.image_scale_end}"]  # images refer to it
    usual = usual_options(config, f"edit={name}", *own).edit
    for key in ("scale_end", "source_share"):
        if config.edit[key] != usual[key]:
            log.warning(
                "edit.%s=%s is ignored by objective=%s: only dds, cds and ids use it",
                key, config.edit[key], config.objective.kind,
            )  # fmt: skip


def most_views(config: DictConfig, find: bool) -> int | None:
    """Through how many cameras edit=field edits, None for all. find: whether gradients find the region.

    A camera has no mask before its first visit, and a settled one after `region.visits`. So only as many are taken as
    have theirs by the time the rate has risen: of a video's 300 frames, most would else be edited without any.
    UserError for a number that makes no sense.
    """
    edit = config.edit
    if edit.views is not None:
        whole(config, "edit.views", least=1)
        return edit.views
    if not find or edit.region.mask_threshold == 0 or edit.warmup == 0:
        return None
    return max(_LEAST_VIEWS, round(edit.warmup * edit.iterations / edit.region.visits))


def configured_prior(config: DictConfig, device: torch.device) -> Prior:
    """The prior that configs/guidance describes. Warns if it is of the other kind than the preset is for."""
    guidance = config.guidance
    prior = load_prior(
        guidance.path,
        dtype=guidance.dtype,
        device=device,
        config=guidance.config,
        revision=guidance.get("revision"),  # runs of older versions have no such option
    )
    is_xl, name = len(prior.text.encoders) > 1, guidance.get("name")
    if name is not None and is_xl != (name == "sdxl"):
        log.warning(
            "guidance=%s is not for a model such as %s: use guidance=%s guidance.path=%s, or the size of pictures and "
            "the guidance are wrong for it", name, guidance.path, "sdxl" if is_xl else "sd15", guidance.path,
        )  # fmt: skip
    return prior


def is_local(config: DictConfig) -> bool:
    """Whether the preset edits inside a region of space alone."""
    return "volume" in config.edit or "fit" in config.edit


def build_objective(config: DictConfig) -> Objective:
    """The objective that configs/objective describes."""
    if config.objective.kind not in OBJECTIVES:
        raise UserError(f"objective.kind={config.objective.kind} is unknown; use one of: {', '.join(OBJECTIVES)}")
    return build(OBJECTIVES[config.objective.kind], config.objective, group="objective")


def log_step(work: Work, iterations: int, pictures: Callable[[], dict[str, Tensor]] | None = None):
    """What `drive` calls after each step: the step's figures go to TensorBoard, and now and then its pictures."""
    pictures_every = max(1, iterations // _PICTURES)

    def each(figures: dict, bar, writer) -> None:
        for key, value in figures.items():
            writer.add_scalar(key if "/" in key else f"edit/{key}", value, work.iteration)
        if work.iteration % pictures_every == 0 and pictures is not None:
            for name, picture in pictures().items():
                writer.add_image(f"views/{name}", picture.detach().clamp(0, 1).cpu(), work.iteration, dataformats="HWC")

    return each
