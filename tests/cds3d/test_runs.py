"""The run folder: what is refused, what is kept, and that nothing is ever half written."""

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cds3d import runs
from cds3d.runs import RunFolder, read_config
from cds3d.slugs import slug
from tensorf.errors import UserError
from tensorf.files import write_text


def options(**changes):
    base = {
        "scene": {"name": "flower"},
        "edit": {"lr": 0.01, "kind": "a"},
        "device": "cpu",
        "threads": None,
        "output": None,
    }
    return OmegaConf.create({**base, "resume": False, "overwrite": False, **changes})


def begun(path, **changes):
    run = RunFolder(path, options(**changes))
    run.begin()
    return run


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red flower!", "a-red-flower"),
        ("  two -- words ", "two-words"),
        ("../../etc", "etc"),
        ("!?", "edit"),
        ("花", "花"),
        ("Красный_цветок", "красный-цветок"),
        ("नीला फूल", "नीला-फूल"),
        ("e\u0301tude", "étude"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


def test_long_prompts_have_short_and_different_names():
    names = [slug(text) for text in ("x" * 300, "x" * 301, "花" * 100, "花" * 101)]
    assert len({*names}) == 4 and max(len(name.encode()) for name in names) <= 80
    assert names[0].startswith("x" * 71) and names[2].startswith("花" * 20)


def test_nothing_is_written_before_begin(tmp_path):
    run = RunFolder(tmp_path / "run", options())
    assert not (tmp_path / "run").exists()
    run.begin()
    assert files(tmp_path / "run") == ["config.yaml"]
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == options()


def test_what_is_done_before_the_first_iteration_counts_by_itself(tmp_path, monkeypatch):
    now, peak = [100.0], [5000.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runs, "peak_memory_mb", lambda device=None: peak[0])
    run = RunFolder(tmp_path / "run", options())
    now[0] += 30.0
    run.begin()
    now[0], peak[0] = now[0] + 7.0, 200.0  # as `reset_peak_memory` makes it
    run.finish({})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["preparation_seconds"], metrics["seconds"], metrics["peak_memory_mb"]) == (30.0, 7.0, 5000.0)


def test_a_finished_run_of_another_model_is_told_by_the_models_name(tmp_path):
    begun(tmp_path / "run", guidance={"center": True, "name": "pocket", "scale": 4.0}).finish({})
    with pytest.raises(UserError, match="finished run with guidance.name=pocket, not sd15"):
        RunFolder(tmp_path / "run", options(guidance={"center": False, "name": "sd15", "scale": 7.5}))


def test_metrics_are_rounded_and_come_with_what_every_run_reports(tmp_path):
    run = begun(tmp_path / "run")
    run.finish({"psnr_db": 20.123456, "iterations": 7, "device_note": "x"})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["psnr_db"] == 20.1235 and metrics["iterations"] == 7 and metrics["device"] == "cpu"
    assert {"seconds", "preparation_seconds", "peak_memory_mb", "device", "threads"} <= metrics.keys()
    assert metrics["peak_memory_mb"] > 10  # megabytes: this process holds torch
    assert all(not isinstance(v, (dict, list)) for v in metrics.values())  # flat


def test_finished_run_is_refused(tmp_path):
    begun(tmp_path / "run").finish({})
    for resume in (False, True):
        with pytest.raises(UserError, match="finished run.*overwrite=true"):
            RunFolder(tmp_path / "run", options(resume=resume))


def test_overwrite_deletes_a_run_but_not_before_begin(tmp_path):
    begun(tmp_path / "run").finish({})
    (tmp_path / "run" / "field.safetensors").write_text("old")
    run = RunFolder(tmp_path / "run", options(overwrite=True))
    assert (tmp_path / "run" / "metrics.json").exists()
    run.begin()
    assert files(tmp_path / "run") == ["config.yaml"]
    assert run.load_state() is None


