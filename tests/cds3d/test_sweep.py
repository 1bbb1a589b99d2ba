"""Sweeps: which edits, how they are done, what is told of them."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import TINY_FIELD, TINY_SCENE

import cds3d.sweep.pool as pool_module
from cds3d.cli import main
from cds3d.commands.sweep import _tell_replaced
from cds3d.options import load_config
from cds3d.sweep.plan import Task, plan
from cds3d.sweep.pool import Work, run_pool, works
from cds3d.sweep.report import Reporter, rows, write_report
from tensorf.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(*options, **lists):
    config = load_config("sweep", list(options))
    for name, value in lists.items():
        config[name] = value
    return plan(config, Path("out"))


# --- which edits


def test_a_sweep_is_all_combinations():
    tasks = planned(
        scenes=["flower", "mug"],
        edits=["a red flower", "a mug -> a blue mug"],
        objectives=["cds", "dds"],
        options=["", "edit.lr=0.02 objective.scale=3"],
        seeds=[0, 1],
    )
    assert len(tasks) == 32 and len({t.folder for t in tasks}) == 32
    task = next(t for t in tasks if t.src and t.extra and t.scene == "mug" and t.objective == "dds" and t.seed == 1)
    assert task.flags == ("--tgt=a blue mug", "--src=a mug")
    assert task.options == ("objective=dds", "seed=1", "edit.lr=0.02", "objective.scale=3", "scene=mug")
    assert task.folder.parent == Path("out/runs") and task.folder.name.startswith("mug-a-blue-mug-dds-seed1-")
    assert task.source == Path("outputs/mug/source")


def test_folders_do_not_hang_on_what_else_is_swept():
    one = planned(edits=["a red flower"], seeds=[3])[0].folder
    assert one in {
        t.folder for t in planned(edits=["a blue flower", "a red flower"], seeds=[1, 3], objectives=["dds", "cds"])
    }


def test_prompts_that_a_folders_name_cannot_tell_have_folders_of_their_own():
    long = "a red flower " * 8
    tasks = planned(edits=["красный цветок", "синий цветок", f"{long}a", f"{long}b", "a red flower", "a red flower!"])
    assert len({t.folder for t in tasks}) == 6
    assert tasks[4].folder.name == "flower-a-red-flower-cds-seed0"  # this one it can tell


def test_captures_of_one_name_have_folders_of_their_own(capture_folder, tmp_path):
    for place in "ab":
        shutil.copytree(capture_folder, tmp_path / place / "garden")
    first, second = planned(edits=["a -> b"], scenes=["a/garden", "b/garden"])
    assert first.folder != second.folder and first.folder.name.startswith("garden-b-cds-seed0-")


def test_captures_are_given_by_their_folder(capture_folder):
    (task,) = planned(scenes=[str(capture_folder)], edits=["a flower -> a red flower"])
    assert f"--capture={capture_folder}" in task.flags and task.source == Path("outputs/daisies/source")


def test_a_value_with_spaces_is_quoted(tmp_path):
    text = "options:\n- where='the yellow flower' edit.lr=0.02\n"
    (tmp_path / "x.yaml").write_text(f"edits: [a red flower]\n{text}")
    (task,) = planned("file=x.yaml")
    assert task.extra == ("where=the yellow flower", "edit.lr=0.02") and "where=the yellow flower" in task.options
    (row,) = rows([task], [Work("edit", [], task.folder)])
    assert row["options"] == "'where=the yellow flower' edit.lr=0.02"  # as they can be given again
    (same,) = planned("""options=["where='the yellow flower' edit.lr=0.02"]""", edits=["a red flower"])
    assert same == task


def test_runs_of_an_earlier_sweep_stay_in_the_table(tmp_path):
    kept, gone = tmp_path / "runs" / "kept", tmp_path / "runs" / "gone"
    kept.mkdir(parents=True)
    (kept / "metrics.json").write_text("{}")
    rows = [{"scene": "flower", "state": "done", "failure": None, "run": str(run)} for run in (kept, gone)]
    rows.append({"scene": "flower", "state": "waiting", "failure": None, "run": str(tmp_path / "runs" / "never")})
    (tmp_path / "sweep.json").write_text(json.dumps(rows))
    Reporter(tmp_path, [], []).write()
    assert table_in(tmp_path) == [rows[0] | {"run": "runs/kept"}]


def table_in(folder):
    return json.loads((folder / "sweep.json").read_text())


def a_done_run(output, name):
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    return Task("flower", None, name, "cds", (), 0, (), (), folder, Path("source"))


def reported(output, *tasks, attempts=0):
    Reporter(output, tasks, [Work("edit", [], t.folder, attempts=attempts) for t in tasks]).write()
    return table_in(output)


def test_the_table_keeps_its_rows_wherever_the_sweep_is_called_from(tmp_path, monkeypatch):
    first, second = a_done_run(Path("out"), "first"), a_done_run(Path("out"), "second")
    reported(Path("out"), first, attempts=2)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    second = dataclasses.replace(second, folder=tmp_path / second.folder)
    table = reported(tmp_path / "out", second)
    assert [(row["run"], row["attempts"]) for row in table] == [("runs/second", 0), ("runs/first", 2)]
    assert "runs/first" in (tmp_path / "out" / "sweep.csv").read_text()
    (tmp_path / "out").rename("renamed")
    assert sorted(row["run"] for row in reported(Path("renamed"))) == ["runs/first", "runs/second"]
    assert "runs/first" in (tmp_path / "other" / "renamed" / "sweep.csv").read_text()


def test_a_run_has_one_row_and_keeps_its_attempts(tmp_path):
    task = a_done_run(Path("out"), "a")
    reported(Path("out"), task, attempts=3)
    again = dataclasses.replace(task, folder=tmp_path / task.folder)
    (row,) = reported(tmp_path / "out", again)
    assert row["attempts"] == 3
    (row,) = reported(tmp_path / "out", again, attempts=1)  # tried again by this call
    assert row["attempts"] == 1


def test_tables_with_paths_from_where_the_command_was_given_are_understood(tmp_path):
    """Also where such a table has a run twice, and a folder was renamed since."""
    a_done_run(Path("renamed"), "a")
    row = {"scene": "flower", "state": "done", "failure": None, "attempts": 1}
    old = [row | {"run": run} for run in ("outputs/out/runs/a", str(tmp_path / "outputs/out/runs/a"))]
    (tmp_path / "renamed" / "sweep.json").write_text(json.dumps(old))
    assert reported(Path("renamed")) == [row | {"run": "runs/a"}]


def test_an_edit_of_ones_own_capture_says_what_is_there(capture_folder):
    with pytest.raises(UserError, match='"a red flower" has to be "source -> target"'):
        planned(scenes=["flower", str(capture_folder)], edits=["a red flower"])


def test_a_file_has_the_lists_and_the_command_line_wins(tmp_path):
    (tmp_path / "many.yaml").write_text("edits: [a red flower, a blue flower]\nseeds: [4, 5]\n")
    assert len(planned("file=many.yaml")) == 4
    assert {t.seed for t in planned("file=many.yaml", seeds=[9])} == {9}


@pytest.mark.parametrize(
    "lists, told",
    [
        ({}, "edits is empty"),
        ({"edits": ["-> "]}, "target prompt"),
        ({"edits": ["-> a red flower"]}, "target prompt"),
        ({"edits": "a red flower"}, "list of texts"),
        ({"edits": [3]}, "list of texts"),
        ({"edits": ["a"], "seeds": [-1]}, "0 or more"),
        ({"edits": ["a"], "seeds": ["x"]}, "whole numbers"),
        ({"edits": ["a"], "seeds": [True]}, "whole numbers"),
        ({"edits": ["a"], "objectives": ["best"]}, "best is unknown"),
        ({"edits": ["a"], "options": ["edit.lr"]}, "edit.lr has to be an option"),
        ({"edits": ["a"], "options": ["where=the yellow flower"]}, "yellow has to be an option.*; put quotes around"),
        (
            {"edits": ["a"], "options": ["where='the yellow flower"]},
            "cannot be read .no closing quotation.: put",
        ),
        ({"edits": ["a"], "options": ["seed=3"]}, "seed=3 is for the sweep itself: give seeds="),
        (
            {"edits": ["a"], "options": ["video_frames=60"]},
            "video_frames=60 is for the sweep itself: give video_frames=",
        ),
        ({"edits": ["a"], "options": ["capture=x"]}, "capture=x has to be an option"),
        ({"edits": ["a"], "options": ["edit.speed=3"]}, "edit.speed"),
        ({"edits": ["a", "a"]}, "comes twice"),
        ({"edits": ["a"], "scenes": ["castle"]}, "castle"),
        ({"edits": ["a"], "options": ["field.iterations=60", ""]}, "trained with field.iterations=60, and with none"),
    ],
)
def test_what_cannot_be_swept_is_told(lists, told):
    with pytest.raises(UserError, match=told):
        planned(**lists)


@pytest.mark.parametrize(
    "text, told", [("[", "cannot be read"), ("- a", "no mapping"), ("prompts: [a]", "prompts is unknown")]
)
def test_what_is_no_plan_is_told(tmp_path, text, told):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        planned("file=x.yaml")
    with pytest.raises(UserError, match="none.yaml cannot be read"):
        planned("file=none.yaml")


# --- doing them


class FakeJob:
    """Ends at once, as `script` says for its folder: "done", "killed", or an error's text. Keeps who ran when."""

    script: dict = {}
    started: list = []
    most = 0
    now = 0

    def __init__(self, command, options, folder):
        FakeJob.started.append((folder.name, command, list(options)))
        FakeJob.now += 1
        FakeJob.most = max(FakeJob.most, FakeJob.now)
        self.folder, self.polls = folder, 0
        self.told = FakeJob.script.get(folder.name, ["done"]).pop(0)
        self.killed = self.told.startswith("killed")

    @property
    def running(self):
        self.polls += 1
        if self.polls == 3:
            FakeJob.now -= 1
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.told in ("done", "killed late"):
                (self.folder / "metrics.json").write_text("{}")
            else:
                (self.folder / "state").mkdir(exist_ok=True)
                (self.folder / "state" / "state.pt").touch()
        return self.polls < 3

    def outcome(self):
        return self.told


