"""Loading the networks that judge pictures: complete weights or one clear line, and never a pickle that runs code."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cds3d.hub import why_not
from cds3d.kept_models import kept
from cds3d.quiet import quiet
from tensorf.errors import UserError, is_out_of_memory, reason

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?")  # owner/name, or owner/name@revision


def check_location(option: str, path: str) -> None:
    """UserError unless `path` is a folder or looks like a hub id. Nothing is loaded.

    option: what the user set, as in "--clip", for the message.
    """
    if Path(path).is_dir():
        return
    if Path(path).exists() or not _HUB_ID.fullmatch(path):
        raise UserError(f"{told(option, path)}: no such folder (a hub id looks like owner/name)")


def told(option: str, value: str) -> str:
    """An option as it is typed: "--clip FOLDER", but "clip=FOLDER"."""
    return f"{option} {value}" if option.startswith("--") else f"{option}={value}"


def located(path: str) -> dict[str, str]:
    """What `from_pretrained` calls a folder, a hub id, or a hub id with @ and a revision (a commit, tag or branch)."""
    found = None if Path(path).is_dir() else _HUB_ID.fullmatch(path)
    if found is None or found[2] is None:
        return {"pretrained_model_name_or_path": path}
    return {"pretrained_model_name_or_path": found[1], "revision": found[2]}


def load_network(kind: type, path: str, *, option: str, example: str, device: torch.device, **more) -> nn.Module:
    """A transformers model in evaluation mode, float32, without gradients.

    kind: a class with `from_pretrained`. path: a hub id, one with @REVISION, or a local folder. option, example: for
    messages, the option that the user set and a model that fits it. Raises UserError if the weights are not there,
    cannot be read, or are those of another model: transformers itself would fill what is missing with random numbers.
    Pickled weights are read as tensors alone (`weights_only`), and no model's own code is run. Where models are kept
    (kept_models.py), the same arguments give the same network again.
    """
    load = partial(_loaded, kind, path, option, example, device, more)
    return kept(kind.__name__, (path, device, tuple(more.items())), load)


def _loaded(kind: type, path: str, option: str, example: str, device: torch.device, more: dict) -> nn.Module:
    check_location(option, path)
    try:
        with quiet():
            model, found = kind.from_pretrained(**located(path), output_loading_info=True, weights_only=True, **more)
    except Exception as error:  # torn files, foreign pickles, no network: a dozen kinds, some of them dependencies'
        if is_out_of_memory(error):
            raise
        raise UserError(_unavailable(path, option, example, error)) from error
    wrong = [*found["missing_keys"], *found["mismatched_keys"]]
    if wrong:
        raise UserError(
            f"{told(option, path)} is not a {kind.__name__}: {len(wrong)} of its weights are missing or of another "
            f"shape; use a model such as {example}"
        )
    return model.float().to(device).eval().requires_grad_(False)


def unreadable(path: str, option: str, example: str, error: Exception) -> UserError:
    """The UserError for a part of a model that cannot be loaded."""
    return UserError(_unavailable(path, option, example, error))


def _unavailable(path: str, option: str, example: str, error: Exception) -> str:
    if Path(path).is_dir():
        what = f"{told(option, path)} cannot be loaded ({reason(error)})"
        return f"{what}: it has to be a folder of a model such as {example}"
    name, _, revision = path.partition("@")
    why = why_not(name, revision or None, error, told(option, "FOLDER"))
    return f"{told(option, path)}: cannot get it from the hub{why}"


def pixels(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(H, W, 3) in [0, 1] -> (1, 3, H, W) float32 on `device`. ValueError for another shape."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image has shape (H, W, 3), not {tuple(image.shape)}")
    return image.detach().to(device, torch.float32).permute(2, 0, 1)[None]
