"""The controls that all windows share: runs, the edit, its place, the video."""

from __future__ import annotations

import re

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
            photos = gui.add_checkbox("Photos", False, hint="The capture's photos at their cameras; a click goes there")
        with gui.add_folder("Edit", order=2):
            self._src = gui.add_text("From", viewer.shown.prompt)
            self._tgt = gui.add_text("To", "")
            self._objective = gui.add_dropdown("Objective", objectives, initial_value="cds")
            self._preset = gui.add_dropdown("Preset", _PRESETS, initial_value="field")
            self._iterations = gui.add_number("Iterations", 400, min=1, max=_MOST, step=1)
            self._onward = gui.add_checkbox("On from the run shown", False)
            self._overwrite = gui.add_checkbox("Overwrite", False)
            self._start, self._stop = gui.add_button("Start"), gui.add_button("Stop", disabled=True)
            self._resume = gui.add_button("Resume")
            self._bar = gui.add_progress_bar(0.0, visible=False)
            self._status = gui.add_markdown("")
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
        photos.on_update(lambda _: viewer.show_photos(bool(photos.value)))
        self._start.on_click(lambda _: self._begin(["overwrite=true"] if self._overwrite.value else []))
        self._resume.on_click(lambda _: self._begin(["resume=true"]))
        self._stop.on_click(lambda _: self._halt())
        self._kind.on_update(lambda _: self._placing())
        self._size.on_update(lambda _: viewer.place.resize(float(self._size.value)))
        key.on_click(lambda event: self.say_of_video(f"{viewer.add_keyframe(event.client)} keyframes"))
        clear.on_click(lambda _: (viewer.keyframes.clear(), self.say_of_video("No keyframes: the usual path.")))
        film.on_click(lambda _: self._film())
        self._tell_figures()

    @property
    def pointing(self) -> bool:
        return bool(self._point.value)

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
            except UserError as error:
                self.say(str(error))
        else:
            self._src.value = self._viewer.shown.prompt

    def say(self, text: str) -> None:
        """A line below the edit's buttons."""
        self._status.content = _plain(text)

    def say_of_video(self, text: str) -> None:
        self._video.content = _plain(text)

    def progress(self, told: dict, line: str, running: bool) -> None:
        self._start.disabled = self._resume.disabled = running
        self._stop.disabled = not running
        self._bar.visible = running
        if not running:
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

    def list_runs(self, names: list[str], now: str) -> None:
        self._runs.options = tuple(names)
        self._runs.value = now
        self._tell_figures()  # also of a run that was chosen before and has gone on since

    def placed(self, kind: str) -> None:
        self._kind.value = kind

    def _begin(self, extra: list[str]) -> None:
        try:
            self._viewer.start_edit(extra)
            self.say("starting")
            self.progress({}, "starting", True)
        except UserError as error:
            self.say(str(error))

    def _halt(self) -> None:
        if self._viewer.job is not None:
            self._viewer.job.stop()
            self.say("stopping: the state is being kept")

    def _chosen(self) -> None:
        try:
            self._viewer.show(self._runs.value)
            self._tell_figures()
            if self._onward.value:
                self._take_prompt()
        except UserError as error:
            self.say(str(error))

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
        self._figures.content = text

    def _placing(self) -> None:
        if self._kind.value in PLACES and self._kind.value != self._viewer.place.kind:
            self._viewer.place.show(self._kind.value)

    def _film(self) -> None:
        try:
            frames = min(max(int(self._frames.value), 2), 10_000)
            self.say_of_video(f"rendering {self._viewer.start_video(frames)}")
        except (UserError, TypeError, ValueError) as error:
            self.say_of_video(str(error))


_LIVE = ("t", "score_gradient_rms", "contrastive_loss")


def _plain(text: str) -> str:
    """Without what Markdown would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", text)