@pytest.fixture()
def fake(monkeypatch):
    FakeJob.script, FakeJob.started, FakeJob.most, FakeJob.now = {}, [], 0, 0
    monkeypatch.setattr(pool_module, "Job", FakeJob)
    return FakeJob


def pooled(works, jobs=2, retries=2):
    run_pool(works, jobs, retries, lambda work: None, poll=0)
    return [name for name, *_ in FakeJob.started]


def make(tmp_path, *names, after=None):
    return [Work("edit", ["x"], tmp_path / name, after and tmp_path / after) for name in names]


def test_as_many_at_a_time_as_asked_and_nothing_twice(fake, tmp_path):
    todo = make(tmp_path, *"abcdefg")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.json").write_text("{}")
    assert sorted(pooled(todo, jobs=3)) == list("abdefg") and fake.most == 3
    assert pooled(todo) == [name for name, *_ in fake.started] and len(fake.started) == 6


def test_edits_wait_for_their_source(fake, tmp_path):
    source = Work("train", [], tmp_path / "source")
    order = pooled([*make(tmp_path, "a", "b", after="source"), source], jobs=3)
    assert order[0] == "source" and fake.started[0][1] == "train"


def test_the_killed_are_tried_again_from_their_state(fake, tmp_path):
    fake.script = {"a": ["killed", "the disk is full: make room", "done"]}
    todo = make(tmp_path, "a", "b")
    assert pooled(todo).count("a") == 3 and todo[0].failure is None
    options = [options for name, _, options in fake.started if name == "a"]
    assert options == [["x"], ["x", "resume=true"], ["x", "resume=true"]]


