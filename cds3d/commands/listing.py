"""`cds3d list`: the scenes that ship, the runs that are there, the words that pocket knows, the choices there are."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cds3d.commands.command import command
from cds3d.options import data_folder, groups
from cds3d.runs import finished_runs
from tensorf.errors import UserError
from tensorf.paths import PATHS
from tensorf.untrusted import load_json

_FIGURES = {"psnr_db": "PSNR", "edit_gain_db": "gain", "kept_psnr_db": "kept"}
_RUNS = Path("outputs")


@command
def list_command(config: DictConfig) -> None:
    """Print what there is; of one kind where `config.what` says so."""
    if config.what is not None and config.what not in _PARTS:
        raise UserError(f"{config.what} is nothing that can be listed: use one of {', '.join(_PARTS)}, or none for all")
    for name, tell in _PARTS.items():
        if config.what in (None, name):
            tell()


def _list_scenes() -> None:
    print("scenes (scene=NAME):")
    for name in groups()["scene"]:
        prompt = OmegaConf.load(data_folder("configs") / "scene" / f"{name}.yaml").prompt
        if prompt is not None:
            print(f'  {name:10} "{prompt}"')


def _list_presets() -> None:
    for group, of in (("field", ""), ("objective", ""), ("edit", ""), ("guidance", ""), ("baseline", ", with --image")):
        print(f"{group}=NAME{of}: {', '.join(groups()[group])}")
    print(f"path=NAME: auto, {', '.join(PATHS)}, or a JSON file of cameras")


def _list_runs() -> None:
    runs = [run for folder in _folders() for run in finished_runs(folder)]
    print(f"finished runs in {_RUNS}:" if runs else f"no finished runs in {_RUNS}")
    for run in runs:
        print(f"  {run}{_told(run)}")


def _list_words() -> None:
    from cds3d.pocket.world.vocabulary import known_words  # of the one prior that has few

    print("words that guidance=pocket knows (its model card is cds3d/pocket/weights/README.md):")
    print(f"  {', '.join(known_words())}")


_PARTS = {"scenes": _list_scenes, "presets": _list_presets, "runs": _list_runs, "words": _list_words}


def _folders() -> list[Path]:
    """Scenes' and images' folders of runs."""
    if not _RUNS.is_dir():
        return []
    folders = [p for p in sorted(_RUNS.iterdir()) if p.is_dir()]
    images = _RUNS / "images"
    return folders + ([p for p in sorted(images.iterdir()) if p.is_dir()] if images.is_dir() else [])


def _told(run: Path) -> str:
    try:
        metrics = load_json(run / "metrics.json")
        told = [f"{name} {metrics[key]:.1f} dB" for key, name in _FIGURES.items() if key in metrics]
    except (OSError, ValueError, TypeError):
        return "  (metrics.json is damaged)"
    return f"  {', '.join(told)}" if told else ""
