"""Configurations for tests: the shipped ones, with what a test says in place of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache

from cds3d.commands.preparing import build_objective
from cds3d.editor import EditConfig, Editor
from cds3d.options import build, load_config
from cds3d.subjects.field import FieldRates, FieldViews, Preservation
from cds3d.subjects.region import RegionConfig

_LENGTHS = ("cell", "filter_radius", "near_radius", "speck")


@lru_cache
def _objective(name: str):
    return build_objective(load_config("edit", [f"objective={name}", "guidance=sd14"]))


def objective(name: str, **changes):
    """As configs/objective/<name>.yaml has it with Stable Diffusion: scale 7.5, features as they are."""
    return replace(_objective(name), **changes)


def edit_config(iterations: int, lr: float, optimizer: str = "adam", **changes) -> EditConfig:
    """Plain: no decay, no warm-up, no floor."""
    plain = dict(lr_decay=1.0, warmup=0.0, adam_floor=0.0, seed=0)
    return EditConfig(iterations=iterations, lr=lr, optimizer=optimizer, **{**plain, **changes})


@lru_cache
def _field():
    return load_config("edit", []).edit


def region_config(mask_threshold: float, width: int = 252, **changes) -> RegionConfig:
    """As edit=field has it, with lengths that are as many pixels at `width` as they are there at 252."""
    config = build(RegionConfig, _field().region)
    lengths = {name: getattr(config, name) * 252 / width for name in _LENGTHS}
    return replace(config, mask_threshold=mask_threshold, **{**lengths, **changes})


def field_views(
    field,
    cameras,
    prior,
    *,
    mask_threshold=0.0,
    preservation=0.0,
    seed=0,
    given=None,
    find=True,
    views=None,
    exact=False,
    **rates,
) -> FieldViews:
    """Everything moves, nothing is held, unless said otherwise; the margin is two pixels."""
    width = cameras[0].width if cameras else 32
    kept = replace(build(Preservation, _field()), preservation=preservation, margin=2 / width)
    moved = FieldRates(**{**dict(color_lr=1.0, network_lr=0.1, density_lr=1.0, line_lr=1.0), **rates})
    region = region_config(mask_threshold, width)
    return FieldViews(field, cameras, prior, moved, region, kept, seed, given, find, views, exact)


def run(editor: Editor) -> list[dict]:
    """Edit to the end; returns the steps' figures."""
    figures = []
    while editor.iteration < editor.config.iterations:
        figures.append(editor.step())
    return figures


def changed(config, **changes) -> dict:
    """The options of a dataclass with changes, for tests of what is refused."""
    return {**asdict(config), **changes}
