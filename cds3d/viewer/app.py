"""The viewer: the fields of a scene, the windows that look at them, and the edit that runs."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import viser
from omegaconf import DictConfig

from cds3d.commands.preparing import output_folder
from cds3d.commands.scenes import scene_name
from cds3d.commands.videos import scene_depth
from cds3d.jobs import Job, changed
from cds3d.options import groups, load_config, set_text
from cds3d.viewer.controls import Controls
from cds3d.viewer.filming import Filming
from cds3d.viewer.guard import start_server
from cds3d.viewer.listing import Listing, iterations_of, options_of
from cds3d.viewer.looking import CameraLimits, point_seen
from cds3d.viewer.photos import small_photos
from cds3d.viewer.places import SHAPES, Place
from cds3d.viewer.window import Window, fov_of
from tensorf.captures import Capture
from tensorf.errors import UserError
from tensorf.renderable import Renderable, load_field

log = logging.getLogger("cds3d")

_POLL = 0.5  # seconds between looks at the edit that runs
_LIST_EVERY = 4.0  # seconds between looks at the runs on the disk
_PREVIEW_EVERY = 20  # iterations between fields of a running edit


@dataclass(frozen=True)
class Shown:
    """A scene to view. options: of `edit.py`, that name it; folder: that its runs lie in; prompt: what it shows.

    run: of the edit to begin with, or None. source: of the field that is edited. own: whether `edit.py` finds that
    source by itself, from the scene; edits of another field need --run.
    """

    options: list[str]
    folder: Path
    prompt: str
    source: Path
    run: Path | None
    own: bool


class Viewer:
    """Serves until `close`. port: 0 takes a free one; `url` tells the address.

    config: configs/view.yaml. Raises UserError for what cannot be read, before anything is served.
    """

    def __init__(self, shown: Shown, capture: Capture, config: DictConfig, device: torch.device, token: str | None):
        self.shown, self.capture, self.config, self.device = shown, capture, config, device
        self.source = load_field(shown.source / "field.safetensors", device)
        self.edited: Renderable | None = None
        self.run = shown.run
        self._listing = Listing(shown.folder, shown.source, shown.own, scene_name(config))
        if shown.run is not None:
            self.edited = load_field(shown.run / "field.safetensors", device)
        self.lock, self.windows = threading.Lock(), {}
        self._starting = threading.Lock()  # clicks are answered in many threads: two of them start one edit
        self.limits = CameraLimits([capture.cameras[i] for i in capture.train], scene_depth(capture))
        self.start = capture.cameras[capture.train[0]]
        self.source.render(self.start.resized(32, 24))  # compiles what the first frame would wait for
        self.job: Job | None = None
        self.watching = False  # whether the edit that runs is shown; `run` is None then
        self._before: Path | None = None  # the run that was shown before the edit began
        self._begun_from: Renderable | None = None  # the edit that the running one goes on from; None: the source
        self._begun: dict[Path, list[str]] = {}  # options of the edits that were begun here, by their folders
        self._preview: int | None = None  # when the preview that is shown was written
        self._stale: int | None = None  # the same of the preview that lay there before
        self.filming = Filming(self)
        self._closed = threading.Event()
        self.server = start_server(config.host, config.port, token)
        self.url = f"http://{_named(config.host)}:{self.server.get_port()}/" + (f"?token={token}" if token else "")
        self._build()
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._disconnected)
        threading.Thread(target=self._watch, daemon=True, name="edit").start()

    # --- what is there

    def fields(self) -> tuple[Renderable, Renderable | None]:
        return self.source, self.edited

    def names(self) -> list[str]:
        """Of what can be shown: the source, the edit that runs, and the finished runs of the scene."""
        source, *runs = self._runs()
        return [source, *self._running_name(), *runs]

    def name(self) -> str:
        """Of what is shown; of the source, if there is nothing, or if it is not there any more."""
        if self.watching and (running := self._running_name()):
            return running[0]
        runs = self._runs()
        return next((name for name, run in runs.items() if run == self.run), next(iter(runs)))

    def _runs(self) -> dict[str, Path | None]:
        return self._listing.finished(self.run)

    def _running_name(self) -> list[str]:
        """One name, or none if no edit runs."""
        job = self.job
        return [] if job is None else [f"(running) {job.folder.name}"]

    def stopped(self) -> dict[str, Path]:
        """The edits that *Resume* can go on with, by name; the last one that was stopped from here is first."""
        job, last = self.job, next(reversed(self._begun), None)
        runs = {name: run for name, run in self._listing.stopped().items() if job is None or run != job.folder}
        return dict(sorted(runs.items(), key=lambda item: item[1] != last))

    def show(self, name: str) -> None:
        """Show a finished run, or the edit that runs, beside the source. UserError if it cannot be read."""
        if name in self._running_name():
            self._watch_edit()
            return
        runs = self._runs()
        if name not in runs:  # whatever a browser sends
            raise UserError("there is no such run")
        self._show(runs[name])

    def _watch_edit(self) -> None:
        """Show what the edit has begun from, until its next preview."""
        self.run, self.watching, self.edited = None, True, self._begun_from
        self._preview = self._stale
        self._refresh()

    def _show(self, run: Path | None) -> None:
        edited = None if run is None else load_field(run / "field.safetensors", self.device)
        self.run, self.edited, self.watching = run, edited, False
        self._refresh()

    def _look_at_runs(self) -> None:
        """List what has come and gone on the disk, such as runs of a terminal."""
        if self.run is not None and self.run not in self._runs().values():
            self.controls.say(f"{self.run.name} is not there any more")
            self._show(None)
        self.controls.list_runs()

    def _refresh(self) -> None:
        for window in list(self.windows.values()):
            window.refresh()

    # --- windows

    def _build(self) -> None:
        scene, first = self.server.scene, self.server.initial_camera
        scene.set_up_direction(tuple(self.limits.up.tolist()))
        # Where a browser begins before its window says so, and where "Reset View" of its settings leads.
        first.position, first.look_at = self.start.position.numpy(), self.limits.looked_at(self.start)
        first.up, first.fov = self.limits.vertical(self.start), fov_of(self.start, self.start.width / self.start.height)
        distance = float(np.linalg.norm(self.start.position.numpy() - self.limits.middle)) or 1.0
        self._photos = small_photos(self.capture)
        self.place = Place(self.server, self.limits.middle, 0.25 * distance)
        self.controls = Controls(self, groups()["objective"])

        @scene.on_click()
        def _(event) -> None:
            self._clicked(event)

    def show_photos(self, on: bool) -> None:
        for window in list(self.windows.values()):
            window.show_photos(on)

    def _connected(self, client: viser.ClientHandle) -> None:
        look = (self.limits, self.capture.cameras, self._photos, self.start)
        window = Window(client, self.fields, self.lock, *look, self.config.moving_width, self.config.width)
        self.windows[client.client_id] = window
        window.show_photos(self.controls.photos)
        self._look_at_runs()
        window.refresh()

    def _disconnected(self, client: viser.ClientHandle) -> None:
        window = self.windows.pop(client.client_id, None)
        if window is not None:
            window.close()

    def _clicked(self, event) -> None:
        window = self.windows.get(event.client.client_id)
        if window is None or self.place.kind not in SHAPES or not self.controls.pointing:
            return
        u, v = event.screen_pos
        request = window.look()
        of_source = self.edited is None or request.shown == "source" or (request.shown == "split" and u < request.split)
        with self.lock:
            point = point_seen(request, u, v, self.source if of_source else self.edited)
        if point is None:
            told = f"the field is too thin there: the {self.place.kind} stays where it was"
            event.client.add_notification("Nothing there", told, auto_close_seconds=5)
            return  # told above the picture: on a phone the panel is closed while somebody taps
        self.place.put(point.numpy())
        self.controls.say(f"edits stay in this {self.place.kind}: Size makes it larger or smaller")

    # --- edits

    def edit_options(self) -> tuple[list[str], Path]:
        """The options of `edit.py` that the controls stand for, and the run folder. UserError for what is wrong."""
        values = self.controls.values()
        pairs = [
            f"objective={values['objective']}",
            f"edit={values['preset']}",
            f"edit.iterations={values['iterations']}",
            f"device={self.config.device}",
            *self.place.option(),
            *self.config.options,
        ]
        start = self._start_of_edits(values["onward"])
        config = load_config("edit", [o for o in [*pairs, *self.shown.options] if not o.startswith("--")])
        words = values["words"] if self.place.kind == "words" else None
        for name, label in (("src", "From"), ("tgt", "To")):
            set_text(config, name, values[name], label)
        config.run, config.where = None if start is None else str(start), None
        if words:
            set_text(config, "where", words, "Words")
        for name, label, what in (("src", "From", "it shows now"), ("tgt", "To", "it should become")):
            if not values[name]:
                raise UserError(f"say what {what}: the field {label} is empty")
        if values["src"].lower() == values["tgt"].lower():
            raise UserError("From and To say the same")
        if words == "":
            raise UserError("say what the edit may change: the field Words is empty")
        folder = output_folder(config, self.shown.folder)
        flags = [f"--src={values['src']}", f"--tgt={values['tgt']}"]
        flags += [f"--where={words}"] if words else []
        flags += self.shown.options if start is None else [f"--run={start}"]
        fixed = [f"output={folder}", f"preview_every={_PREVIEW_EVERY}", "video_frames=0"]
        return [*flags, *pairs, *fixed], folder

    def _start_of_edits(self, onward: bool) -> Path | None:
        """What `edit.py --run` is given; None for the source that it finds by itself."""
        if onward and self.run is not None:
            return self.run
        return None if self.shown.own else self.shown.source

    def start_edit(self, overwrite: bool = False) -> None:
        """What the controls say. UserError if an edit is running, or if its folder is taken."""
        with self._starting:
            self._require_no_edit()
            options, folder = self.edit_options()
            resumed = not overwrite and self._is_longer(folder)
            if overwrite:
                options = [*options, "overwrite=true"]
            self._launch(options, folder, resumed)

    def resume_edit(self, name: str) -> None:
        """Go on with one of `stopped()`, with the options that it was begun with, whatever the controls say now."""
        with self._starting:
            self._require_no_edit()
            folder = self.stopped().get(name)
            if folder is None:
                raise UserError("there is no stopped edit to go on with")
            options = self._begun.get(folder) or [*options_of(folder), f"preview_every={_PREVIEW_EVERY}"]
            self._launch([o for o in options if o != "overwrite=true"], folder, True)

    def _require_no_edit(self) -> None:
        if self.job is not None:
            raise UserError("an edit is running: stop it first")

    def _is_longer(self, folder: Path) -> bool:
        """Whether to go on with the finished edit in a folder to more iterations. UserError if the folder is taken."""
        if (folder / "metrics.json").exists():
            if self.controls.values()["iterations"] > iterations_of(folder):
                return True
            raise UserError(
                f"{folder.name} is done already: tick Overwrite to do it anew, change To, or go on with more Iterations"
            )
        if (folder / "state" / "state.pt").exists():
            raise UserError(f"{folder.name} was stopped: Resume goes on with it, Overwrite begins anew")
        return False

    def _launch(self, options: list[str], folder: Path, resumed: bool) -> None:
        onward = self.run is not None and f"--run={self.run}" in options
        self._before, self._begun_from = self.run, self.edited if onward else None
        self._stale = None if resumed else changed(_preview_of(folder))  # of an earlier edit: not this one's
        job = Job("edit", [*options, "resume=true"] if resumed else options, folder)
        self._begun.pop(folder, None)
        self._begun[folder] = options  # the last one, to go on with
        self._watch_edit()  # first: an edit that fails at once is no longer watched
        self.job = job
        self.controls.list_runs()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(_POLL):
            try:
                self._look_at_edit()
                if (told := self.filming.look()) is not None:
                    self.controls.say_of_video(told)
                if time.monotonic() - looked > _LIST_EVERY:
                    looked = time.monotonic()
                    self._look_at_runs()
            except Exception:  # the viewer goes on whatever an edit does to its files
                log.exception("the running edit could not be watched")

    def _look_at_edit(self) -> None:
        job = self.job
        if job is None:
            return
        running = job.running  # asked first: what it wrote before its end is seen
        self._load_preview(_preview_of(job.folder))
        self.controls.progress(job.progress(), job.lines[-1] if job.lines else "starting", running, job.stopping)
        self.controls.warn(job.warnings)
        if running:
            return
        watched, self.job = self.watching, None
        outcome = job.outcome() + ("; the state is kept: Resume goes on" if job.resumable else "")
        try:
            if watched and outcome == "done":
                self._show(job.folder)
            elif watched:  # no preview of the failed edit, and no run that it has begun to overwrite
                self.run, self.watching = self._before, False
                self.show(self.name())
        finally:  # last: what the page says is done can be seen
            self.controls.list_runs(newest=job.resumable)
            self.controls.say(outcome)

    def _load_preview(self, path: Path) -> None:
        written = changed(path)
        if self.watching and written not in (None, self._preview):  # clocks may be set back
            self._preview = written
            self.edited = load_field(path, self.device)
            self._refresh()

    def close(self) -> None:
        """Stop what runs, with its state kept, and the server."""
        self._closed.set()
        for job in (self.job, self.filming.job):
            if job is not None:
                job.close()
        for window in list(self.windows.values()):
            window.close()
        self.server.stop()


def _preview_of(run: Path) -> Path:
    return run / "state" / "preview.safetensors"


def _named(host: str) -> str:
    """What to call the host in an address that browsers can open."""
    if host in ("localhost", "127.0.0.1"):
        return "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()  # of all its addresses the one that others know
    return f"[{host}]" if ":" in host else host
