"""`view.py`: a field in the browser, and edits from there."""

from __future__ import annotations

import logging
import re
import secrets
import signal
import socket
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cds3d.commands.command import command
from cds3d.commands.edit import train_source
from cds3d.commands.history import take_over
from cds3d.commands.scenes import capture_root, load_scene, require_capture_of, source_folder
from cds3d.commands.sources import take_over_source
from cds3d.options import RESERVED, load_config, pick_device, whole
from cds3d.runs import read_config
from tensorf.errors import UserError, reason

log = logging.getLogger("cds3d")

# Options of `edit.py` that the page sets, or that come with the scene.
_OF_THE_PAGE = (*RESERVED, "scene.root", "objective", "edit", "edit.iterations", "ball", "box", "where", "device")
_SHORTEST = 8  # of a token that somebody chooses


@command
def view_command(config: DictConfig) -> None:
    """Serve what `config` says (configs/view.yaml) until Ctrl-C."""
    _let_edits_be_stopped()
    viewer = open_viewer(config)
    print(f"open {viewer.url}  (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(1)
    finally:
        viewer.close()


def _let_edits_be_stopped() -> None:
    """Where a shell lets this process ignore Ctrl-C, as behind a "&" in a script, what it starts must not inherit that.

    *Stop* sends edits the same signal. A handler is not inherited, and one that does nothing ignores as well.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


def open_viewer(config: DictConfig):
    """A running `Viewer`. UserError for what cannot be shown, and without viser."""
    try:
        from cds3d.viewer.app import Shown, Viewer
        from cds3d.viewer.guard import LOOPBACK
    except ModuleNotFoundError as error:
        if error.name not in ("viser", "websockets"):
            raise
        raise UserError('the viewer needs viser: in a checkout, pip install ".[viewer]"') from None
    _check(config)
    device = pick_device(config.device)
    run = _chosen_run(config)
    of_run = None if run is None else _take_scene(config, run)
    capture_root(config)
    own = source_folder(config)
    edited = of_run is not None and "tgt" in of_run
    source = _started_from(run, of_run) if edited else run or own
    run = run if edited else None
    is_own = source.resolve() == own.resolve()
    take_over_source(config, source, field=False)
    if not (source / "metrics.json").exists():
        if not is_own:
            raise UserError(f"{run} started from {source}, which is not there, or did not finish")
        train_source(_as_edit(config), source)
    capture = load_scene(config)
    prompt = (of_run.get("src") if of_run is not None else None) or config.scene.prompt or ""
    token = None if config.host in LOOPBACK else _token(config)
    folder = (run or source).parent
    return Viewer(Shown(_naming(config), folder, str(prompt), source, run, is_own), capture, config, device, token)


def _check(config: DictConfig) -> None:
    """UserError for options that cannot be served with."""
    whole(config, "width", "moving_width", least=16)
    whole(config, "port", most=65535)
    _check_host(config.host)
    if config.token is not None and not re.fullmatch(rf"[A-Za-z0-9_-]{{{_SHORTEST},}}", str(config.token).strip()):
        raise UserError(
            f"token= has to have at least {_SHORTEST} characters, of a-z, A-Z, 0-9, - and _, since it is a part of an "
            "address; leave it out, and one is made"
        )
    if not OmegaConf.is_list(config.options) or not all(isinstance(o, str) and "=" in o for o in config.options):
        raise UserError(f"options={config.options} has to be a list of key=value, as in '[\"edit.width=189\"]'")
    if ours := [o for o in config.options if o.split("=")[0] in _OF_THE_PAGE]:
        raise UserError(f"options: {ours[0].split('=')[0]}= is set in the page, or by what is shown")
    load_config("edit", list(config.options))  # wrong ones are told now


def _naming(config: DictConfig) -> list[str]:
    """The options of `edit.py` that name the scene."""
    options = [f"--capture={config.capture}"] if config.capture is not None else [f"scene={config.scene.name}"]
    if config.capture is None and config.scene.root is not None:
        options.append(f"scene.root={config.scene.root}")
    if config.scene.get("outside"):
        options.append("scene.outside=true")
    return options


def _token(config: DictConfig) -> str:
    """What browsers have to know at an address that others reach. Warns of them."""
    log.warning(
        "host=%s: whoever reaches this address, and knows the token in it, can start edits here, and nothing that "
        "they send or see is encrypted", config.host,
    )  # fmt: skip
    return str(config.token).strip() if config.token is not None else secrets.token_urlsafe(16)


def _check_host(host: object) -> None:
    """UserError for what is no address of this machine: the server would say so in a thread of its own, and hang."""
    if not isinstance(host, str) or not host:
        raise UserError(f"host={host} has to be an address, such as 127.0.0.1 or 0.0.0.0")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host={host} is no address of this machine ({reason(error)}): use 127.0.0.1, or 0.0.0.0 for all of them"
        ) from error


def _chosen_run(config: DictConfig) -> Path | None:
    if config.run is None:
        return None
    default = load_config("view", [])
    if config.capture is not None or config.scene != default.scene:
        raise UserError(f"{config.run} has a scene of its own: leave out scene=, --scene and --capture")
    run = Path(config.run)
    if not (run / "config.yaml").is_file() and (run / "source" / "config.yaml").is_file():
        return run / "source"  # outputs/flower
    return run


def _take_scene(config: DictConfig, run: Path) -> DictConfig:
    """The configuration of a finished run, whose scene `config` takes over."""
    of_run = read_config(run)
    if of_run.get("image") is not None:
        raise UserError(f"{run} is the edit of an image: open its comparison.png instead")
    if not (run / "metrics.json").exists():
        raise UserError(f"{run} did not finish: go on with it first (resume=true)")
    require_capture_of(run, of_run)
    config.scene, config.capture = of_run.scene, of_run.get("capture")
    return of_run


def _started_from(run: Path, of_run: DictConfig) -> Path:
    """The run whose field the edit `run` started from: a source, or another edit."""
    if of_run.get("run") is not None:
        return Path(of_run.run)
    onward = load_config("edit", [])
    onward.run = str(run)
    return take_over(onward).first


def _as_edit(config: DictConfig) -> DictConfig:
    """With the options that training takes from an edit's configuration."""
    edit = load_config("edit", [])
    for key in ("scene", "capture", "device", "threads"):
        OmegaConf.update(edit, key, config[key], force_add=True)
    edit.video_frames = 0
    return edit
