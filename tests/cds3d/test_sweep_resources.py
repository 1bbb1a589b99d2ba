"""What a sweep takes of a machine: how much runs at a time, processes for calls, the table's time, ports."""

import gc
import os
import socket
import subprocess
import sys
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import TINY_FIELD
from judges import save_clip

from cds3d.cli import main
from cds3d.guidance import Prior, load_prior, loading
from cds3d.metrics.clip import Clip
from cds3d.options import load_config
from cds3d.sweep import memory
from cds3d.sweep.calls import Calling, Here, Kept, callers
from cds3d.sweep.cluster import Cluster, open_to_others, resources
from cds3d.sweep.memory import Forecast, default_jobs, questions
from cds3d.sweep.plan import plan
from cds3d.sweep.pool import run_pool
from cds3d.sweep.ports import is_loopback, open_ports
from cds3d.sweep.report import Reporter
from tensorf import locks
from tensorf.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- how much at a time


def test_shares_of_a_node_by_hand():
    assert resources(2, 1000.0, None, 9000) == {"num_cpus": 2, "memory": 1000 * 2**20}
    assert resources(2, 1000.0, None, 500) == {"num_cpus": 2, "memory": 500 * 2**20}  # else Ray waits for ever
    assert resources(1, 1000.0, 4096, 9000) == {"num_cpus": 1, "num_gpus": 0.25}  # 24.4 %: rounded up
    assert resources(1, 5000.0, 4096, 9000) == {"num_cpus": 1, "num_gpus": 1.0}


def test_memory_is_asked_once_for_edits_that_differ_in_prompts_and_seeds(tmp_path):
    config = load_config("sweep", ["seeds=[0,1]", "objectives=[cds,dds]"])
    config.edits, config.options = ["a red flower", "a blue flower"], ["", "edit.width=128"]
    asked = questions(plan(config, tmp_path), ["device=cpu"])
    assert len(asked) == 4 and all(flags[-1] == "device=cpu" for flags in asked)


def test_as_many_edits_as_memory_and_cores_allow(tmp_path, monkeypatch):
    asked = [Forecast(1000, 3500)]

    class Other:
        def __init__(self, *args, **kwargs): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def submit(self, function, *args):
            return self

        def result(self):
            if isinstance(asked[0], Exception):
                raise asked[0]
            return asked[0]

    monkeypatch.setattr(memory, "ProcessPoolExecutor", Other)
    monkeypatch.setattr(memory, "usable_cores", lambda: 16)
    tasks = plan(load_config("sweep", ["edits=[a red flower]"]), tmp_path)
    assert default_jobs(tasks, [], 1) == 3
    assert default_jobs(tasks, [], 8) == 2
    asked[0] = Forecast(9000, 3500)
    assert default_jobs(tasks, [], 1) == 1
    asked[0] = UserError("no such model")  # the edits will tell
    assert default_jobs(tasks, [], 4) == 4


def test_without_proc_half_of_the_memory_counts_as_free(monkeypatch):
    def unreadable(path, *args, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**14}.__getitem__)  # 16 GB
    assert memory.free_mb(torch.device("cpu")) == 8192


def test_no_forecast_without_edits(monkeypatch, caplog):
    monkeypatch.setattr(memory, "ProcessPoolExecutor", None)  # no process is started
    monkeypatch.setattr(memory, "usable_cores", lambda: 6)
    assert default_jobs([], [], 2) == 3 and not caplog.records


def test_the_forecast_of_another_prior_and_a_larger_view(tiny_folder, monkeypatch):
    monkeypatch.setattr(memory, "memory_mb", lambda device: 100.0)  # what this process happens to have

    def edit_mb(*options):
        flags = ["--tgt=a red flower", "device=cpu", "scene.width=252", *TINY_FIELD, *options]
        wrong = [*flags, "guidance.dtype=fp16"]  # which needs a GPU
        return memory.forecast([wrong, flags]).edit_mb

    with pytest.raises(UserError, match="fp16 needs a GPU"):
        edit_mb("guidance.dtype=fp16")
    tiny, pocket = edit_mb(f"guidance.path={tiny_folder}"), edit_mb()
    assert abs(pocket - tiny) > 1  # by chance they need about as much
    assert pocket > edit_mb("edit.width=128") + 100 and edit_mb("edit=shape") > pocket + 200


