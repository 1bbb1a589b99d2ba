"""Sweeps on a Ray cluster on this machine: where it listens, lost workers and nodes, failures. Needs cds3d[ray]."""

import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from fakes import TINY_FIELD, TINY_SCENE

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as cluster.py does, but before ray is imported
ray = pytest.importorskip("ray")

from cds3d.cli import main  # noqa: E402
from cds3d.sweep import ports  # noqa: E402
from cds3d.sweep.calls import Calling, callers  # noqa: E402
from cds3d.sweep.cluster import Cluster, open_to_others  # noqa: E402
from cds3d.sweep.pool import run_pool  # noqa: E402
from cds3d.sweep.storage import Storage  # noqa: E402
from tensorf.errors import UserError  # noqa: E402


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nodes keep what they get there
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # paths of sockets are short
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # of nodes that a test starts
    yield
    ray.shutdown()


def sweep(capture_folder, tiny_folder, *more):
    tiny = [*TINY_SCENE[:1], *TINY_FIELD, f"guidance.path={tiny_folder}", "edit.iterations=6", "edit.width=48"]
    edits = '["a yellow flower -> a red flower","a yellow flower -> a blue flower"]'
    options = f'options=["{" ".join([*tiny, "save_every=1"])}"]'
    return ["sweep", f"edits={edits}", options, f"scenes=[{capture_folder}]", "engine=ray", "jobs=2", *more]


def workers():
    """Processes of Ray that run tasks of ours."""
    found = []
    for pid in ports.family(os.getpid()):
        try:
            if b"_do_on_node" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def table(folder):
    return json.loads((folder / "sweep.json").read_text())


def test_a_ray_of_our_own_listens_to_this_machine_alone(tmp_path):
    cluster = Cluster(None, 1, 1, tmp_path)
    found = ports.open_ports(os.getpid())
    cluster.close()
    assert {"raylet", "gcs_server"} <= {port.program for port in found}
    assert all(ports.is_loopback(port.address) for port in found), open_to_others(os.getpid())


def test_a_sweep_in_a_store_survives_kills_and_does_nothing_twice(capture_folder, tiny_folder, tmp_path):
    killed, done = [], threading.Event()

    def kill():
        chance = random.Random(0)
        while len(killed) < 3 and not done.wait(chance.uniform(0.5, 2)):
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    command = sweep(capture_folder, tiny_folder, "retries=9", f"storage={tmp_path / 'store'}")
    assert main(command) == 0
    done.set()
    killer.join()
    rows = table(tmp_path / "outputs" / "sweep")
    assert killed and [row["state"] for row in rows] == ["done", "done"]
    assert sum(row["attempts"] for row in rows) <= 2 + len(killed)
    names = [Path(row["run"]).name for row in rows]
    store = tmp_path / "store" / "runs"
    assert sorted(p.name for p in store.iterdir()) == sorted(names)
    assert all(json.loads((store / name / "metrics.json").read_text())["iterations"] == 6 for name in names)
    assert str(capture_folder) in (store / names[0] / "config.yaml").read_text()
    # Elsewhere, where nothing is there but the store, and no Ray: nothing is left to do.
    times = [os.stat(store / name / "metrics.json").st_mtime_ns for name in names]
    elsewhere = [o for o in command if o != "jobs=2"] + ["output=outputs/again", "address=127.0.0.1:1"]
    assert main(elsewhere) == 0
    assert [row["state"] for row in table(tmp_path / "outputs" / "again")] == ["done", "done"]
    assert times == [os.stat(store / name / "metrics.json").st_mtime_ns for name in names]


def test_failures_are_listed_and_nodes_that_are_lost_are_not_missed(capture_folder, tiny_folder, tmp_path, capsys):
    """Two nodes, of which one goes: what it was at is done by the other. One edit fails for a reason of its own."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    second = nodes.add_node(num_cpus=1, object_store_memory=2**27)
    lost, gone = threading.Event(), []

    def lose():
        while not lost.wait(0.5):
            runs = list((tmp_path / "outputs" / "sweep" / "runs").glob("*/state/state.pt"))
            if len(runs) >= 2:  # both nodes are at work
                nodes.remove_node(second, allow_graceful=False)
                gone.append(second)
                return

    loser = threading.Thread(target=lose)
    loser.start()
    try:
        command = sweep(capture_folder, tiny_folder, "retries=4", f"address={nodes.address}")
        (tiny,) = json.loads(command[2].removeprefix("options="))
        command[2] = "options=" + json.dumps([tiny, f"{tiny} guidance.dtype=fp16"])
        assert main(command) == 1
    finally:
        lost.set()
        loser.join()
        ray.shutdown()
        nodes.shutdown()
    rows = table(tmp_path / "outputs" / "sweep")
    assert sorted(row["state"] for row in rows) == ["done", "done", "failed", "failed"]
    assert all("fp16 needs a GPU" in row["failure"] for row in rows if row["failure"])
    assert len(gone) == 1 and sum(row["attempts"] for row in rows) <= 4 + 1  # only what the node was at, once more
    assert "error: 2 of 5 runs failed" in capsys.readouterr().err
    assert Storage(str(tmp_path)).has("outputs/daisies/source")


def test_calls_of_benchmarks(tmp_path):
    todo = [Calling(tmp_path / str(i), os.mkdir, str(i)) for i in range(3)] + [
        Calling(tmp_path / "x", int, "no number")
    ]
    with callers("ray", 2, None, "cpu") as start:
        run_pool(todo, 4, 1, lambda work: None, 0.05, start=start)
    assert [work.done for work in todo] == [True, True, True, False] and "'no number'" in todo[3].failure


def test_clusters_that_are_not_there(tmp_path, capsys):
    with pytest.raises(UserError, match="give the command on a machine of the cluster"):
        Cluster("ray://127.0.0.1:10001", 1, 1, tmp_path)
    assert main(["sweep", 'edits=["a"]', "address=auto"]) == 1
    assert "address=auto is for engine=ray" in capsys.readouterr().err
    with pytest.raises(UserError, match="threads_each=3: no node"):
        Cluster(None, 3, 2, tmp_path)
