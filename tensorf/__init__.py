"""Tensorial radiance fields (TensoRF, Chen et al., ECCV 2022) that train and render on a bare CPU or on CUDA.

from tensorf import load_capture, load_field
"""

from importlib import import_module

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

# Loaded when first asked for, so that importing the package takes no time.
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
