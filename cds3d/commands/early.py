"""What can be wrong with the words of a command, told before torch and diffusers are imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from cds3d.options import require_unset
from tensorf.errors import UserError


def check_words(command: str, config: DictConfig) -> None:
    """UserError for what needs no model and no field to be told. The commands themselves check it again, for programs.

    `config.src` may get the scene's prompt.
    """
    if command == "edit" and config.views is None:
        if config.image is not None:
            check_image(config)
        check_target(config)
        if config.run is not None:  # the source prompt comes with it
            _require_run(config)
            return
        if config.capture is not None and not Path(config.capture).exists():
            from cds3d.commands.scenes import capture_root  # torch comes with it, and no model

            capture_root(config)
        check_words_of_prompts(config)
    elif command == "view" and config.run is not None:
        _require_run(config)


def _require_run(config: DictConfig) -> None:
    from cds3d.runs import read_config  # torch comes with it, and no model

    read_config(Path(config.run))


def check_image(config: DictConfig) -> None:
    """UserError for an edit of an image that cannot begin: no file, and options of scenes."""
    if config.capture is not None:
        raise UserError("give either --image or --capture, not both")
    refuse_options_of_scenes(config)
    if config.baseline.kind == "none" and config.edit.get("parameter") not in ("latent", "pixels"):
        raise UserError("an image is edited with edit=latent or edit=pixels")
    require_picture_file(Path(config.image), "--image ")


def refuse_options_of_scenes(config: DictConfig) -> None:
    """UserError for options that the edit of an image does not have."""
    for key in ("run", "where", "mask", "box", "ball", "at", "region", "radius"):
        if config[key] is not None:
            told = f"--{key}" if key in ("run", "where") else f"{key}="
            raise UserError(f"{told} is for scenes, not for --image")
    groups = ("scene", "field", "zoom", "carve", "refit", "preview_every")
    require_unset(config, groups, "is for scenes, not for --image")


def require_picture_file(path: Path, told: str = "") -> None:
    """UserError, which begins with `told`, where there is no such file."""
    if path.is_dir():
        raise UserError(
            f"{told}{path} is a folder: name one picture; scripts/bench_images.py edits many, and --capture takes a "
            "folder of photos of one scene"
        )
    if not path.is_file():
        raise UserError(f"{told}{path}: no such file")


def check_words_of_prompts(config: DictConfig) -> None:
    """Fill in the source prompt; UserError for prompts that no model can edit between."""
    check_target(config)
    if config.src is None and config.image is None:
        config.src = config.scene.prompt  # after --run its target prompt: `history.take_over`
    if config.src is None or not str(config.src).strip():
        raise UserError('--src is missing: say what is there now, as in --src "a yellow flower"')
    config.src, config.tgt = str(config.src).strip(), str(config.tgt).strip()
    if config.src.lower() == config.tgt.lower():
        raise UserError(f'--src and --tgt are both "{config.tgt}": there is nothing to edit')


def check_target(config: DictConfig) -> None:
    """UserError without a target prompt."""
    if config.tgt is None or not str(config.tgt).strip():
        raise UserError('--tgt is empty: say what it should become, as in --tgt "a red flower"')