@pytest.mark.parametrize(
    "told",
    [
        "out of memory: lower edit.width",
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Unable to allocate 2.00 GiB for an array with shape (9, 9) and data type float32",
        "MemoryError",
    ],
)
def test_what_ran_out_of_memory_is_tried_again(fake, tmp_path, told):
    fake.script = {"a": [told, "done"]}
    (work,) = make(tmp_path, "a")
    assert pooled([work]) == ["a", "a"] and work.done and work.failure is None


def test_one_that_another_process_works_on_is_waited_for(fake, tmp_path):
    """A killed sweep leaves its edits running; the next one does not count that as their failures."""
    fake.script = {"a": ["runs/a is in use by another process (7): wait"] * 5 + ["killed", "done"]}
    (todo,) = make(tmp_path, "a")
    assert pooled([todo], retries=1).count("a") == 7 and todo.failure is None


def test_a_folder_without_a_state_is_not_overwritten(fake, tmp_path):
    """Who works in it may have finished before the edit that starts now looks at it."""
    (tmp_path / "a").mkdir()
    pooled(make(tmp_path, "a"))
    assert fake.started[0][2] == ["x", "resume=true"]


def test_no_edit_is_left_behind_when_the_sweep_itself_fails(fake, tmp_path):
    ended, todo = [], make(tmp_path, "a", "b")

    def full():
        raise OSError(28, "No space left on device")

    FakeJob.stop, FakeJob.close = lambda job: ended.append(("stop", job)), lambda job: ended.append(("close", job))
    try:
        with pytest.raises(OSError, match="No space"):
            run_pool(todo, 2, 2, lambda work: None, poll=0, tick=full)
    finally:
        del FakeJob.stop, FakeJob.close
    assert [what for what, _ in ended] == ["stop", "stop", "close", "close"]


