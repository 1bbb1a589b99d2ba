"""The controls that all windows share: runs, the edit, its place, the video."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cds3d.options import load_config
from cds3d.runs import read_config
from cds3d.viewer.places import PLACES
from tensorf.errors import UserError
from tensorf.untrusted import load_json

_PRESETS = ("field", "shape", "redraw", "pictures")
_MOST = 100_000  # iterations
_FIGURES = {
    "edit_gain_db": "gain, dB",
    "kept_psnr_db": "kept, dB",
    "psnr_to_source_db": "PSNR to the source, dB",
    "clip_direction": "CLIP direction",
    "edit_seconds": "seconds",
}


class Controls:
    """viewer: whose controls they are (`app.Viewer`). objectives: names to choose from."""

    def __init__(self, viewer, objectives: list[str]):
        self._viewer, gui = viewer, viewer.server.gui
        with gui.add_folder("Runs", order=1):
            self._runs = gui.add_dropdown("Shown", viewer.names(), initial_value=viewer.name())
            self._figures = gui.add_markdown("")
            self._photos = gui.add_checkbox(
                "Photos",
                False,
                hint="The capture's photos at their cameras: scroll out to see them, click one to go there",
            )
        with gui.add_folder("Edit", order=2):
            self._src = gui.add_text("From", viewer.shown.prompt)
            self._tgt = gui.add_text("To", "")
            self._objective = gui.add_dropdown("Objective", objectives, initial_value="cds")
            self._preset = gui.add_dropdown("Preset", _PRESETS, initial_value="field")
            self._iterations = gui.add_number("Iterations", 400, min=1, max=_MOST, step=1)
            self._onward = gui.add_checkbox("Start from the run shown", False)
            self._overwrite = gui.add_checkbox("Overwrite", False)
            self._start, self._stop = gui.add_button("Start"), gui.add_button("Stop", disabled=True)
            self._stopped = gui.add_dropdown("Stopped", ("",), visible=False, hint="Resume goes on with this edit")
            self._resume = gui.add_button("Resume", disabled=True)
            self._bar = gui.add_progress_bar(0.0, visible=False)
            self._status = gui.add_markdown("")
            self._warnings = gui.add_markdown("")
        with gui.add_folder("Where", order=3, expand_by_default=False):
            self._kind = gui.add_dropdown("Stays in", PLACES, initial_value=PLACES[0])
            self._size = gui.add_slider("Size", 0.02, 4.0, 0.01, round(max(0.02, min(4.0, viewer.place.radius)), 2))
            self._point = gui.add_checkbox("A click puts it", True)
            self._where = gui.add_text("Or in words", "", hint="such as: the flower")
        with gui.add_folder("Video", order=4, expand_by_default=False):
            key, clear = gui.add_button("Add keyframe"), gui.add_button("Clear keyframes")
            self._frames = gui.add_number("Frames", 60, min=2, max=10_000, step=1)
            film = gui.add_button("Render")
            self._video = gui.add_markdown("No keyframes: the usual path.")
        self._runs.on_update(lambda _: self._chosen())
        self._preset.on_update(lambda _: self._take_iterations())
        self._onward.on_update(lambda _: self._take_prompt())
        self._photos.on_update(lambda _: viewer.show_photos(self.photos))
        self._start.on_click(lambda _: self._begin(lambda: viewer.start_edit(bool(self._overwrite.value))))
        self._resume.on_click(lambda _: self._begin(lambda: viewer.resume_edit(self._stopped.value)))
        self._stop.on_click(lambda _: self._halt())
        self._kind.on_update(lambda _: self._placing())
        self._size.on_update(lambda _: viewer.place.resize(float(self._size.value)))
        key.on_click(lambda event: self._tell_keyframes(viewer.filming.add_keyframe(event.client)))
        clear.on_click(lambda _: (viewer.filming.keyframes.clear(), self.say_of_video("No keyframes: the usual path.")))
        film.on_click(lambda _: self._film())
        self.list_runs()

    @property
    def photos(self) -> bool:
        """Whether the photos are shown."""
        return bool(self._photos.value)

    @property
    def pointing(self) -> bool:
        """Whether a click puts the ball or box: where photos are shown, it may be meant for one of them."""
        return bool(self._point.value) and not self.photos

    def values(self) -> dict:
        """What the controls say, checked: a browser can send anything."""
        try:
            iterations = int(self._iterations.value)
        except (TypeError, ValueError):
            iterations = 0
        if not 1 <= iterations <= _MOST:
            raise UserError(f"iterations have to be from 1 to {_MOST}")
        if self._objective.value not in self._objective.options or self._preset.value not in _PRESETS:
            raise UserError("there is no such objective or preset")
        texts = {"src": self._src, "tgt": self._tgt, "where": self._where}
        texts = {name: str(control.value).strip() for name, control in texts.items()}
        if any("${" in text or not text.isprintable() for text in texts.values()):
            raise UserError("prompts are one line of plain text, without ${")
        choices = {"objective": self._objective.value, "preset": self._preset.value, "iterations": iterations}
        return {**texts, **choices, "onward": bool(self._onward.value)}

    def _take_iterations(self) -> None:
        """Show the iterations that the chosen preset has by default: edit=pictures counts those of one picture."""
        if self._preset.value in _PRESETS:
            self._iterations.value = int(load_config("edit", [f"edit={self._preset.value}"]).edit.iterations)

    def _take_prompt(self) -> None:
        """Let "From" say what the field shows that the next edit starts from."""
        run = self._viewer.run
        if self._onward.value and run is not None:
            try:
                of_run = read_config(run)
                self._src.value = str(of_run.get("tgt", of_run.scene.prompt) or "")  # sources have no prompts
                if self._tgt.value == self._src.value:  # the edit that has just ended: what is next?
                    self._tgt.value = ""
            except UserError as error:
                self.say(str(error))
        else:
            self._src.value = self._viewer.shown.prompt

    def say(self, text: str) -> None:
        """A line below the edit's buttons."""
        for option, name in _IN_THE_PAGE.items():
            text = text.replace(option, name)
        self._status.content = _plain(text)

    def say_of_video(self, text: str) -> None:
        self._video.content = _plain(text)

    def _tell_keyframes(self, count: int) -> None:
        self.say_of_video(f"{count} keyframe{'' if count == 1 else 's'}")

    def warn(self, warnings: Sequence[str]) -> None:
        """What the edit has warned of, below the line: that one goes on."""
        text = "\n\n".join(f"**Warning:** {_plain(warning)}" for warning in warnings)
        if self._warnings.content != text:
            self._warnings.content = text

    def progress(self, told: dict, line: str, running: bool, stopping: bool) -> None:
        """told: what the edit tells of itself. line: the last one that it has written, until it has told something."""
        self._start.disabled, self._bar.visible = running, running
        self._resume.disabled = running or not self._stopped.visible
        # Before it works, there is no state to keep: a second click ends an edit that does not listen.
        self._stop.disabled = not running or (stopping and bool(told))
        if not running or stopping:
            return
        done, total = told.get("iteration", 0), max(1, told.get("iterations", 1))
        self._bar.value = 100.0 * done / total
        if not done:
            self.say(line)
        elif done < total:
            figures = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in told.items() if k in _LIVE)
            self.say(f"iteration {done} of {total}, {told.get('seconds', 0):.0f} s; {figures}")
        else:
            self.say("rendering views and figures")

    def list_runs(self, newest: bool = False) -> None:
        """Offer the runs that there are, with the one that is shown as the chosen one.

        newest: whether to offer the last edit that was stopped, whichever one was chosen to go on with before.
        """
        viewer = self._viewer
        _offer(self._runs, viewer.names(), viewer.name())
        stopped, chosen = list(viewer.stopped()), self._stopped.value
        if stopped:
            _offer(self._stopped, stopped, chosen if chosen in stopped and not newest else stopped[0])
        self._stopped.visible = bool(stopped)
        self._resume.disabled = not stopped or viewer.job is not None
        self._tell_figures()  # also of a run that was chosen before and has gone on since

    def _begin(self, begin: Callable[[], None]) -> None:
        try:
            begin()
            self.say("starting")
            self.warn([])
            self.progress({}, "starting", True, False)
        except UserError as error:
            self.say(str(error))

    def _halt(self) -> None:
        job = self._viewer.job
        if job is None:
            return
        if job.stopping and not job.progress():
            job.process.kill()  # nothing is kept yet
        job.stop()
        self.say("stopping: the state is being kept" if job.progress() else "stopping")
        self.progress(job.progress(), "", True, True)

    def _chosen(self) -> None:
        name = self._runs.value
        try:
            if name != self._viewer.name():
                self._viewer.show(name)
            self.list_runs()  # with the figures; the list may have been told anew while the run was read
            if self._onward.value:
                self._take_prompt()
        except UserError as error:
            self.say(str(error))
            self.list_runs()  # what is shown is still what was

    def _tell_figures(self) -> None:
        run, text = self._viewer.run, ""
        if run is not None:
            try:
                metrics = load_json(run / "metrics.json")
            except (OSError, ValueError):
                metrics = {}
            history = [step.get("tgt", "") for step in metrics.get("history", [])]
            lines = [f"after: {', '.join(history)}"] if history else []
            lines += [f"{name}: {metrics[key]:.2f}" for key, name in _FIGURES.items() if key in metrics]
            text = "\n\n".join(_plain(line) for line in lines)
        if self._figures.content != text:
            self._figures.content = text

    def _placing(self) -> None:
        if self._kind.value in PLACES and self._kind.value != self._viewer.place.kind:
            self._viewer.place.show(self._kind.value)

    def _film(self) -> None:
        try:
            frames = min(max(int(self._frames.value), 2), 10_000)
            self.say_of_video(f"rendering {self._viewer.filming.start(frames)}")
        except (UserError, TypeError, ValueError) as error:
            self.say_of_video(str(error))


# What messages of `edit.py` name, and what stands for it here.
_IN_THE_PAGE = {
    "resume it with the same options, or pass overwrite=true": "tick Overwrite to do it anew",
    "go on from the last state with resume=true": "go on with Resume",
    "pass overwrite=true": "tick Overwrite",
    "with overwrite=true": "with Overwrite",
    "resume=true": "Resume",
    "overwrite=true": "Overwrite",
    "edit.iterations": "Iterations",
    "give output=FOLDER": "say To in other words",
    "give another output folder": "say To in other words",
}
_LIVE = ("t", "score_gradient_rms", "contrastive_loss")


def _offer(dropdown, names: list[str], now: str) -> None:
    """Let a dropdown offer these names. The value is set first: one that is not offered becomes the first that is."""
    if dropdown.value != now:
        dropdown.value = now
    if dropdown.options != tuple(names):
        dropdown.options = tuple(names)


def _plain(text: str) -> str:
    """Without what Markdown would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", text)
