"""The runs of a scene: those that are finished, and the edits that were stopped on the way."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cds3d.commands.scenes import scene_name
from cds3d.jobs import changed
from cds3d.options import groups, load_config
from cds3d.resuming import flat_options
from cds3d.runs import finished_runs, read_config
from tensorf.captures.sources import name_of
from tensorf.errors import UserError
from tensorf.untrusted import load_json

# What a page sets itself when it goes on with an edit, or what comes with the run that is edited.
_GIVEN = ("src", "tgt", "where", "run", "capture", "output", "resume", "overwrite", "scene.name", "scene.prompt")


class Listing:
    """Of the runs in `folder` that are of a scene. The folder of a sweep has runs of other scenes, too.

    source: folder of the run whose field is edited. own: whether the scene has that source by itself.
    """

    def __init__(self, folder: Path, source: Path, own: bool, scene: str):
        self._folder, self._source, self._own, self._scene = folder, source, own, scene
        self._read: dict[Path, tuple[int, DictConfig | None, str | None]] = {}  # configurations, by when written

    def finished(self, shown: Path | None) -> dict[str, Path | None]:
        """By name; the source is first, with None: nothing is shown beside it. shown: listed whatever its scene is."""
        runs: dict[str, Path | None] = {self._name_of_source(): None}
        source = self._source.resolve()
        for run in finished_runs(self._folder):
            if run.resolve() != source and (run == shown or self._scene_of(run) in (None, self._scene)):
                runs[run.name] = run
        return runs

    def stopped(self) -> dict[str, Path]:
        """The edits of fields that have kept a state and did not finish, by their names in the page."""
        runs = {}
        for state in sorted(self._folder.glob("*/state/state.pt")):
            run = state.parent.parent
            if (run / "metrics.json").exists() or self._scene_of(run) != self._scene:
                continue
            config = self._config(run)
            if config.get("tgt") is not None and config.get("image") is None and config.get("views") is None:
                runs[f"{run.name} ({_how_far(run)})"] = run
        return runs

    def _name_of_source(self) -> str:
        if self._own:
            return "(source)"
        source = self._source.resolve()
        # With its folder if that is another one, which may have a run of the same name.
        return source.name if source.parent == self._folder.resolve() else f"{source.parent.name}/{source.name}"

    def _scene_of(self, run: Path) -> str | None:
        """The name of a run's scene; None if its configuration cannot be read."""
        return self._looked_up(run)[2]

    def _config(self, run: Path) -> DictConfig:
        """Of a run whose scene is known."""
        return self._looked_up(run)[1]

    def _looked_up(self, run: Path) -> tuple[int, DictConfig | None, str | None]:
        """When a run's configuration was written, the configuration and its scene.

        Read once for each time that it was written: the list is looked at every few seconds.
        """
        written = changed(run / "config.yaml")
        if written is None:
            return 0, None, None
        if run not in self._read or self._read[run][0] != written:
            self._read[run] = (written, *_scene_of(run))
        return self._read[run]


def _scene_of(run: Path) -> tuple[DictConfig | None, str | None]:
    """The configuration of a run and the name of its scene; None for both if it cannot be read.

    Not the path of its capture, which may have been moved since.
    """
    try:
        config = read_config(run)
    except UserError:
        return None, None
    try:
        return config, scene_name(config)
    except UserError:  # its capture is not there any more
        return config, name_of(Path(config.capture))


def _how_far(run: Path) -> str:
    try:
        return f"stopped at {int(load_json(run / 'state' / 'progress.json')['iteration'])}"
    except (OSError, ValueError, TypeError, KeyError):
        return "stopped"


def iterations_of(run: Path) -> int:
    """That an edit was made with; 0 if that cannot be told."""
    try:
        return int(OmegaConf.select(read_config(run), "edit.iterations") or 0)
    except (UserError, TypeError, ValueError):
        return 0


def options_of(run: Path) -> list[str]:
    """The options of `edit.py` that a run was begun with, from its config.yaml. UserError if that cannot be read."""
    config = read_config(run)
    flags = [f"--{name}={config[name]}" for name in ("src", "tgt", "where") if config.get(name) is not None]
    if config.get("run") is not None:
        flags.append(f"--run={config.run}")
    elif config.get("capture") is not None:
        flags.append(f"--capture={config.capture}")
    else:
        flags.append(f"scene={config.scene.name}")
    names = {
        "objective": config.objective.get("name") or config.objective.kind,
        "edit": config.edit.get("name") or "field",
        "guidance": config.guidance.get("name") or "pocket",
    }
    chosen = [f"{group}={name}" for group, name in names.items() if name in groups()[group]]
    like = load_config("edit", [*chosen, *(f for f in flags if f[0] != "-")])
    usual = flat_options(OmegaConf.to_container(like, resolve=True))
    given = _GIVEN if config.get("run") is None else (*_GIVEN, "scene")  # a run brings its scene along
    more = [
        f"{key}={_text(value)}"
        for key, value in flat_options(OmegaConf.to_container(config)).items()
        if key in usual and value != usual[key] and key not in given and key.split(".")[0] not in given
    ]
    return [*flags, *chosen, *more, f"output={run}"]


def _text(value) -> str:
    """A value as an option gives it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