def test_one_that_is_killed_after_its_end_is_done(fake, tmp_path):
    fake.script = {"a": ["killed late"]}
    todo = make(tmp_path, "a")
    assert pooled(todo) == ["a"] and todo[0].done and todo[0].failure is None


def test_what_fails_for_a_reason_of_its_own_does_not_stop_the_rest(fake, tmp_path):
    fake.script = {"a": ["--src is missing"], "b": ["killed"] * 3}
    todo = make(tmp_path, "a", "b", "c")
    assert pooled(todo, retries=2).count("b") == 3
    assert todo[0].failure == "--src is missing" and todo[1].failure == "killed" and todo[2].done


def test_without_a_source_its_edits_fail_and_others_go_on(fake, tmp_path):
    fake.script = {"source": ["no such folder"]}
    source = Work("train", [], tmp_path / "source")
    todo = [source, *make(tmp_path, "a", after="source"), *make(tmp_path, "b")]
    assert sorted(pooled(todo)) == ["b", "source"]
    assert "source could not be trained: no such folder" in todo[1].failure and todo[2].done


def test_each_scene_is_trained_once():
    tasks = planned(scenes=["flower", "mug"], edits=["a red flower"], seeds=[0, 1], options=["field.iterations=9"])
    todo = works(tasks, ["threads=1"], ["threads=1", "video_frames=0"])
    assert [w.command for w in todo] == ["train"] * 2 + ["edit"] * 4
    assert todo[0].flags == ["scene=flower", "field.iterations=9", "threads=1", "video_frames=0"]
    assert todo[2].after == todo[0].folder and f"output={tasks[0].folder}" in todo[2].flags


