"""The run folder: configuration, checkpoints, logs and metrics of one command, written atomically.

`metrics.json` is written last: a folder without it did not finish.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from cds3d import yaml_files
from cds3d.holding import hold, let_go
from cds3d.options import boolean, load_config, pick_device
from cds3d.process_memory import peak_memory_mb
from cds3d.resuming import NOT_IN_OLDER_RUNS, SILENT_KEYS, TOLD_KEYS, flat_options, same_path
from tensorf import locks
from tensorf.captures.identity import change
from tensorf.errors import UserError, reason
from tensorf.files import atomic, is_partial, write_text

log = logging.getLogger("cds3d")

_GROUPS = ("scene", "field", "guidance", "objective", "edit", "refit", "baseline")
_PATHS = ("capture", "run", "scene.root")  # of a run's configuration
_REPORT_EVERY = 1.0  # seconds


class RunFolder:
    """Made first of all: refuses (UserError) finished runs, half done ones and foreign folders before any work is done.

    Nothing is written or deleted until `begin`, which a command calls once nothing else can be wrong with its options.
    """

    def __init__(self, path: Path, config: DictConfig):
        self.path, self.config = path, config
        self.state_path = path / "state" / "state.pt"
        self.resumed, self.seconds_before = False, 0.0
        self._made = self._start = time.monotonic()  # other clocks may be set
        self._peak_before = 0.0
        self._changes: list[dict] = []
        self._newest: dict | None = None  # of the changes: that of this resume
        self._reported = -_REPORT_EVERY
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; give another output folder")
        boolean(config, *(key for key in ("resume", "overwrite") if key in config))  # an import has nothing to resume
        if config.get("resume", False) and config.overwrite:
            raise UserError("give either resume=true or overwrite=true, not both")
        self._look()

    def _look(self) -> None:
        """Find out whether there is a state to go on from. UserError for a folder that is not to be worked in."""
        path, config = self.path, self.config
        self.resumed = False
        if path.exists():
            self._require_run_folder()
        if config.overwrite:
            return
        if (path / "metrics.json").exists() and not self._is_extended():
            self._refuse_another_edit()
            raise UserError(
                f"{path} holds a finished run{self._difference()}: pass overwrite=true to do it again, or output=FOLDER"
                + ("; resume=true with more edit.iterations goes on with it" if self._could_go_on() else "")
            )
        if self.state_path.exists():
            if not config.get("resume", False):
                self._refuse_another_edit()
                onward = "pass resume=true to go on, or" if "resume" in config else "go on with it, or pass"
                raise UserError(f"{path} holds an unfinished run: {onward} overwrite=true")
            self._require_same_config()
            self.resumed = True

    def begin(
        self,
        prior: str | None = None,
        source: str | None = None,
        region: str | None = None,
        capture: str | None = None,
    ) -> None:
        """Make the folder, empty if it is to be overwritten, and write config.yaml; the clock starts.

        prior: `Prior.fingerprint` of the model that the run uses, if it uses one. source: fingerprint of the field, or
        of the picture, that an edit starts from. region: of the masks that say where an edit may go. capture: the
        `identity` of the capture that a field is made from. UserError if another process is at work in the folder, or
        has been since this one was made, or if the run was begun with other weights, another source or other masks, or
        before the capture changed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        hold(self.path)
        self._look()
        try:
            self._require_same_inputs(prior, source, region, capture)
        except UserError:
            let_go(self.path)
            raise
        (self.path / "metrics.json").unlink(missing_ok=True)  # first: what follows is no finished run
        if self.config.overwrite:
            self._clear()
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        self.state_path.parent.mkdir(exist_ok=True)
        for name, now in (("prior", prior), ("source", source), ("region", region), ("capture", capture)):
            if now and self._before(name) is None:
                write_text(self.state_path.with_name(f"{name}.txt"), now + "\n")
        if self.config.get("resume", False) and not self.resumed:
            log.info("%s has no state to go on from: it begins anew", self.path)
        self._start = time.monotonic()
        self._peak_before = peak_memory_mb(pick_device(self.config.device))

    def _require_same_inputs(
        self, prior: str | None, source: str | None, region: str | None, capture: str | None
    ) -> None:
        """UserError if the run was begun with another of what `begin` is given."""
        begun = self._before("prior")
        if prior and begun and begun != prior and begun.split(":")[0] == prior.split(":")[0]:
            raise UserError(
                f"{self.path} was begun with other weights of guidance.path={self.config.guidance.path}: "
                "resume it with those, or pass overwrite=true"
            )
        if source and self._before("source") not in (None, source):
            what = "picture" if self.config.get("image") else "source field"
            raise UserError(
                f"{self.path} was begun from another {what}, which has been replaced since: "
                "pass overwrite=true to edit the new one"
            )
        if region and self._before("region") not in (None, region):
            raise UserError(
                f"{self.path} was begun with other masks: resume it with those, or pass overwrite=true to use these"
            )
        if capture and (changed := change(self._before("capture") or "", capture)):
            raise UserError(
                f"{self.path} was begun before its capture changed ({changed.told}): put the capture back as it was, "
                "or pass overwrite=true to begin anew"
            )

    def _before(self, name: str) -> str | None:
        """What `begin` was given when the run that is resumed was begun; None also for runs of earlier versions."""
        path = self.state_path.with_name(f"{name}.txt")
        if not self.resumed or not path.is_file():
            return None
        return path.read_text(errors="replace").strip()

    def _clear(self) -> None:
        """Delete all but the configuration, which tells whose folder it is, and is written anew at once."""
        for item in self.path.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item.name not in (locks.NAME, "config.yaml"):
                item.unlink()

    def _require_run_folder(self) -> None:
        ours = (p.name == locks.NAME or is_partial(p) for p in self.path.iterdir())  # of a run killed at its start
        if not all(ours) and not (self.path / "config.yaml").exists():
            raise UserError(f"{self.path} is not a run folder: nothing is written to it; give another output folder")

    def _difference(self) -> str:
        """How a finished run's options differ from those of this one, in words: the first of them."""
        before = flat_options(OmegaConf.to_container(_written_config(self.path)))
        now = flat_options(OmegaConf.to_container(self.config, resolve=True))
        own = [k for k in now if k in before and not same_path(k, before[k], now[k])]
        own = [k for k in own if before[k] != now[k] and k not in (*SILENT_KEYS, "device", "threads")]
        # What is chosen tells more than what comes with it, as a model does than its guidance.
        own.sort(key=lambda key: key not in ("guidance.name", "guidance.path", "objective.kind", "edit.name"))
        return f" with {own[0]}={before[own[0]]}, not {now[own[0]]}" if own else ""

    def _refuse_another_edit(self) -> None:
        """UserError if the folder holds an edit of another picture or to another prompt: two names may be one."""
        before, now = _written_config(self.path), self.config
        pictures = [None if not c.get("image") else Path(c["image"]).resolve() for c in (before, now)]
        if before.get("tgt") != now.get("tgt") or pictures[0] != pictures[1]:
            of = f" of {before['image']}" if before.get("image") else ""
            to = f' to "{before["tgt"]}"' if before.get("tgt") else ""
            raise UserError(f"{self.path} holds another edit{of}{to}: give output=FOLDER")

    def _could_go_on(self) -> bool:
        """Whether a resume with more iterations, and the other options as they are, would be accepted."""
        before = flat_options(OmegaConf.to_container(_written_config(self.path)))
        now = flat_options(OmegaConf.to_container(self.config, resolve=True))
        free = (*SILENT_KEYS, *TOLD_KEYS, "edit.iterations")
        alike = (before.get(k) == now.get(k) or same_path(k, before.get(k), now.get(k)) for k in now if k not in free)
        return self._has_iterations and all(alike)

    @property
    def _has_iterations(self) -> bool:
        """Whether more edit.iterations could follow. A refit has none; a baseline that samples has no state."""
        return "edit" in self.config and self.config.get("views") is None and self.state_path.exists()

    def _is_extended(self) -> bool:
        """Whether a finished edit is to go on to more iterations than it was made with."""
        if not self._has_iterations or not self.config.resume:
            return False
        before = OmegaConf.select(read_config(self.path), "edit.iterations")
        return isinstance(before, int) and isinstance(now := self.config.edit.iterations, int) and now > before

    def _require_same_config(self) -> None:
        before = OmegaConf.to_container(_written_config(self.path))
        now = OmegaConf.to_container(self.config, resolve=True)
        free = (*SILENT_KEYS, *TOLD_KEYS, *(("edit.iterations",) if self._is_extended() else ()))
        before, now = flat_options(before), flat_options(now)
        for key in now.keys() | before.keys():
            if key not in before and key.endswith(NOT_IN_OLDER_RUNS):
                continue
            old, new = before.get(key), now.get(key)
            if old != new and key not in free and not same_path(key, old, new):
                if key == "edit.iterations" and self._kept_setting(key) == new:
                    continue  # back to a finished edit's number, after a longer one was asked for and stopped
                raise UserError(
                    f"{self.path} was begun with {key}={old}, not {new}: resume it with the same options, "
                    "or pass overwrite=true"
                )

    def _kept_setting(self, key: str):
        """A setting that the kept state was made with; None if that cannot be told."""
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True, mmap=True)
            return state["settings"].get(key)
        except Exception:  # a damaged state: `load_state` says so
            return None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run's work, earlier parts of a resumed run counted in."""
        return self.seconds_before + time.monotonic() - self._start

    def load_state(self) -> dict | None:
        """What `save_state` wrote last, or None for a fresh run."""
        if not self.resumed:
            return None
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            self.seconds_before = state.pop("seconds")
            self._changes = state.pop("changes", [])
            self._note_changes(state.pop("settings", {}), state.get("iteration"))
            return state
        except Exception as error:  # a torn zip, a foreign pickle: torch raises many kinds
            message = f"{self.state_path} is damaged ({reason(error)}): start again with overwrite=true"
            raise UserError(message) from error

    def _note_changes(self, before: dict, iteration: int | None) -> None:
        """Remember which settings are others than those that the state was made with."""
        now = self._settings()
        changed = {key: [old, now[key]] for key, old in before.items() if key in now and now[key] != old}
        if changed:
            self._newest = {"iteration": iteration, **changed}
            self._changes = [*self._changes, self._newest]

    def went_on_from(self, iteration: int) -> None:
        """Settings were changed at this iteration, where the work drops later ones of the state that it has loaded."""
        if self._newest is not None:
            self._newest["iteration"] = iteration

    def _settings(self) -> dict:
        """The settings that a resume may change and that results depend on."""
        flat = flat_options(OmegaConf.to_container(self.config, resolve=True))
        return {key: flat[key] for key in (*TOLD_KEYS, "edit.iterations") if key in flat}

    def save_state(self, state: dict) -> None:
        """Write `state`, with the settings that it was made with. OSError if it cannot be written."""
        ours = {"seconds": self.seconds, "settings": self._settings(), "changes": self._changes}
        kept = _on_cpu({**state, **ours})  # a GPU's own errors come here, and are not the disk's
        try:
            with atomic(self.state_path) as partial:
                torch.save(kept, partial)
        except RuntimeError as error:  # torch's zip writer turns a full disk into this
            raise OSError(28, f"cannot write {self.state_path}: {error}") from error

    def report(self, iteration: int, iterations: int, figures: dict[str, float]) -> None:
        """Tell others how far the run is, in state/progress.json; at most once a second."""
        now = time.monotonic()
        if now - self._reported < _REPORT_EVERY and iteration < iterations:
            return
        self._reported = now
        told = {"iteration": iteration, "iterations": iterations, "seconds": round(self.seconds, 1), **figures}
        write_text(self.path / "state" / "progress.json", json.dumps(told) + "\n")

    def logger(self, iteration: int):
        """A TensorBoard writer into logs/. Steps after `iteration`, of a part that broke off, are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path / "logs"), purge_step=iteration + 1)

    def finish(self, metrics: dict) -> None:
        """Write metrics.json: rounded figures, and what every run reports. A state that no run can use is deleted."""
        device = pick_device(self.config.device)
        common = {
            "seconds": self.seconds,
            "preparation_seconds": self._start - self._made,
            "peak_memory_mb": max(self._peak_before, peak_memory_mb(device)),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }
        if self._changes:
            metrics = {**metrics, "changed_on_resume": self._changes}
        # JSON knows no infinity, such as the PSNR of equal pictures: a figure that is not finite is left out.
        told = {k: v for k, v in {**metrics, **common}.items() if not isinstance(v, float) or math.isfinite(v)}
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}
        write_text(self.path / "metrics.json", json.dumps(rounded, indent=2) + "\n")
        if not self._has_iterations:  # nothing can go on from it
            self.state_path.unlink(missing_ok=True)
        let_go(self.path)


def read_config(folder: Path) -> DictConfig:
    """config.yaml of a run folder. UserError if it is not there, damaged, or another program's.

    What older versions did not write of the scene has its default. Relative paths are those of the folder that the run
    was started in: where they lead nowhere from here, they are tried from the folders around the run.
    """
    config = _written_config(folder)
    config = OmegaConf.merge({"capture": None, "scene": _any_scene()}, config)
    for key in _PATHS:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and not Path(value).exists():
            parents = folder.absolute().parents
            around = (parent / value for parent in parents)
            found = (str(path) for path in around if path.exists() and path not in parents)  # outputs/<name> is ours
            OmegaConf.update(config, key, next(found, value))
    return config


@cache
def _any_scene() -> dict:
    """The options of any scene, with their defaults."""
    return OmegaConf.to_container(load_config("train", ["scene=capture"]).scene)


def _written_config(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.is_file():
        if runs := finished_runs(folder):
            raise UserError(f"{folder} is no run folder, but holds some: {', '.join(map(str, runs))}")
        what = "is no run folder: it has no config.yaml" if folder.exists() else "is no run folder: it does not exist"
        raise UserError(f"{folder} {what}")
    try:
        config = yaml_files.load_yaml(path)
        table = OmegaConf.to_container(config)
    except yaml_files.ERRORS as error:
        raise UserError(f"{path} is damaged ({reason(error)}): do the run again with overwrite=true") from error
    if not isinstance(table, dict) or not isinstance(table.get("scene"), dict):
        raise UserError(f"{folder} is no run folder: its config.yaml is another program's")
    if wrong := [key for key in _GROUPS if not isinstance(table.get(key, {}), dict)]:
        raise UserError(f"{path} is damaged ({wrong[0]} has to be a mapping): do the run again with overwrite=true")
    return config


def finished_runs(folder: Path) -> list[Path]:
    """The finished runs in a folder's folders, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [p for p in sorted(folder.iterdir()) if (p / "config.yaml").is_file() and (p / "metrics.json").is_file()]


def _on_cpu(tree):
    """Nested dicts, lists and tuples with their tensors on the CPU, so that a state can go on on any device."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {key: _on_cpu(value) for key, value in tree.items()}
    return type(tree)(_on_cpu(value) for value in tree) if isinstance(tree, (list, tuple)) else tree