def test_unfinished_run_needs_resume_or_overwrite(tmp_path):
    begun(tmp_path / "run").save_state({"iteration": 3})
    with pytest.raises(UserError, match="unfinished run: pass resume=true"):
        RunFolder(tmp_path / "run", options())
    run = RunFolder(tmp_path / "run", options(resume=True))
    run.begin()
    assert run.load_state() == {"iteration": 3}
    fresh = RunFolder(tmp_path / "run", options(overwrite=True))
    fresh.begin()
    assert fresh.load_state() is None


def test_a_run_begun_with_other_weights_is_refused_and_kept(tmp_path):
    path = tmp_path / "run"
    run = RunFolder(path, options(guidance={"path": "pocket"}))
    run.begin("float32:aa")
    run.save_state({"iteration": 3})
    before = {name: (path / name).read_bytes() for name in files(path)}
    again = RunFolder(path, options(guidance={"path": "pocket"}, resume=True, threads=7))
    with pytest.raises(UserError, match=r"other weights of guidance\.path=pocket.*overwrite=true"):
        again.begin("float32:bb")
    assert {name: (path / name).read_bytes() for name in files(path)} == before
    for prior in ("float32:aa", "bfloat16:cc", None, "float32:aa"):  # another dtype's cannot be compared
        RunFolder(path, options(guidance={"path": "pocket"}, resume=True)).begin(prior)
        assert (path / "state" / "prior.txt").read_text() == "float32:aa\n"  # what the run was begun with
    with pytest.raises(UserError, match="other weights"):
        RunFolder(path, options(guidance={"path": "pocket"}, resume=True)).begin("float32:cc")
    RunFolder(path, options(guidance={"path": "pocket"}, overwrite=True)).begin("float32:bb")
    assert (path / "state" / "prior.txt").read_text() == "float32:bb\n"


def test_a_run_of_a_version_that_kept_no_weights_is_resumed(tmp_path):
    begun(tmp_path / "run").save_state({"iteration": 3})
    RunFolder(tmp_path / "run", options(resume=True)).begin("float32:aa")
    assert (tmp_path / "run" / "state" / "prior.txt").read_text() == "float32:aa\n"


def test_a_run_that_stopped_before_its_first_state_just_starts(tmp_path):
    begun(tmp_path / "run")
    run = begun(tmp_path / "run")
    assert run.load_state() is None
    assert begun(tmp_path / "run", resume=True).load_state() is None


def test_resume_with_other_options_names_the_key(tmp_path):
    begun(tmp_path / "run").save_state({})
    with pytest.raises(UserError, match=r"begun with edit\.kind=a, not b"):
        RunFolder(tmp_path / "run", options(resume=True, edit={"lr": 0.01, "kind": "b"}))
    RunFolder(tmp_path / "run", options(resume=True, edit={"lr": 0.5, "kind": "a"}))  # rates may be lowered
    with pytest.raises(UserError, match=r"edit\.extra"):
        RunFolder(tmp_path / "run", options(resume=True, edit={"lr": 0.01, "kind": "a", "extra": 1}))
    RunFolder(tmp_path / "run", options(resume=True, threads=2, output=str(tmp_path / "run")))  # these are free


@pytest.mark.parametrize(
    "key",
    ["edit.lr", "field.lr_grid", "field.lr_network", "guidance.scale", "guidance.dtype"]
    + ["guidance.pds_scale", "objective.scale", "objective.weight", "baseline.scale"],
)
def test_resume_may_change_what_the_message_of_a_gradient_that_is_not_finite_asks_for(tmp_path, key):
    group, name = key.split(".")
    begun(tmp_path / "run", **{group: {name: 1.0}}).save_state({"iteration": 2})
    run = begun(tmp_path / "run", resume=True, **{group: {name: 0.5}})
    run.load_state()
    run.finish({})
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["changed_on_resume"]
    assert told == [{"iteration": 2, key: [1.0, 0.5]}]


