"""Text-guided editing of images and radiance fields with Contrastive Denoising Score.

from cds3d import Editor, Prompts, load_prior
"""

import os
from importlib import import_module

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

# At its import transformers tells that torchvision is missing, which nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"

# Loaded when first asked for, so that importing the package takes no time.
_MODULES = {
    "EditConfig": "editor",
    "Editor": "editor",
    "FieldViews": "subjects.field",
    "LatentImage": "subjects.image",
    "LocalViews": "subjects.local",
    "OBJECTIVES": "objectives",
    "PixelImage": "subjects.image",
    "Prior": "guidance",
    "Prompts": "objectives.objective",
    "edit_command": "commands.edit",
    "load_config": "options",
    "load_prior": "guidance",
    "train_command": "commands.train",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'cds3d' has no attribute {name!r}")
    return getattr(import_module(f"cds3d.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
