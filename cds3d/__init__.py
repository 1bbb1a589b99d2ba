"""Text-guided editing of images and radiance fields with Contrastive Denoising Score.

from cds3d import Editor, Prompts, load_prior
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

# At its import transformers tells that torchvision is missing, which nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors read
    from cds3d.commands.driving import Stopped as Stopped
    from cds3d.commands.edit import edit_command as edit_command
    from cds3d.commands.train import train_command as train_command
    from cds3d.editor import EditConfig as EditConfig
    from cds3d.editor import Editor as Editor
    from cds3d.guidance import Prior as Prior
    from cds3d.guidance import load_prior as load_prior
    from cds3d.guidance import prior_of_pipeline as prior_of_pipeline
    from cds3d.objectives import OBJECTIVES as OBJECTIVES
    from cds3d.objectives.objective import Prompts as Prompts
    from cds3d.options import load_config as load_config
    from cds3d.subjects.field import FieldViews as FieldViews
    from cds3d.subjects.image import LatentImage as LatentImage
    from cds3d.subjects.image import PixelImage as PixelImage
    from cds3d.subjects.local import LocalViews as LocalViews
    from tensorf.errors import UserError as UserError

# What a program gets. Loaded when first asked for, so that importing the package takes no time.
_MODULES = {
    "EditConfig": "cds3d.editor",
    "Editor": "cds3d.editor",
    "FieldViews": "cds3d.subjects.field",
    "LatentImage": "cds3d.subjects.image",
    "LocalViews": "cds3d.subjects.local",
    "OBJECTIVES": "cds3d.objectives",
    "PixelImage": "cds3d.subjects.image",
    "Prior": "cds3d.guidance",
    "Prompts": "cds3d.objectives.objective",
    "Stopped": "cds3d.commands.driving",
    "UserError": "tensorf.errors",
    "edit_command": "cds3d.commands.edit",
    "load_config": "cds3d.options",
    "load_prior": "cds3d.guidance",
    "prior_of_pipeline": "cds3d.guidance",
    "train_command": "cds3d.commands.train",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'cds3d' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
