"""The defaults of configs/field/default.yaml for a space, with changes: they are written nowhere else."""

from dataclasses import fields
from pathlib import Path

import yaml

from tensorf.field import FieldConfig
from tensorf.settings import TrainConfig

_FILE = Path(__file__).resolve().parents[2] / "configs" / "field" / "default.yaml"


def field_config(space="ndc", **changes) -> FieldConfig:
    return _build(FieldConfig, space, changes)


def train_config(space="ndc", **changes) -> TrainConfig:
    """The seed is 0, if `changes` does not name one."""
    return _build(TrainConfig, space, {"seed": 0, **changes})


def _build(kind, space, changes):
    options = yaml.safe_load(_FILE.read_text())
    choices = options.pop("by_space")[space]
    options |= {key: value for key, value in choices.items() if options[key] is None}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    names = {field.name for field in fields(kind)}
    return kind(**{**{key: value for key, value in options.items() if key in names}, **changes})