def test_on_a_gpu_the_forecast_counts_what_a_process_takes_beside_its_tensors(monkeypatch):
    """Else the last of many small edits finds no room for CUDA's context."""
    monkeypatch.setattr(memory, "_edit_mb", lambda flags, loaded: 500.0)
    monkeypatch.setattr(memory, "free_mb", lambda device: 8192.0)
    told = {}
    for name in ("cpu", "cuda"):
        monkeypatch.setattr(memory, "pick_device", lambda device, name=name: torch.device(name))
        told[name] = memory.forecast([["--tgt=a red flower"]])
    assert told["cpu"] == Forecast(500.0, 8192.0) and told["cuda"] == Forecast(500.0 + 1536.0, 8192.0)
    assert resources(1, told["cuda"].edit_mb, 8192, 9000)["num_gpus"] == 0.25


def test_a_cluster_has_no_numbered_gpus():
    """Ray shows each run its own one, as the first."""
    with pytest.raises(UserError, match="device=cuda:1: Ray shows each run its own GPU"):
        Cluster.reserve(SimpleNamespace(_nodes=list), [], "cuda:1")


def test_the_forecast_counts_the_views_that_are_edited_and_loads_a_scene_once(tiny_folder, monkeypatch):
    asked, loaded, load = [], [], memory.load_scene
    monkeypatch.setattr(memory, "load_scene", lambda config: loaded.append(config.scene.name) or load(config))
    monkeypatch.setattr(memory, "field_edit_mb", lambda *args, **kind: asked.append(args[3]) or {"all": 1.0})

    def question(*options):
        return ["--tgt=a red flower", "device=cpu", f"guidance.path={tiny_folder}", *options]

    memory.forecast(
        [
            question("scene.width=64", "edit.views=5", *TINY_FIELD),
            question("scene.width=64", "edit=pictures", *TINY_FIELD),
            question("scene.width=64", "edit=published", *TINY_FIELD),
            question("scene.width=128", "edit.views=6", *TINY_FIELD),
        ]
    )
    assert asked == [5, 10, 29, 6] and len(loaded) == 2  # 29 of the flower's 34 photos are not held out


