"""Videos that are asked for in the page: along keyframes, or along the usual path."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
import viser

from cds3d.commands.videos import path_kind
from cds3d.jobs import Job
from tensorf.captures.writing import capture_poses, write_transforms
from tensorf.errors import UserError, reason
from tensorf.paths import keyframed


class Filming:
    """Of one viewer (`app.Viewer`). job: the video that is being rendered, or None. made: the last one, or None."""

    def __init__(self, viewer):
        self._viewer = viewer
        self._starting = threading.Lock()  # clicks are answered in many threads: two of them start one video
        self.job: Job | None = None
        self.made: Path | None = None
        self.keyframes: list[torch.Tensor] = []

    def add_keyframe(self, client: viser.ClientHandle) -> int:
        """What the client's window sees becomes the last of the keyframes; returns their number."""
        window = self._viewer.windows.get(client.client_id)
        if window is not None:
            self.keyframes.append(window.look().pose)
        return len(self.keyframes)

    def start(self, frames: int) -> Path:
        """Render the run's field along the keyframes, or along the usual path if there are none."""
        with self._starting:
            return self._start(frames)

    def _start(self, frames: int) -> Path:
        viewer = self._viewer
        if self.job is not None:
            raise UserError("a video is being rendered")
        if viewer.watching:
            raise UserError("this edit still runs: choose a finished run, or wait")
        run = viewer.run or viewer.shown.source
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is not there any more")
        if not self.keyframes:
            path = run / f"{path_kind(viewer.capture, 'auto')}.mp4"
            options = [str(run), f"frames={frames}"]
        else:
            if len(self.keyframes) < 2:
                raise UserError("two keyframes at least make a path")
            cameras = [viewer.start.with_pose(pose) for pose in keyframed(torch.stack(self.keyframes), frames)]
            file, path = run / "keyframes.json", run / "keyframes.mp4"
            names = [f"{i:04d}" for i in range(frames)]
            write_transforms(file, names, cameras, capture_poses(cameras, viewer.capture))
            options = [str(run), f"path={file}", f"width={viewer.config.width}"]
        self.job = Job("render", [*options, f"device={viewer.config.device}"], run)
        self._path, self.made = path, None
        return path

    def look(self) -> str | None:
        """A line about the video once it has ended."""
        if self.job is None or self.job.running:
            return None
        outcome, self.job = self.job.outcome(), None
        self.made = self._path if outcome == "done" else None
        return f"{self._path}: {outcome}"

    def send(self, client: viser.ClientHandle) -> None:
        """Let a browser keep the last video. It names no file: what it gets is what was rendered here."""
        made = self.made  # another window may begin the next one meanwhile
        if made is None:
            return
        try:
            content = made.read_bytes()
        except OSError as error:
            raise UserError(f"{made} cannot be read: {reason(error)}") from error
        client.send_file_download(f"{made.parent.name}-{made.name}", content, save_immediately=True)
