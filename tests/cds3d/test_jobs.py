"""Commands in processes of their own: how they are stopped, and what is told of them."""

import os
import signal
import time

import pytest

from cds3d.jobs import usable_cores


def ended(job):
    job.process.wait(20)
    return job.outcome()


def test_a_job_is_interrupted_once(python, tmp_path):
    """A second interrupt would end an edit before its state is kept."""
    code = f"""if True:
        import signal, time
        got = []
        signal.signal(signal.SIGINT, lambda *ignored: got.append(1))
        open({str(tmp_path / "ready")!r}, "w").close()
        while not got:
            time.sleep(0.01)
        time.sleep(0.5)
        open({str(tmp_path / "count")!r}, "w").write(str(len(got)))
    """
    job = python(code, tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    job.stop()
    time.sleep(0.1)
    job.stop()
    job.close()
    assert (tmp_path / "count").read_text() == "1"


def test_what_an_earlier_run_left_is_not_this_jobs(python, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "progress.json").write_text('{"iteration": 5}')
    (tmp_path / "state" / "state.pt").touch()
    (tmp_path / "metrics.json").write_text("{}")  # finished: there is nothing to go on with
    job = python("import sys; sys.exit('error: stopped')", tmp_path)
    job.stop()
    job.process.wait(20)
    assert job.progress() == {} and not job.resumable
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "state" / "progress.json").write_text('{"iteration": 6}')
    assert job.progress() == {"iteration": 6} and job.resumable


def test_the_outcome_of_a_job_is_one_line(python):
    assert ended(python("pass")) == "done"
    assert ended(python("import sys; sys.exit('error: the disk is full')")) == "the disk is full"
    assert "exit code 3" in ended(python("raise SystemExit(3)"))
    assert "ValueError: seven" in ended(python("raise ValueError('seven')"))


def test_a_stopped_job_keeps_its_state_and_a_killed_one_is_told(python, tmp_path):
    code = "import signal, time, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); {}time.sleep(30)"
    job = python(code.format("print('ready', file=sys.stderr, flush=True); "), tmp_path)
    while "ready" not in job.lines:
        time.sleep(0.05)
    job.close()
    assert job.process.returncode == 130 and job.outcome() == "stopped" and not job.resumable and not job.killed
    (job.folder / "state").mkdir()
    (job.folder / "state" / "state.pt").touch()
    assert job.resumable
    job = python("import time; time.sleep(30)", job.folder)
    job.process.send_signal(signal.SIGKILL)
    assert "SIGKILL" in ended(job) and job.resumable
    job = python("raise SystemExit(130)", job.folder)  # kill, or a machine that runs out of memory, asked it to end
    assert ended(job) == "stopped" and job.resumable and job.killed
    job = python("import sys; sys.exit('error: no')", job.folder)
    assert ended(job) == "no" and not job.resumable
    job = python("pass", job.folder)
    assert ended(job) == "done" and not job.resumable


def test_progress_is_what_the_run_reports(python, tmp_path):
    job = python("pass", tmp_path)
    assert job.progress() == {}
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "progress.json").write_text('{"iteration": 3')  # in the middle of being written
    assert job.progress() == {}
    (tmp_path / "state" / "progress.json").write_text('{"iteration": 3}')
    assert job.progress() == {"iteration": 3}
    ended(job)


@pytest.mark.parametrize(("told", "cores"), [("echo 4", 4), ("exit 1", 12), ("echo no such key", 12)])
def test_on_a_mac_the_fast_cores_count(tmp_path, monkeypatch, told, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    (tmp_path / "sysctl").write_text(f'#!/bin/sh\n[ "$*" = "-n hw.perflevel0.physicalcpu" ] || exit 1\n{told}\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert usable_cores() == cores