def test_a_source_is_trained_only_for_edits_that_are_not_done():
    tasks = planned(scenes=["flower", "mug"], edits=["a red flower", "a blue flower"])
    for task in tasks[:3]:
        task.folder.mkdir(parents=True)
        (task.folder / "metrics.json").write_text("{}")
    todo = works(tasks, [], [])
    assert [w.folder for w in todo if w.command == "train"] == [Path("outputs/mug/source")]
    assert [w.folder for w in todo if w.command == "edit"] == [task.folder for task in tasks]


@pytest.mark.parametrize(
    "option, name", [("video_frames=6", "video_frames"), ("seed=3", "seeds"), ("threads=2", "threads_each")]
)
def test_options_of_the_sweep_itself_are_named(option, name):
    with pytest.raises(UserError, match=f"{option} is for the sweep itself: give {name}= beside options="):
        planned(edits=["a red flower"], options=[f"edit.lr=1 {option}"])


# --- what is told of them


def test_the_table_tells_settings_states_and_figures(tmp_path):
    tasks = [
        Task("flower", None, f"<b>{name}</b>", "cds", ("edit.lr=1",), 0, (), (), tmp_path / "runs" / name, tmp_path)
        for name in "abc"
    ]
    todo = [Work("edit", [], task.folder) for task in tasks]
    tasks[0].folder.mkdir(parents=True)
    (tasks[0].folder / "metrics.json").write_text('{"edit_gain_db": 3.5, "other": 1}')
    (tasks[0].folder / "comparison.mp4").touch()
    todo[1].failure = "bad <input>"
    table = rows(tasks, todo)
    assert [row["state"] for row in table] == ["done", "failed", "waiting"]
    write_report(tmp_path, table)
    assert json.loads((tmp_path / "sweep.json").read_text())[0]["edit_gain_db"] == 3.5
    with (tmp_path / "sweep.csv").open() as file:
        found = list(csv.DictReader(file))
    assert found[0]["edit_gain_db"] == "3.5" and found[1]["failure"] == "bad <input>" and found[2]["edit_gain_db"] == ""
    page = (tmp_path / "index.html").read_text()
    assert 'src="runs/a/comparison.mp4"' in page and "&lt;b&gt;a&lt;/b&gt;" in page and "<b>" not in page
    assert "bad &lt;input&gt;" in page and "3.50" in page and "HEAD" not in page and "BODY" not in page


def test_pictures_of_runs_with_odd_names_are_found(tmp_path):
    run = tmp_path / "runs" / 'Plant #2 "50%" video.mp4'
    run.mkdir(parents=True)
    (run / "comparison.mp4").touch()
    (run / "metrics.json").write_text("{}")
    task = Task("plant", None, "a", "cds", (), 0, (), (), run, tmp_path)
    write_report(tmp_path, rows([task], [Work("edit", [], run)]))
    place = "runs/Plant%20%232%20%2250%25%22%20video.mp4/"
    page = (tmp_path / "index.html").read_text()
    assert f'src="{place}comparison.mp4"' in page and f'poster="{place}' in page


# --- from end to end


def sweep(capture_folder, tiny_folder, *more):
    tiny = [
        *TINY_SCENE[:1],
        *TINY_FIELD,
        f"guidance.path={tiny_folder}",
        "edit.iterations=6",
        "edit.width=48",
        "save_every=1",
    ]
    edits = '["a yellow flower -> a red flower","a yellow flower -> a blue flower"]'
    return ["sweep", f"edits={edits}", f'options=["{" ".join(tiny)}"]', f"scenes=[{capture_folder}]", *more]