@pytest.mark.parametrize(
    "options, told",
    [
        (["engine=slurm"], "engine=slurm is unknown"),
        (["storage=s3://x/y"], "storage=s3://x/y is for engine=ray"),
        (["engine=ray", "scenes=[photos]", 'edits=["a -> b"]'], "photos has no poses: estimate them here first"),
    ],
)
def test_sweeps_that_cannot_be_scaled_out(tmp_path, options, told, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").touch()
    assert main(["sweep", 'edits=["a red flower"]', *options]) == 1
    assert told in capsys.readouterr().err


# --- calls


ONCE_KILLED = """
import os, pathlib
path = pathlib.Path({path!r})
if not path.exists():
    path.touch()
    os._exit(9)  # as if it were killed
path.with_suffix(".done").touch()
"""


def test_a_process_that_is_killed_takes_one_call_along(tmp_path):
    todo = [Calling(tmp_path / "a.done", exec, ONCE_KILLED.format(path=str(tmp_path / "a")))]
    write_pid = "import os, pathlib; pathlib.Path({path!r}).write_text(str(os.getpid()))"
    todo += [Calling(tmp_path / f"{i}", exec, write_pid.format(path=str(tmp_path / f"{i}"))) for i in range(3)]
    todo += [Calling(tmp_path / "none", int, "no number")]
    kept = Kept()
    try:
        run_pool(todo, 2, 1, lambda work: None, 0.01, start=lambda work: kept.call(work.function, *work.arguments))
    finally:
        kept.close()
    assert [w.done for w in todo] == [True] * 4 + [False] and [w.attempts for w in todo] == [2, 1, 1, 1, 1]
    assert "'no number'" in todo[4].failure
    assert len({(tmp_path / f"{i}").read_text() for i in range(3)}) < 3  # processes are kept


def test_calls_in_this_process():
    call = Here().call(int, "no number")
    assert not call.running and not call.killed and "'no number'" in call.outcome()
    assert Here().call(int, "1").outcome() == "done"


FAILS = """
import pathlib
class Model: pass
def edit():
    model = Model()
    model.itself = model
    raise KeyError("inside")
try:
    edit()
except KeyError as error:
    raise RuntimeError("CUDA out of memory.\\nMore of it") from error
"""
COUNTS = """
import gc, pathlib
pathlib.Path({path!r}).write_text(str(sum(type(o).__name__ == "Model" for o in gc.get_objects())))
"""


@pytest.mark.parametrize("make", [Here, Kept])
def test_a_call_that_failed_holds_no_model(make, tmp_path):
    """Of an exception, and of those that it came from: trying again would need memory for two."""
    caller = make()
    try:
        failed = caller.call(exec, FAILS, {})
        wait([failed._future])
        wait([caller.call(exec, COUNTS.format(path=str(tmp_path / "models")), {})._future])
        assert failed.outcome() == "CUDA out of memory." and not failed.killed
        assert (tmp_path / "models").read_text() == "0"
    finally:
        caller.close()


def alive():
    gc.collect()
    return sum(isinstance(o, Prior) for o in gc.get_objects())


def test_models_are_kept_from_call_to_call_one_at_a_time(tiny_folder, prior, monkeypatch):
    before, seen, real = alive(), [], loading._from_folder

    def from_folder(*args):
        seen.append(alive() - before)
        return real(*args)

    monkeypatch.setattr(loading, "_from_folder", from_folder)

    def load(dtype):
        return load_prior(str(tiny_folder), dtype=dtype, device=torch.device("cpu"))

    with callers("pool", 1, None, "cpu"):
        first = load("fp32")
        first.embed("a cat")
        assert load("fp32") is first and not first._prompts  # those of a benchmark would fill a GPU
        del first
        load("bf16"), load("bf16")
        assert seen == [0, 0] and alive() - before == 1
    assert alive() == before
    assert load("fp32") is not load("fp32")  # elsewhere nothing is kept


def test_clip_is_kept_too(tmp_path):
    save_clip(tmp_path / "clip")
    load = partial(Clip, str(tmp_path / "clip"), torch.device("cpu"))
    with callers("pool", 1, None, "cpu"):
        assert load()._model is load()._model
    assert load()._model is not load()._model


def test_processes_that_are_kept_load_a_model_once(tiny_folder, tmp_path):
    load = f"""
import pathlib, torch
from cds3d.guidance import load_prior
priors = [load_prior({str(tiny_folder)!r}, device=torch.device("cpu")) for _ in range(2)]
pathlib.Path({str(tmp_path / "same")!r}).write_text(str(priors[0] is priors[1]))
"""
    kept = Kept()
    try:
        wait([kept.call(exec, load, {})._future])
    finally:
        kept.close()
    assert (tmp_path / "same").read_text() == "True"


# --- the table, ports


def test_the_table_is_written_seldom_but_in_the_end(tmp_path, monkeypatch):
    written, now = [], [100.0]
    monkeypatch.setattr("cds3d.sweep.report.time.monotonic", lambda: now[0])

    def write(output, table):
        written.append(now[0])
        now[0] += 0.5  # what it takes

    monkeypatch.setattr("cds3d.sweep.report.write_report", write)
    report = Reporter(tmp_path, [], [])
    report.tick()
    assert written == []  # nothing has changed
    for _ in range(200):
        report.changed(), report.tick()
        now[0] += 0.1
    assert written == [100.0, pytest.approx(110.5, abs=0.2)]
    report.write()
    assert len(written) == 3


_LISTEN = """
import socket, time
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_ports_that_others_reach_are_seen():
    with socket.socket() as inner, socket.socket() as outer, socket.socket(socket.AF_INET6) as six:
        for listener, address in ((inner, "127.0.0.1"), (outer, "0.0.0.0"), (six, "::1")):
            listener.bind((address, 0))
            listener.listen()
        number = {s: s.getsockname()[1] for s in (inner, outer, six)}
        found = {(port.address, port.number) for port in open_ports(os.getpid())}
        assert {("127.0.0.1", number[inner]), ("0.0.0.0", number[outer]), ("::1", number[six])} <= found
        with socket.create_connection(("127.0.0.1", number[inner])) as client:
            assert client.getsockname()[1] not in {port.number for port in open_ports(os.getpid())}
        (warning,) = [w for w in open_to_others(os.getpid()) if f"port {number[outer]}," in w]
        assert "0.0.0.0" in warning and not any("127.0.0.1" in w or "::1" in w for w in open_to_others(os.getpid()))
        child = subprocess.Popen([sys.executable, "-c", _LISTEN], stdout=subprocess.PIPE, text=True)
        with child:
            assert int(child.stdout.readline()) in {port.number for port in open_ports(os.getpid())}
            child.kill()
    assert is_loopback("::ffff:127.0.0.1") and not is_loopback("::") and not is_loopback("192.0.2.1")


def test_a_folder_is_waited_for(tmp_path):
    with locks.held(tmp_path):
        assert (tmp_path / locks.NAME).exists()
    assert not (tmp_path / locks.NAME).exists()