def changed(path, **edit) -> list:
    """What metrics.json tells of a run whose state of iteration 5 is resumed with these rates, each from the last."""
    begun(path, edit={"lr": 0.01}).save_state({"iteration": 5})
    for iteration, lr in enumerate(edit["lrs"], start=6):
        run = begun(path, resume=True, edit={"lr": lr})
        assert run.load_state() == {"iteration": iteration - 1}  # what the run itself saved, and no more
        run.save_state({"iteration": iteration})
    run.finish({})
    return json.loads((path / "metrics.json").read_text()).get("changed_on_resume")


def test_settings_that_a_resume_changes_are_told_with_their_iterations(tmp_path):
    assert changed(tmp_path / "same", lrs=[0.01, 0.01]) is None
    assert changed(tmp_path / "twice", lrs=[0.01, 0.005, 0.005, 0.002]) == [
        {"iteration": 6, "edit.lr": [0.01, 0.005]},
        {"iteration": 8, "edit.lr": [0.005, 0.002]},
    ]


def test_change_before_a_state_that_was_never_written_is_told_once(tmp_path):
    path = tmp_path / "run"
    begun(path, edit={"lr": 0.01}).save_state({"iteration": 5})
    for _ in range(2):  # config.yaml has the new rate after the first of them, the state does not
        run = begun(path, resume=True, edit={"lr": 0.002})
        run.load_state()
    run.finish({})
    told = json.loads((path / "metrics.json").read_text())["changed_on_resume"]
    assert told == [{"iteration": 5, "edit.lr": [0.01, 0.002]}]


def test_where_results_are_written_is_no_change_of_settings(tmp_path):
    begun(tmp_path / "run", video_frames=8).save_state({"iteration": 5})
    run = begun(tmp_path / "run", resume=True, video_frames=4)
    run.load_state()
    run.finish({})
    assert "changed_on_resume" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_runs_of_before_images_had_an_end_of_their_guidance_go_on(tmp_path):
    begun(tmp_path / "run", guidance={"scale": 5.0}).save_state({"iteration": 2})
    assert RunFolder(tmp_path / "run", options(resume=True, guidance={"scale": 5.0, "image_scale_end": 1.0})).resumed


def test_runs_of_before_exposures_were_learnt_go_on(tmp_path):
    begun(tmp_path / "run", field={"batch": 8, "by_space": {"box": {"l1": 0.0}}}).save_state({})
    new = {"view_noise": None, "exposure": None, "lr_exposure": 0.003}
    field = {"batch": 8, "by_space": {"box": {"l1": 0.0, "view_noise": 0.15}}, **new}
    assert RunFolder(tmp_path / "run", options(resume=True, field=field)).resumed
    begun(tmp_path / "new", field=field).save_state({})
    with pytest.raises(UserError, match="field.exposure=None, not 0.1"):
        RunFolder(tmp_path / "new", options(resume=True, field={**field, "exposure": 0.1}))
    with pytest.raises(UserError, match="field.other=None, not 1"):
        RunFolder(tmp_path / "run", options(resume=True, field={**field, "other": 1}))


def test_runs_of_before_edits_could_be_exact_go_on(tmp_path):
    begun(tmp_path / "run", edit={"iterations": 8}).save_state({"iteration": 2})
    assert RunFolder(tmp_path / "run", options(resume=True, edit={"iterations": 8, "exact": True})).resumed


def test_seconds_go_on_after_a_resume(tmp_path):
    run = begun(tmp_path / "run")
    run.seconds_before = 1000.0
    run.save_state({"iteration": 1})
    again = begun(tmp_path / "run", resume=True)
    again.load_state()
    assert 1000 <= again.seconds < 1100


