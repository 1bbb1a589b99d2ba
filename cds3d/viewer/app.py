"""The viewer: the fields of a scene, the windows that look at them, and the edit that runs."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import viser
from omegaconf import DictConfig

from cds3d.commands.preparing import output_folder
from cds3d.commands.scenes import scene_name
from cds3d.commands.videos import path_kind
from cds3d.jobs import Job
from cds3d.options import groups, load_config, set_text
from cds3d.runs import finished_runs, read_config
from cds3d.viewer.controls import Controls
from cds3d.viewer.guard import start_server
from cds3d.viewer.looking import CameraLimits, point_seen
from cds3d.viewer.places import Place
from cds3d.viewer.window import Window
from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.captures.writing import capture_poses, write_transforms
from tensorf.errors import UserError
from tensorf.paths import keyframed
from tensorf.renderable import Renderable, load_field

log = logging.getLogger("cds3d")

_POLL = 0.5  # seconds between looks at the edit that runs
_PREVIEW_EVERY = 20  # iterations between fields of a running edit
_PHOTO = 96  # width of the photos at their cameras, pixels
_CAMERA_SIZE = 0.12  # of their frames, as a share of the cameras' distance from what they look at


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
        self._scene = scene_name(config)
        if shown.run is not None:
            self.edited = load_field(shown.run / "field.safetensors", device)
        self.lock, self.windows = threading.Lock(), {}
        self._starting = threading.Lock()  # clicks are answered in many threads: two of them start one edit
        self.limits = CameraLimits([capture.cameras[i] for i in capture.train])
        self.start = capture.cameras[capture.train[0]]
        self.source.render(self.start.resized(32, 24))  # compiles what the first frame would wait for
        self.job: Job | None = None
        self.video: Job | None = None
        self.keyframes: list[torch.Tensor] = []
        self._preview: float | None = None  # when the preview that is shown was written
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
        """Of the finished runs of the scene, the source first."""
        return list(self._runs())

    def name(self) -> str:
        """Of the run that is shown; of the source, if there is none, or if it is not there any more."""
        runs = self._runs()
        return next((name for name, run in runs.items() if run == self.run), next(iter(runs)))

    def _runs(self) -> dict[str, Path | None]:
        """The finished runs of the scene by name; the source is first, with None: nothing is shown beside it.

        The folder of a sweep has runs of other scenes, too.
        """
        runs: dict[str, Path | None] = {self._name_of_source(): None}
        source = self.shown.source.resolve()
        for run in finished_runs(self.shown.folder):
            if run.resolve() != source and (run == self.run or _scene_of(run) in (None, self._scene)):
                runs[run.name] = run
        return runs

    def _name_of_source(self) -> str:
        if self.shown.own:
            return "(source)"
        source = self.shown.source.resolve()
        # With its folder if that is another one, which may have a run of the same name.
        return source.name if source.parent == self.shown.folder.resolve() else f"{source.parent.name}/{source.name}"

    def show(self, name: str) -> None:
        """Show a finished run beside the source. UserError if it cannot be read."""
        runs = self._runs()
        if name not in runs:  # whatever a browser sends
            raise UserError("there is no such run")
        self._show(runs[name])

    def _show(self, run: Path | None) -> None:
        edited = None if run is None else load_field(run / "field.safetensors", self.device)
        self.run, self.edited = run, edited
        self._refresh()

    def _refresh(self) -> None:
        for window in list(self.windows.values()):
            window.refresh()

    # --- windows

    def _build(self) -> None:
        scene = self.server.scene
        scene.set_up_direction(tuple((-self.start.pose[:, 1]).tolist()))
        distance = float(np.linalg.norm(self.start.position.numpy() - self.limits.middle)) or 1.0
        self._photos = [self._photo(i, _CAMERA_SIZE * distance) for i in range(len(self.capture.cameras))]
        self.place = Place(self.server, self.limits.middle, 0.25 * distance)
        self.controls = Controls(self, groups()["objective"])

        @scene.on_click()
        def _(event) -> None:
            self._clicked(event)

    def _photo(self, i: int, size: float):
        camera, image = self.capture.cameras[i], self.capture.images[i]
        small = torch.nn.functional.interpolate(
            image.permute(2, 0, 1)[None].float(), (round(_PHOTO * camera.height / camera.width), _PHOTO), mode="area"
        )
        wxyz = viser.transforms.SO3.from_matrix(camera.pose[:, :3].double().numpy()).wxyz
        handle = self.server.scene.add_camera_frustum(
            f"/photos/{i}",
            fov=2 * float(np.arctan(camera.height / 2 / camera.fy)),
            aspect=camera.width / camera.height,
            scale=size,
            image=small[0].permute(1, 2, 0).byte().numpy(),
            wxyz=wxyz,
            position=camera.position.numpy(),
            visible=False,
        )

        @handle.on_click
        def _(event) -> None:
            window = self.windows.get(event.client.client_id)
            if window is not None:
                window.look_from(camera)

        return handle

    def show_photos(self, visible: bool) -> None:
        for handle in self._photos:
            handle.visible = visible

    def _connected(self, client: viser.ClientHandle) -> None:
        self.windows[client.client_id] = Window(
            client, self.fields, self.lock, self.limits, self.start, self.config.moving_width, self.config.width
        )
        self.windows[client.client_id].refresh()

    def _disconnected(self, client: viser.ClientHandle) -> None:
        window = self.windows.pop(client.client_id, None)
        if window is not None:
            window.close()

    def _clicked(self, event) -> None:
        window = self.windows.get(event.client.client_id)
        if window is None or not self.controls.pointing:
            return
        u, v = event.screen_pos
        request = window.look()
        of_source = self.edited is None or request.shown == "source" or (request.shown == "split" and u < request.split)
        with self.lock:
            point = point_seen(request, u, v, self.source if of_source else self.edited)
        if point is None:
            self.controls.say("nothing is seen there")
            return
        self.place.put(point.numpy())
        self.controls.placed(self.place.kind)

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
        words = values["where"] if values["where"] and not self.place.option() else None
        for name, label in (("src", "From"), ("tgt", "To")):
            set_text(config, name, values[name], label)
        config.run, config.where = None if start is None else str(start), None
        if words:
            set_text(config, "where", words, "Where")
        for name, label, what in (("src", "From", "it shows now"), ("tgt", "To", "it should become")):
            if not values[name]:
                raise UserError(f"say what {what}: the field {label} is empty")
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

    def start_edit(self, extra: list[str]) -> None:
        """extra: such as resume=true. UserError if one is running."""
        with self._starting:
            if self.job is not None:
                raise UserError("an edit is running: stop it first")
            options, folder = self.edit_options()
            self._preview = _changed(_preview_of(folder))  # of an earlier edit: not this one's
            self.job = Job("edit", [*options, *extra], folder)

    def _watch(self) -> None:
        while not self._closed.wait(_POLL):
            try:
                self._look_at_edit()
                self._look_at_video()
            except Exception:  # the viewer goes on whatever an edit does to its files
                log.exception("the running edit could not be watched")

    def _look_at_edit(self) -> None:
        job = self.job
        if job is None:
            return
        running = job.running  # asked first: what it wrote before its end is seen
        self._load_preview(_preview_of(job.folder))
        self.controls.progress(job.progress(), job.lines[-1] if job.lines else "starting", running)
        if running:
            return
        self.job = None
        outcome = job.outcome() + ("; the state is kept: Resume goes on" if job.resumable else "")
        try:
            if outcome == "done":
                self._show(job.folder)
            else:
                self.show(self.name())  # no preview of the failed edit, and no run that it has begun to overwrite
            self.controls.list_runs(self.names(), self.name())
        finally:  # last: what the page says is done can be seen
            self.controls.say(outcome)

    def _load_preview(self, path: Path) -> None:
        changed = _changed(path)
        if changed not in (None, self._preview):  # clocks may be set back
            self._preview = changed
            self.edited = load_field(path, self.device)
            self._refresh()

    # --- videos

    def add_keyframe(self, client: viser.ClientHandle) -> int:
        window = self.windows.get(client.client_id)
        if window is not None:
            self.keyframes.append(window.look().pose)
        return len(self.keyframes)

    def start_video(self, frames: int) -> Path:
        """Render the run's field along the keyframes, or along the usual path if there are none."""
        with self._starting:
            return self._start_video(frames)

    def _start_video(self, frames: int) -> Path:
        if self.video is not None:
            raise UserError("a video is being rendered")
        run = self.run or self.shown.source
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is not there any more")
        if not self.keyframes:
            path = run / f"{path_kind(self.capture, 'auto')}.mp4"
            options = [str(run), f"frames={frames}"]
        else:
            if len(self.keyframes) < 2:
                raise UserError("two keyframes at least make a path")
            cameras = [self._as_start(pose) for pose in keyframed(torch.stack(self.keyframes), frames)]
            file, path = run / "keyframes.json", run / "keyframes.mp4"
            names = [f"{i:04d}" for i in range(frames)]
            write_transforms(file, names, cameras, capture_poses(cameras, self.capture))
            options = [str(run), f"path={file}", f"width={self.config.width}"]
        self.video = Job("render", [*options, f"device={self.config.device}"], run)
        self._video_path = path
        return path

    def _as_start(self, pose: torch.Tensor) -> Camera:
        return self.start.with_pose(pose)

    def _look_at_video(self) -> None:
        if self.video is None or self.video.running:
            return
        outcome, self.video = self.video.outcome(), None
        self.controls.say_of_video(f"{self._video_path}: {outcome}")

    def close(self) -> None:
        """Stop what runs, with its state kept, and the server."""
        self._closed.set()
        for job in (self.job, self.video):
            if job is not None:
                job.close()
        for window in list(self.windows.values()):
            window.close()
        self.server.stop()


def _scene_of(run: Path) -> str | None:
    """The name of a run's scene; None if its configuration cannot be read.

    Not the path of its capture, which may have been moved since.
    """
    try:
        config = read_config(run)
    except UserError:
        return None
    try:
        return scene_name(config)
    except UserError:  # its capture is not there any more
        return Path(config.capture).name


def _preview_of(run: Path) -> Path:
    return run / "state" / "preview.safetensors"


def _changed(path: Path) -> float | None:
    """When a file was written; None if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _named(host: str) -> str:
    """What to call the host in an address that browsers can open."""
    if host in ("localhost", "127.0.0.1"):
        return "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()  # of all its addresses the one that others know
    return f"[{host}]" if ":" in host else host
