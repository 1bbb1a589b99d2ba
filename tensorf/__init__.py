"""Tensorial radiance fields (TensoRF, Chen et al., ECCV 2022) that train and render on a bare CPU or on CUDA.

from tensorf import load_capture, load_field
"""

from importlib import import_module
from typing import TYPE_CHECKING

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

if TYPE_CHECKING:  # what type checkers and editors read
    from tensorf.cameras import Camera as Camera
    from tensorf.captures import Capture as Capture
    from tensorf.captures import load_capture as load_capture
    from tensorf.errors import UserError as UserError
    from tensorf.field import Field as Field
    from tensorf.field import FieldConfig as FieldConfig
    from tensorf.local import LocalField as LocalField
    from tensorf.render import render_rays as render_rays
    from tensorf.renderable import load_field as load_field
    from tensorf.settings import TrainConfig as TrainConfig
    from tensorf.train import Trainer as Trainer

# What a program gets. Loaded when first asked for, so that importing the package takes no time.
_MODULES = {
    "Camera": "cameras",
    "Capture": "captures",
    "Field": "field",
    "FieldConfig": "field",
    "LocalField": "local",
    "TrainConfig": "settings",
    "Trainer": "train",
    "UserError": "errors",
    "load_capture": "captures",
    "load_field": "renderable",
    "render_rays": "render",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'tensorf' has no attribute {name!r}")
    return getattr(import_module(f"tensorf.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
