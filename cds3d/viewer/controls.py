"""The controls that all windows share: runs, the edit and where it may go, the video."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import viser

from cds3d.options import load_config
from cds3d.runs import read_config
from cds3d.viewer.places import PLACES, SHAPES
from cds3d.viewer.wording import in_the_page, plain
from tensorf.errors import UserError
from tensorf.untrusted import load_json

_PRESETS = ("field", "shape", "redraw", "pictures")
_OF_PRESETS = "field: colours; pictures: materials; shape, redraw: shapes"
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
            self._figures = gui.add_markdown("", visible=False)
            self._photos = gui.add_checkbox(
                "Photos",
                False,
                hint="The capture's photos at their cameras: scroll out to see them, click one to go there",
            )
        with gui.add_folder("Edit", order=2):
            self._src = gui.add_text("From", viewer.shown.prompt, hint="What it shows now, such as: a yellow flower")
            self._tgt = gui.add_text("To", "", hint="What it should become, such as: a red flower")
            self._build_where(gui)
            self._objective = gui.add_dropdown("Objective", objectives, initial_value="cds", hint="What edits follow")
            self._preset = gui.add_dropdown("Preset", _PRESETS, initial_value="field", hint=_OF_PRESETS)
            self._iterations = gui.add_number("Iterations", 400, min=1, max=_MOST, step=1)
            self._onward = gui.add_checkbox(
                "Start from the run shown", False, hint="Edit the edit that is shown, in place of the source"
            )
            self._overwrite = gui.add_checkbox("Overwrite", False, hint="Start deletes the earlier run of this prompt")
            self._start, self._stop = gui.add_button("Start"), gui.add_button("Stop", disabled=True)
            self._stopped = gui.add_dropdown("Stopped", ("",), visible=False, hint="Resume goes on with this edit")
            self._resume = gui.add_button("Resume", disabled=True, visible=False)
            self._bar = gui.add_progress_bar(0.0, visible=False)
            self._status, self._warnings = (gui.add_markdown("", visible=False) for _ in range(2))
        with gui.add_folder("Video", order=3, expand_by_default=False):
            key, clear = gui.add_button("Add keyframe"), gui.add_button("Clear keyframes")
            self._frames = gui.add_number("Frames", 60, min=2, max=10_000, step=1)
            film = gui.add_button("Render")
            self._video = gui.add_markdown("No keyframes: the usual path.")
            self._download = gui.add_button("Download", visible=False)
        self._runs.on_update(lambda _: self._chosen())
        self._preset.on_update(lambda _: self._take_iterations())
        self._onward.on_update(lambda _: self._take_prompt())
        self._photos.on_update(lambda _: viewer.show_photos(self.photos))
        self._start.on_click(lambda _: self._begin(self._start_edit))
        self._resume.on_click(lambda _: self._begin(lambda: viewer.resume_edit(self._stopped.value)))
        self._stop.on_click(lambda _: self._halt())
        self._kind.on_update(lambda _: self._choose_place())
        self._size.on_update(lambda _: viewer.place.resize(float(self._size.value)))
        key.on_click(lambda event: self._tell_keyframes(viewer.filming.add_keyframe(event.client)))
        clear.on_click(lambda _: (viewer.filming.keyframes.clear(), self.say_of_video("No keyframes: the usual path.")))
        film.on_click(lambda _: self._film())
        self._download.on_click(lambda event: self._send_film(event.client))
        self.list_runs()

    def _build_where(self, gui) -> None:
        """The rows that say where the edit may go. Those of balls, boxes and words are there once they are chosen."""
        place = self._viewer.place
        self._kind = gui.add_dropdown("Where", PLACES, initial_value=PLACES[0], hint="Where the edit may change things")
        self._words = gui.add_text("Words", "", visible=False, hint="What the edit may change: the yellow flower")
        size = round(max(0.02, min(4.0, place.radius)), 2)
        self._size = gui.add_slider("Size", 0.02, 4.0, 0.01, size, visible=False)
        self._point = gui.add_checkbox("A click puts it", True, visible=False, hint="So does a tap on a touch screen")

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
        texts = {"src": self._src, "tgt": self._tgt, "words": self._words}
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
        _write(self._status, plain(in_the_page(text)))

    def say_of_video(self, text: str) -> None:
        self._video.content = plain(text)
        self._download.visible = self._viewer.filming.made is not None

    def _tell_keyframes(self, count: int) -> None:
        self.say_of_video(f"{count} keyframe{'' if count == 1 else 's'}")

    def warn(self, warnings: Sequence[str]) -> None:
        """What the edit has warned of, below the line: that one goes on."""
        _write(self._warnings, "\n\n".join(f"**Warning:** {plain(in_the_page(warning))}" for warning in warnings))

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
        self._stopped.visible = self._resume.visible = bool(stopped)
        self._resume.disabled = not stopped or viewer.job is not None
        self._tell_figures()  # also of a run that was chosen before and has gone on since

    def _start_edit(self) -> None:
        self._viewer.start_edit(bool(self._overwrite.value))
        self._overwrite.value = False  # it was meant for this run: the next Start deletes no other one

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
            text = "\n\n".join(plain(line) for line in lines)
        _write(self._figures, text)

    def _choose_place(self) -> None:
        kind = self._kind.value
        if kind not in PLACES:
            return
        self._viewer.place.show(kind)
        self._words.visible = kind == "words"
        self._size.visible = self._point.visible = kind in SHAPES
        if kind in SHAPES:
            without = " (with Photos off)" if self.photos else ""
            self.say(f"click or tap what the edit may change{without}: the {kind} goes there")

    def _film(self) -> None:
        try:
            frames = min(max(int(self._frames.value), 2), 10_000)
            self.say_of_video(f"rendering {self._viewer.filming.start(frames)}")
        except (UserError, TypeError, ValueError) as error:
            self.say_of_video(str(error))

    def _send_film(self, client: viser.ClientHandle) -> None:
        try:
            self._viewer.filming.send(client)
        except UserError as error:
            self.say_of_video(str(error))


_LIVE = ("t", "score_gradient_rms", "contrastive_loss")


def _offer(dropdown, names: list[str], now: str) -> None:
    """Let a dropdown offer these names. The value is set first: one that is not offered becomes the first that is."""
    if dropdown.value != now:
        dropdown.value = now
    if dropdown.options != tuple(names):
        dropdown.options = tuple(names)


def _write(markdown: viser.GuiMarkdownHandle, text: str) -> None:
    """Show a text; without one, its row takes no room."""
    if markdown.content != text:
        markdown.content, markdown.visible = text, bool(text)
