"""The viewer's runs and edits: what is listed, what Start and Resume begin, what is told of them."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

viser = pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')

from viewer_client import wait_for  # noqa: E402

from cds3d.cli import configured  # noqa: E402
from cds3d.commands.view import _let_edits_be_stopped, open_viewer  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.viewer import app  # noqa: E402
from cds3d.viewer.listing import options_of  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402

DAISIES = Path("outputs", "daisies")


class Begun:
    """An edit that does nothing until a test ends it."""

    def __init__(self, command, options, folder):
        self.options, self.folder, self.lines, self.warnings = options, folder, [], []
        self.running, self.stopping, self.resumable, self.ended = True, False, False, "stopped"

    def progress(self):
        return {}

    def outcome(self):
        return self.ended

    def close(self):
        self.running = False


@pytest.fixture
def viewer(tmp_path, monkeypatch, source_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "Job", Begun)
    shutil.copytree(source_run, DAISIES / "source")
    running = open_viewer(load_config("view", [f"run={DAISIES / 'source'}", "port=0", "width=48", "moving_width=24"]))
    running.controls._src.value, running.controls._tgt.value = "a daisy", "a red daisy"
    yield running
    running.close()


def add_run(name, tgt="a red daisy", finished=True, iteration=None, **options):
    """A run folder beside the source."""
    run = DAISIES / name
    shutil.copytree(DAISIES / "source", run)
    of_source = OmegaConf.load(run / "config.yaml")
    config = configured("edit", ["--src=a daisy, half open", f"--tgt={tgt}", f"--capture={of_source.capture}"])
    config.scene = OmegaConf.merge(config.scene, of_source.scene)
    for key, value in options.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    write_text(run / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    if not finished:
        (run / "metrics.json").unlink()
        (run / "state").mkdir(exist_ok=True)
        (run / "state" / "state.pt").touch()
        if iteration is not None:
            write_text(run / "state" / "progress.json", json.dumps({"iteration": iteration}))
    return run


# --- the list


def test_the_edit_that_runs_is_in_the_list_and_what_is_chosen_is_shown(viewer):
    red = add_run("a-red-daisy")
    viewer.show("a-red-daisy")
    viewer.controls._tgt.value = "a blue daisy"
    viewer.start_edit()
    assert viewer.name() == viewer.controls._runs.value == "(running) a-blue-daisy" == viewer.names()[1]
    assert viewer.run is None and viewer.edited is None and viewer.controls._figures.content == ""
    with pytest.raises(UserError, match="still runs"):
        viewer.filming.start(4)
    viewer.show("a-red-daisy")
    chosen = viewer.edited
    preview = viewer.job.folder / "state" / "preview.safetensors"
    preview.parent.mkdir(parents=True)
    shutil.copy(red / "field.safetensors", preview)
    time.sleep(1.2)
    assert viewer.edited is chosen and viewer.run == red  # the preview is not what was chosen
    viewer.show("(running) a-blue-daisy")
    wait_for(lambda: viewer.edited not in (None, chosen))
    viewer.job.running = False
    wait_for(lambda: viewer.job is None)
    wait_for(lambda: viewer.run == red and viewer.controls._runs.value == "a-red-daisy")  # as before the edit
    assert viewer.names() == ["(source)", "a-red-daisy"]


def test_an_edit_that_ends_does_not_replace_what_was_chosen_meanwhile(viewer):
    add_run("a-red-daisy")
    viewer.controls._tgt.value = "a blue daisy"
    viewer.start_edit()
    viewer.show("a-red-daisy")
    add_run("a-blue-daisy")
    viewer.job.ended, viewer.job.running = "done", False
    wait_for(lambda: viewer.controls._status.content == "done")
    assert viewer.name() == viewer.controls._runs.value == "a-red-daisy" and "a-blue-daisy" in viewer.names()


def test_what_comes_and_goes_on_the_disk_is_listed(viewer, monkeypatch):
    monkeypatch.setattr(app, "_LIST_EVERY", 0.1)
    for name in ("a-red-daisy", "a-blue-daisy"):
        add_run(name)
    wait_for(lambda: viewer.controls._runs.options == ("(source)", "a-blue-daisy", "a-red-daisy"))
    viewer.controls._runs.value = "a-red-daisy"
    wait_for(lambda: viewer.run == DAISIES / "a-red-daisy")
    shutil.rmtree(DAISIES / "a-red-daisy")
    wait_for(lambda: viewer.controls._runs.options == ("(source)", "a-blue-daisy"))
    assert viewer.run is None and viewer.edited is None and viewer.controls._runs.value == "(source)"
    assert "is not there any more" in viewer.controls._status.content


def test_a_run_that_is_gone_is_not_named_above_another_ones_picture(viewer, monkeypatch):
    monkeypatch.setattr(app, "_LIST_EVERY", 1000)  # at once, not when the list is looked at next
    for name in ("a-red-daisy", "a-blue-daisy"):
        add_run(name)
    viewer.controls.list_runs()
    viewer.show("a-blue-daisy")
    shutil.rmtree(DAISIES / "a-red-daisy")
    viewer.controls._runs.value = "a-red-daisy"
    wait_for(lambda: viewer.controls._runs.value == "a-blue-daisy")
    assert viewer.run == DAISIES / "a-blue-daisy" and "a-red-daisy" not in viewer.controls._runs.options


# --- Resume


def test_resume_goes_on_with_the_edit_that_was_stopped_whatever_the_controls_say(viewer):
    viewer.start_edit(overwrite=True)
    first = viewer.job
    add_run("a-red-daisy", finished=False, iteration=72)
    first.resumable, first.running = True, False
    wait_for(lambda: not viewer.controls._resume.disabled)
    assert viewer.controls._stopped.value == "a-red-daisy (stopped at 72)"
    assert viewer.controls._stopped.visible and viewer.controls._resume.visible
    viewer.controls._tgt.value, viewer.controls._src.value = "a mug", "a table"
    viewer.resume_edit(viewer.controls._stopped.value)
    wanted = [o for o in first.options if o != "overwrite=true"]
    assert viewer.job.options == [*wanted, "resume=true"] and viewer.job.folder == first.folder


def test_stopped_edits_of_other_processes_are_listed_and_resumed_as_they_were_begun(viewer):
    run = add_run("a-red-daisy", finished=False, iteration=5, edit__iterations=90, seed=3, ball="0.1,0.2,2,0.5")
    viewer.controls.list_runs()
    assert list(viewer.stopped()) == ["a-red-daisy (stopped at 5)"]
    viewer.resume_edit("a-red-daisy (stopped at 5)")
    again = OmegaConf.to_container(configured("edit", viewer.job.options), resolve=True)
    before = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    expected = {"output": str(run), "resume": True, "preview_every": 20, "scene": again["scene"]}
    assert again == before | expected
    assert again["scene"]["width"] == before["scene"]["width"] and again["seed"] == 3


def test_an_edit_of_an_edit_is_resumed_from_that_edit(viewer):
    add_run("a-red-daisy")
    run = add_run("on", "a blue daisy", False, run=str(DAISIES / "a-red-daisy"), where="the petals")
    options = options_of(run)
    assert f"--run={DAISIES / 'a-red-daisy'}" in options and "--where=the petals" in options
    assert not any(o.startswith(("scene", "--capture")) for o in options)
    configured("edit", options)


def test_nothing_is_begun_where_there_is_nothing_to_resume(viewer):
    assert viewer.controls._resume.disabled and not viewer.controls._stopped.visible
    for name in ("", "a-red-daisy", "../source"):  # whatever a browser sends
        with pytest.raises(UserError, match="no stopped edit"):
            viewer.resume_edit(name)
    assert viewer.job is None


def test_the_last_edit_that_was_stopped_is_the_one_to_resume(viewer):
    add_run("a-blue-daisy", finished=False, iteration=1)
    viewer.controls.list_runs()
    viewer.start_edit()
    add_run("a-red-daisy", finished=False, iteration=2)
    viewer.job.resumable, viewer.job.running = True, False
    wait_for(lambda: viewer.controls._stopped.value == "a-red-daisy (stopped at 2)")


def test_overwrite_is_for_one_start(viewer):
    add_run("a-red-daisy", edit__iterations=400)
    viewer.controls._overwrite.value = True
    viewer.controls._begin(viewer.controls._start_edit)
    assert viewer.job.options[-1] == "overwrite=true" and not viewer.controls._overwrite.value
    viewer.controls._overwrite.value = True  # of a start that is refused, since an edit is running
    viewer.controls._begin(viewer.controls._start_edit)
    assert viewer.controls._overwrite.value


# --- what is told


def test_messages_name_what_the_page_has(viewer):
    run = add_run("a-red-daisy", edit__iterations=400)
    with pytest.raises(UserError, match="a-red-daisy is done already: tick Overwrite"):
        viewer.start_edit()
    (run / "metrics.json").unlink()
    (run / "state").mkdir(exist_ok=True)
    (run / "state" / "state.pt").touch()
    with pytest.raises(UserError, match="a-red-daisy was stopped: Resume goes on with it"):
        viewer.start_edit()
    viewer.controls._src.value = "A red daisy"
    with pytest.raises(UserError, match="^From and To say the same$"):
        viewer.start_edit()
    assert viewer.job is None
    viewer.controls.say("x was begun with edit.lr=1, not 2: resume it with the same options, or pass overwrite=true")
    assert "=true" not in viewer.controls._status.content and "tick Overwrite" in viewer.controls._status.content


def test_more_iterations_go_on_with_a_finished_edit(viewer):
    add_run("a-red-daisy", edit__iterations=400)
    viewer.controls._iterations.value = 500
    viewer.start_edit()
    assert viewer.job.options[-1] == "resume=true" and "edit.iterations=500" in viewer.job.options


def test_after_an_edit_of_an_edit_the_page_asks_what_is_next(viewer):
    add_run("a-red-daisy")
    viewer.show("a-red-daisy")
    viewer.controls._onward.value, viewer.controls._tgt.value = True, "a blue daisy"
    viewer.start_edit()
    add_run(viewer.job.folder.name, "a blue daisy")
    viewer.job.ended, viewer.job.running = "done", False
    wait_for(lambda: viewer.controls._status.content == "done")
    assert viewer.controls._src.value == "a blue daisy" and viewer.controls._tgt.value == ""


def test_warnings_stay_until_the_next_start(viewer):
    viewer.start_edit()
    viewer.job.warnings.append('guidance=pocket does not know "zorkly"')
    viewer.job.ended, viewer.job.running = "done", False
    viewer.watching = False  # there is no field to show
    wait_for(lambda: viewer.controls._status.content == "done")
    assert '"zorkly"' in viewer.controls._warnings.content
    viewer.controls._begin(viewer.start_edit)
    assert viewer.controls._warnings.content == ""


def test_a_job_tells_warnings_apart(python):
    code = "import logging; from cds3d.cli import tell; tell(); log = logging.getLogger('cds3d')\n"
    job = python(code + "log.warning('an odd word'); log.warning('an odd word'); log.info('at work')")
    assert job.process.wait(20) == 0 and job.outcome() == "done"
    assert job.warnings == ["an odd word"] and list(job.lines) == ["an odd word"] * 2 + ["at work"]


def test_keyframes_are_counted_in_words_of_their_number(viewer):
    told = []
    for count in (1, 2):
        viewer.controls._tell_keyframes(count)
        told.append(viewer.controls._video.content)
    assert told == ["1 keyframe", "2 keyframes"]


# --- Stop


def test_an_edit_can_be_stopped_though_the_viewer_ignores_interrupts(python):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _let_edits_be_stopped()
        signal.raise_signal(signal.SIGINT)  # still ignored here
        job = python("import time; print('up', flush=True); time.sleep(60)")
        time.sleep(1)
        job.stop()
        job.process.wait(10)
        assert job.outcome() == "stopped"
    finally:
        signal.signal(signal.SIGINT, before)
        job.process.kill()


def test_a_second_stop_ends_an_edit_that_does_not_listen(viewer, python):
    viewer.job = job = python("import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)", Path("nowhere"))
    try:
        time.sleep(1)
        viewer.controls._halt()
        assert not viewer.controls._stop.disabled and job.running
        viewer.controls._halt()
        job.process.wait(10)
        wait_for(lambda: viewer.controls._status.content == "stopped")
    finally:
        job.process.kill()