def test_a_clock_that_is_set_back_takes_no_seconds_away(tmp_path, monkeypatch):
    run = begun(tmp_path / "run")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    run.report(1, 1, {})
    run.finish({})
    for name in ("metrics.json", "state/progress.json"):
        assert 0 <= json.loads((tmp_path / "run" / name).read_text())["seconds"] < 60


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_process_did_between_the_look_and_the_lock_is_seen(tmp_path, overwrite):
    late = RunFolder(tmp_path / "run", options(overwrite=overwrite))
    begun(tmp_path / "run").finish({"psnr_db": 20})
    if overwrite:
        late.begin()
        return
    with pytest.raises(UserError, match="finished run"):
        late.begin()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["psnr_db"] == 20


def test_a_state_that_appeared_meanwhile_is_gone_on_from(tmp_path):
    late = RunFolder(tmp_path / "run", options(resume=True))
    begun(tmp_path / "run").save_state({"iteration": 7})
    late.begin()
    assert late.load_state() == {"iteration": 7}


def test_a_run_that_was_killed_at_its_first_file_just_starts(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.part.yaml"):
        (tmp_path / "run" / name).touch()
    begun(tmp_path / "run")
    assert files(tmp_path / "run") == ["config.yaml"]


def test_an_overwritten_run_is_unfinished_before_anything_else_of_it_goes(tmp_path, monkeypatch):
    """Killed at any deletion, it is neither taken for a finished run nor for somebody else's folder."""
    begun(tmp_path / "run").finish({})
    for name in ("field.safetensors", "video.mp4"):
        (tmp_path / "run" / name).touch()
    seen = []

    def looking(self, *args, **kwargs):
        seen.append(files(tmp_path / "run"))
        return unlink(self, *args, **kwargs)

    unlink = Path.unlink

    def written(path, text):
        seen.append(files(tmp_path / "run"))
        write_text(path, text)

    monkeypatch.setattr(Path, "unlink", looking)
    monkeypatch.setattr("cds3d.runs.write_text", written)
    begun(tmp_path / "run", overwrite=True)
    assert "metrics.json" in seen[0] and not any("metrics.json" in there for there in seen[1:])
    assert all("config.yaml" in there for there in seen) and files(tmp_path / "run") == ["config.yaml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_no_run_folder_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path, options(overwrite=overwrite))
    assert files(tmp_path) == ["thesis.tex"]


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "run", options())


@pytest.mark.parametrize("key", ["resume", "overwrite"])
def test_no_is_not_taken_for_true(tmp_path, key):
    begun(tmp_path / "run").finish({})
    with pytest.raises(UserError, match=f"{key}=no has to be true or false"):
        RunFolder(tmp_path / "run", options(**{key: "no"}))
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 torn", b"\x80\x02junk"])
def test_damaged_state(tmp_path, content):
    run = begun(tmp_path / "run")
    run.save_state({})
    run.state_path.write_bytes(content)
    again = RunFolder(tmp_path / "run", options(resume=True))
    with pytest.raises(UserError, match=r"state\.pt is damaged.*overwrite=true") as caught:
        again.load_state()
    assert "\n" not in str(caught.value)


class Calls:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_state_that_would_run_code_does_not(tmp_path):
    run = begun(tmp_path / "run")
    torch.save({"seconds": 1.0, "iteration": Calls(tmp_path / "made")}, run.state_path)
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        begun(tmp_path / "run", resume=True).load_state()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    ["a: [1, 2", "- 1\n- 2\n", "training: {lr: 1}\n", "\x00", "scene: 3", "scene: {}\nedit: 7"]
    + ["scene: {a: '${nobody}'}", "scene: {a: '???'}"],
)
def test_damaged_or_foreign_config(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="config.yaml") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_options_of_scenes_that_older_versions_did_not_write_have_their_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("scene: {name: flower, width: 32}\n")
    config = read_config(tmp_path)
    assert config.capture is None and config.scene.test_every == 8 and config.scene.width == 32


def test_missing_config(tmp_path):
    (tmp_path / "scene" / "a-run").mkdir(parents=True)
    for name in ("config.yaml", "metrics.json"):
        (tmp_path / "scene" / "a-run" / name).write_text("scene: {}")
    with pytest.raises(UserError, match="scene is no run folder, but holds some: .*a-run"):
        read_config(tmp_path / "scene")
    with pytest.raises(UserError, match="no run folder"):
        read_config(tmp_path)