def test_a_sweep_survives_kills_and_does_nothing_twice(capture_folder, tiny_folder, tmp_path, monkeypatch, caplog):
    """Processes are killed at random moments; all edits are there in the end, each once."""
    jobs, done = [], threading.Event()
    real = pool_module.Job

    def recorded(*args):
        jobs.append(real(*args))
        return jobs[-1]

    def kill():
        chance = random.Random(0)
        for _ in range(3):
            if done.wait(chance.uniform(3, 6)):
                return
            for job in [j for j in jobs if j.running]:
                job.process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(pool_module, "Job", recorded)
    killer = threading.Thread(target=kill)
    killer.start()
    command = sweep(capture_folder, tiny_folder, "jobs=2", "retries=9")
    assert main(command) == 0
    done.set()
    killer.join()
    table = json.loads((tmp_path / "outputs" / "sweep" / "sweep.json").read_text())
    assert [row["state"] for row in table] == ["done", "done"]
    runs = [tmp_path / "outputs" / "sweep" / row["run"] for row in table]
    assert all(json.loads((run / "metrics.json").read_text())["iterations"] == 6 for run in runs)
    times = [os.stat(run / "metrics.json").st_mtime_ns for run in runs]
    count = len(jobs)
    assert main(command) == 0  # all is done
    assert len(jobs) == count and times == [os.stat(run / "metrics.json").st_mtime_ns for run in runs]
    assert "trained again" not in caplog.text
    (tmp_path / "outputs/daisies/source/field.safetensors").write_bytes(b"another")
    assert main(command) == 0
    told = "outputs/daisies/source has been trained again since 2 of the edits that are done, the first is "
    assert told in caplog.text and table_in(tmp_path / "outputs" / "sweep") == table
    shutil.rmtree(tmp_path / "outputs" / "daisies")
    assert main(command) == 0  # no edit needs the source
    assert len(jobs) == count and "could not be told" not in caplog.text
    assert table_in(tmp_path / "outputs" / "sweep") == table


def test_each_source_that_was_trained_again_is_told_of_its_own_edits(tmp_path, caplog):
    tasks = []
    for scene, count in (("a", 1), ("b", 2)):
        source = tmp_path / scene / "source"
        source.mkdir(parents=True)
        (source / "field.safetensors").write_bytes(b"now")
        for k in range(count):
            folder = tmp_path / scene / f"edit-{k}"
            (folder / "state").mkdir(parents=True)
            (folder / "state" / "source.txt").write_text("before")
            tasks.append(SimpleNamespace(source=source, folder=folder))
    _tell_replaced(tasks)
    assert "a/source has been trained again since 1 of" in caplog.text
    assert "b/source has been trained again since 2 of" in caplog.text


def test_failures_are_listed_in_the_end(capture_folder, tiny_folder, tmp_path, capsys):
    """In the folder of a sweep that was killed at its first file, which has to go on too."""
    output = tmp_path / "outputs" / "sweep"
    output.mkdir(parents=True)
    for name in (".lock", ".sweep.part.json"):
        (output / name).touch()
    command = sweep(capture_folder, tiny_folder / "nowhere", "jobs=1")
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 2 of 3 runs failed") and "nowhere" in error
    table = json.loads((output / "sweep.json").read_text())
    assert all(row["state"] == "failed" and "nowhere" in row["failure"] for row in table)


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    assert main(["sweep", 'edits=["a red flower"]', "output=mine"]) == 1
    assert "no sweep's folder" in capsys.readouterr().err and [p.name for p in (tmp_path / "mine").iterdir()] == ["x"]


def test_edits_that_ask_for_another_source_are_told_before_any_begins(
    capture_folder, tiny_folder, source_run, tmp_path, monkeypatch, capsys
):
    shutil.copytree(source_run, tmp_path / "outputs" / "daisies" / "source")
    monkeypatch.setattr(pool_module, "Job", lambda *_: pytest.fail("a process was started"))
    command = sweep(capture_folder, tiny_folder)
    wider = [word.replace(TINY_SCENE[0], "scene.width=72") for word in command]
    assert wider != command and main(wider) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "was trained with scene.width=64, not 72" in error
