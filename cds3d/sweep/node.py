"""A run on a node of a cluster: fetch what it needs, do it in this process, put it where the results belong."""

from __future__ import annotations

import errno
import io
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

import cds3d
from cds3d.cli import run_command
from cds3d.jobs import outcome_of
from cds3d.sweep.pool import onward
from cds3d.sweep.shipping import Input, node_folder
from cds3d.sweep.storage import STATE, Storage, state_kept
from cds3d.yaml_files import load_yaml
from tensorf import locks
from tensorf.errors import UserError, reason
from tensorf.files import atomic, write_text

# Of a run in a store, what the machine of the sweep gets: enough for the table and its page.
LIGHT = ("views/00.png", "comparison.mp4", "metrics.json")
SOURCE = ("config.yaml", "field.safetensors", "metrics.json")


@dataclass(frozen=True)
class Order:
    """A run to do. sweep: names the node's folder.

    folder: where the run is written: in a folder that all nodes share, or, with a storage, relative to the node's.
    shared: the folder in which `outputs/` lies, for all nodes. storage: a URL in place of it, and name and source: of
    the run, and of the source field that it edits, in the store.
    """

    version: str
    sweep: str
    command: str
    flags: tuple[str, ...]
    folder: str
    inputs: tuple[Input, ...] = ()
    shared: str | None = None
    storage: str | None = None
    name: str = ""
    source: str | None = None


def do(order: Order, fetch: Callable[[object], bytes]) -> tuple[str, dict[str, bytes]]:
    """(outcome, files): "done", or in one line why not; with a storage, the light files of the finished run.

    fetch: from the handle of a piece of an input to its bytes.
    """
    try:
        enter(order, fetch)
        return _in_store(order) if order.storage else (_run(order), {})
    except UserError as error:
        return str(error), {}
    except OSError as error:
        told = "the disk is full" if error.errno == errno.ENOSPC else "the storage failed"
        return f"{told}: {reason(error)}", {}
    except Exception as error:  # told in one line; what Ray would make of it is a page
        return reason(error), {}


def enter(order: Order, fetch: Callable[[object], bytes]) -> None:
    """Make the sweep's folder on this node the working folder, with all inputs in it."""
    base = node_folder(order.sweep)
    _check(order, base)
    for given in order.inputs:
        given.place(base, fetch)
    os.chdir(base)


def _check(order: Order, base: Path) -> None:
    if order.version != cds3d.__version__:
        raise UserError(f"{platform.node()} has cds3d {cds3d.__version__}, the sweep has {order.version}")
    if order.shared is None:
        return
    outputs = Path(order.shared) / "outputs"
    if not outputs.is_dir():
        raise UserError(
            f"{platform.node()} does not see {outputs}: run the sweep in a folder that all nodes share, or give "
            "storage=, a bucket or another folder that they share"
        )
    with suppress(FileExistsError):
        (base / "outputs").symlink_to(outputs)


def _run(order: Order) -> str:
    """Do the command in this process, from its state if there is one."""
    folder = Path(order.folder)
    told = io.StringIO()
    with redirect_stderr(told):
        code = run_command(order.command, [*order.flags, f"output={folder}", *onward(folder)])
    if code == 0:
        _name_inputs(order, folder / "config.yaml")
    return outcome_of(code, [line.strip() for line in told.getvalue().replace("\r", "\n").split("\n") if line.strip()])


def _name_inputs(order: Order, path: Path) -> None:
    """Inputs by the names that they have on the user's machine, where the run will be looked at."""
    config = OmegaConf.to_container(load_yaml(path))
    for given in order.inputs:
        config = _renamed(config, given.name, given.path)
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(config)))


def _renamed(tree, old: str, new: str):
    """Nested dicts and lists with `new` for `old` in all texts."""
    if isinstance(tree, dict):
        return {key: _renamed(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_renamed(value, old, new) for value in tree]
    return tree.replace(old, new) if isinstance(tree, str) else tree


def _in_store(order: Order) -> tuple[str, dict[str, bytes]]:
    storage, folder = Storage(order.storage), Path(order.folder)
    if order.source is not None:
        _fetch_source(storage, order.source)
    outcome = "done"
    if not storage.has(order.name):  # it is if only the answer was lost
        if not (folder / "metrics.json").exists():  # it is if only the way to the store failed
            storage.pull(order.name, folder, STATE)
            with state_kept(order.storage, folder, order.name):
                outcome = _run(order)
        if outcome == "done":
            storage.push(folder, order.name)
    if outcome == "done" and order.command == "edit":
        shutil.rmtree(folder, ignore_errors=True)  # nodes have small disks
    light = {file: storage.read([order.name], file) for file in LIGHT} if outcome == "done" else {}
    return outcome, {file: found[order.name] for file, found in light.items() if found}


def _fetch_source(storage: Storage, name: str) -> None:
    """Have the source field of a scene here, where edits look for it, once a node."""
    folder = source_folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(folder.parent):
        now = storage.read([name], "metrics.json").get(name)
        if not (folder / "metrics.json").exists() or (folder / "metrics.json").read_bytes() != now:
            storage.pull(name, folder, SOURCE)


def source_folder_of(name: str) -> Path:
    """On a node, the folder of "sources/<scene>"."""
    return Path("outputs") / name.partition("/")[2] / "source"


def write_light(folder: Path, files: dict[str, bytes]) -> None:
    """Write the light files of a run, metrics.json last: that it is there says that the run is done."""
    for file in LIGHT:
        if file in files:
            with atomic(folder / file) as partial:
                partial.write_bytes(files[file])