# --- atomic writes


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failed_text_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError):
        write_text(tmp_path / "a.txt", "new")
    assert files(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("PytorchStreamWriter failed writing")])
def test_failed_state_leaves_the_old_one_and_no_part(tmp_path, monkeypatch, error):
    run = begun(tmp_path / "run")
    run.save_state({"iteration": 1})

    def torn(state, path):
        path.write_bytes(b"half a zip")
        raise error

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError) as caught:
        run.save_state({"iteration": 2})
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path / "run") == ["config.yaml", "state/state.pt"]
    assert torch.load(run.state_path, weights_only=True)["iteration"] == 1


def test_failed_metrics_leave_the_run_unfinished(tmp_path, monkeypatch):
    run = begun(tmp_path / "run")
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError):
        run.finish({"psnr_db": 1.0})
    assert files(tmp_path / "run") == ["config.yaml"]


def test_metrics_are_json(tmp_path):
    begun(tmp_path / "run").finish({"psnr_db": 1.0})
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["psnr_db"] == 1


def test_what_json_cannot_hold_is_left_out(tmp_path):
    begun(tmp_path / "run").finish({"psnr_db": math.inf, "ssim": math.nan, "iterations": 3})
    text = (tmp_path / "run" / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert metrics["iterations"] == 3 and not {"psnr_db", "ssim"} & metrics.keys()


def test_steps_that_a_crash_undid_are_shown_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = begun(tmp_path / "run")
    for steps in ([1, 2, 3, 4, 5], [4, 5, 6]):  # the state was of step 3
        writer = run.logger(steps[0] - 1)
        for step in steps:
            writer.add_scalar("t", step, step)
        writer.close()
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("t")] == [1, 2, 3, 4, 5, 6]


def test_a_path_may_be_spelled_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan").mkdir()
    begun(tmp_path / "run", capture="scan").save_state({"iteration": 2})
    for spelling in ("scan/", "./scan", str(tmp_path / "scan"), f"{tmp_path}/run/../scan"):
        assert begun(tmp_path / "run", capture=spelling, resume=True).resumed
    with pytest.raises(UserError, match="was begun with capture="):
        RunFolder(tmp_path / "run", options(capture="other", resume=True))


def test_a_finished_edit_takes_its_own_number_again(tmp_path):
    """After a longer one was asked for by mistake, and stopped."""
    run = begun(tmp_path / "run", edit={"iterations": 4})
    run.save_state({"iteration": 4})
    run.finish({})
    begun(tmp_path / "run", edit={"iterations": 400}, resume=True)
    run = begun(tmp_path / "run", edit={"iterations": 4}, resume=True)
    assert run.resumed and run.load_state()["iteration"] == 4
    with pytest.raises(UserError, match=r"was begun with edit\.iterations=4, not 3"):
        RunFolder(tmp_path / "run", options(edit={"iterations": 3}, resume=True))


def test_more_iterations_are_offered_only_where_they_would_be_accepted(tmp_path):
    run = begun(tmp_path / "run", edit={"iterations": 4}, at="0.3,0.4,5")
    run.save_state({"iteration": 4})
    run.finish({})
    with pytest.raises(UserError, match="resume=true with more edit.iterations goes on"):
        RunFolder(tmp_path / "run", options(edit={"iterations": 4}, at="0.3,0.4,5"))
    with pytest.raises(UserError, match="holds a finished run") as told:
        RunFolder(tmp_path / "run", options(edit={"iterations": 4}, at="0.6,0.4,5"))
    assert "resume=true" not in str(told.value)


def test_a_resume_of_nothing_is_told(tmp_path, caplog):
    caplog.set_level("INFO", "cds3d")
    begun(tmp_path / "run", resume=True)
    assert "has no state to go on from: it begins anew" in caplog.text
