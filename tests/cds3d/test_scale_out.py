"""Sweeps over several machines, as far as that needs no Ray: stores, shipping, a node's work."""

import errno
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from omegaconf import OmegaConf

import cds3d
from cds3d.sweep import node, shipping
from cds3d.sweep.cluster import name_of
from cds3d.sweep.mirror import mirrored
from cds3d.sweep.node import Order, do, write_light
from cds3d.sweep.pool import Work
from cds3d.sweep.shipping import node_folder, ship
from cds3d.sweep.storage import STATE, Storage, state_kept
from tensorf.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    yield str(tmp_path / "store") if request.param == "file" else "memory://store/sweep"
    fsspec.filesystem("memory").store.clear()


def run_folder(path, **files):
    for name, text in {"config.yaml": "a: 1", "metrics.json": '{"seconds": 2}', **files}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


# --- stores


def test_a_run_comes_back_as_it_was(url, tmp_path):
    storage, run = Storage(url), run_folder(tmp_path / "a", **{"views/00.png": "p", "state/state.pt": "s"})
    (run / ".lock").touch()
    assert not storage.has("runs/a") and storage.finished("runs") == set()
    storage.push(run, "runs/a")
    storage.pull("runs/a", tmp_path / "b", ("metrics.json", "state/state.pt", "config.yaml", "views/00.png", ".lock"))
    found = {
        p.relative_to(tmp_path / "b").as_posix(): p.read_text() for p in (tmp_path / "b").rglob("*") if p.is_file()
    }
    assert found == {"config.yaml": "a: 1", "metrics.json": '{"seconds": 2}', "views/00.png": "p"}  # no state
    assert storage.has("runs/a") and storage.finished("runs") == {"runs/a"}
    assert storage.read(["runs/a", "runs/none"], "metrics.json") == {"runs/a": b'{"seconds": 2}'}


def test_a_run_without_metrics_is_not_finished(url, tmp_path):
    storage, run = Storage(url), run_folder(tmp_path / "a", **{"state/state.pt": "s"})
    storage.push(run, "runs/a", STATE)
    assert not storage.has("runs/a") and storage.finished("runs") == set()
    storage.pull("runs/a", tmp_path / "b", STATE)
    assert sorted(p.name for p in (tmp_path / "b").rglob("*") if p.is_file()) == ["config.yaml", "state.pt"]


def test_metrics_are_written_last(tmp_path, monkeypatch):
    run = run_folder(tmp_path / "a", **{"views/00.png": "p", "state/state.pt": "s"})
    storage = Storage(str(tmp_path / "store"))
    order, opened = [], storage._fs.open
    monkeypatch.setattr(storage._fs, "open", lambda path, mode: order.append(Path(path).name) or opened(path, mode))
    storage.push(run, "runs/a")
    assert order[-1] == "metrics.json" and len(order) == 3  # the state does not travel


def test_a_copy_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    storage, run = Storage(str(tmp_path / "store")), run_folder(tmp_path / "a")
    storage.push(run, "runs/a")
    (run / "config.yaml").write_text("a: 2")

    def broken(source, target, length):
        target.write(b"a")
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr("cds3d.sweep.storage.shutil.copyfileobj", broken)
    with pytest.raises(OSError, match="gone"):
        storage.push(run, "runs/a")
    assert (tmp_path / "store" / "runs" / "a" / "config.yaml").read_text() == "a: 1"


@pytest.mark.parametrize("url, told", [("nowhere://x", "nowhere"), ("gdrive://x", "pip install|cannot be used")])
def test_stores_that_cannot_be_used(url, told):
    with pytest.raises(UserError, match=told):
        Storage(url)


def test_states_go_to_the_store_as_they_come(url, tmp_path):
    run = run_folder(tmp_path / "a")
    (run / "state").mkdir()
    (run / "metrics.json").unlink()
    with state_kept(url, run, "runs/a", every=0.02):
        for text in ("one", "two"):
            (run / "state" / "state.pt").write_text(text)
            deadline = time.monotonic() + 5
            while Storage(url).read(["runs/a"], "state/state.pt") != {"runs/a": text.encode()}:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        (run / "state" / "state.pt").write_text("last")
    assert Storage(url).read(["runs/a"], "state/state.pt") == {"runs/a": b"last"}
    (run / "state" / "state.pt").write_text("of a finished run")
    with state_kept(url, run_folder(run), "runs/a"):
        pass
    assert Storage(url).read(["runs/a"], "state/state.pt") == {"runs/a": b"last"}
    Storage(url).push(run, "runs/a")
    assert Storage(url).read(["runs/a"], "state/state.pt") == {}


# --- what travels to nodes


def test_inputs_are_named_alike_on_all_nodes_and_travel_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "_CHUNK", 4)
    capture = tmp_path / "rose"
    (capture / "images").mkdir(parents=True)
    (capture / "images" / "0.png").write_bytes(b"0123456789")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    sent, known = [], {}
    flags = [f"--capture={capture}", "--tgt=a red rose", f"guidance.path={tmp_path / 'model.safetensors'}", "seed=1"]
    for _ in range(2):
        shipped = ship(flags, lambda piece: sent.append(piece) or len(sent) - 1, known)
    assert sent == [b"0123", b"4567", b"89", b"weig", b"hts"]
    assert shipped[1::2] == flags[1::2] and shipped[0].endswith("/rose") and "inputs/" in shipped[0]
    fetched = []
    for place in ("node1", "node2"):
        for given in [*known.values()] * 2:  # twice: the second time it is there
            given.place(tmp_path / place, lambda i: fetched.append(i) or sent[i])
        here = tmp_path / place / shipped[0].removeprefix("--capture=") / "images" / "0.png"
        assert here.read_bytes() == b"0123456789"
        assert (tmp_path / place / shipped[2].removeprefix("guidance.path=")).read_bytes() == b"weights"
    assert fetched == [0, 1, 2, 3, 4] * 2
    (capture / "images" / "0.png").write_bytes(b"0123456780")
    assert ship(flags, str, {})[0] != shipped[0]  # another capture of the same name


def test_files_outside_of_a_capture_travel_only_if_they_may(tmp_path):
    for folder in ("rose", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(b"photo")
    (tmp_path / "rose" / "0.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "rose" / "rgb").symlink_to(tmp_path / "elsewhere")
    sent, flags = [], [f"--capture={tmp_path / 'rose'}"]
    with pytest.raises(UserError, match="leads out.*outside=true"):
        ship(flags, sent.append, {})
    assert sent == []
    known = {}
    ship([*flags, "scene.outside=true"], sent.append, known)
    (given,) = known.values()
    assert sent == [b"photo", b"photo"] and [name for name, _ in given.files] == ["0.png", "rgb/0.png"]


def test_on_the_same_machine_inputs_are_links(tmp_path):
    (tmp_path / "rose").mkdir()
    known = {}
    (flag,) = ship([f"--capture={tmp_path / 'rose'}"], None, known)
    (given,) = known.values()
    given.place(tmp_path / "node", None)
    assert (tmp_path / "node" / flag.removeprefix("--capture=")).resolve() == (tmp_path / "rose").resolve()
    assert ship(["--capture=nowhere", "guidance.path=pocket"], None, {}) == [
        "--capture=nowhere",
        "guidance.path=pocket",
    ]


def test_a_node_does_not_use_a_folder_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setattr(shipping.tempfile, "gettempdir", lambda: str(tmp_path))
    assert node_folder("x").parent.stat().st_mode & 0o77 == 0
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "cds3d-12345").mkdir()
    with pytest.raises(UserError, match="belongs to somebody else"):
        node_folder("x")


# --- a node's work


@pytest.fixture()
def nodes(tmp_path, monkeypatch):
    """Gives a function that becomes another node, with a temporary folder of its own."""

    def become(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(shipping.tempfile, "gettempdir", lambda: str(tmp_path / name))

    become("node1")
    return become


@pytest.fixture()
def commands(monkeypatch):
    """The commands that nodes have done. A script says how each ends: done, or the error to raise after a state."""
    done, script = [], []

    def run(command, argv):
        done.append((command, argv))
        folder = Path(next(a for a in argv if a.startswith("output=")).removeprefix("output="))
        if (folder / "state" / "state.pt").exists():
            shutil.copy(folder / "state" / "state.pt", f"{tempfile.gettempdir()}.state")
        capture = next((a for a in argv if a.startswith("--capture=")), "").partition("=")[2]
        config = OmegaConf.to_yaml(OmegaConf.create({"capture": capture}))
        run_folder(folder, **{"config.yaml": config, "state/state.pt": f"after {len(done)}", "views/00.png": "p"})
        if (told := script.pop(0) if script else "done") == "done":
            return 0
        (folder / "metrics.json").unlink()
        if isinstance(told, BaseException):
            raise told
        print(f"error: {told}", file=sys.stderr)
        return 1

    monkeypatch.setattr(node, "run_command", run)
    return done, script


def order(storage=None, **more):
    base = Order(cds3d.__version__, "sweep", "edit", ("--tgt=x",), "runs/a", storage=storage, name="runs/a")
    return replace(base, **more) if more else base


def test_a_run_that_was_cut_off_goes_on_at_another_node(url, tmp_path, nodes, commands):
    done, script = commands
    store = Storage(url)
    store.push(run_folder(tmp_path / "s", **{"field.safetensors": "f"}), "sources/rose")
    script.append(KeyboardInterrupt())  # as if its node were lost after the state was kept
    with pytest.raises(KeyboardInterrupt):
        do(order(url, source="sources/rose"), None)
    nodes("node2")
    outcome, files = do(order(url, source="sources/rose"), None)
    assert outcome == "done" and files == {"views/00.png": b"p", "metrics.json": b'{"seconds": 2}'}
    assert [argv[-1] for _, argv in done] == ["output=runs/a", "resume=true"]
    here = tmp_path / "node2" / f"cds3d-{os.getuid()}" / "sweep"
    assert Path.cwd() == here and (here / "outputs/rose/source/field.safetensors").read_text() == "f"
    assert not (here / "runs" / "a").exists()  # it is in the store
    assert (tmp_path / "node2.state").read_text() == "after 1" and store.read(["runs/a"], "state/state.pt") == {}
    nodes("node3")
    assert do(order(url), None) == (outcome, files) and len(done) == 2  # nothing is done twice


def test_a_run_whose_way_to_the_store_fails_is_not_done_again(tmp_path, nodes, commands, monkeypatch):
    push, broken = Storage.push, [ConnectionError("reset")]

    def breaks(self, folder, name, *more):
        if broken and (folder / "metrics.json").exists():
            raise broken.pop()
        return push(self, folder, name, *more)

    monkeypatch.setattr(Storage, "push", breaks)
    assert do(order(str(tmp_path / "store")), None)[0] == "the storage failed: reset"
    assert do(order(str(tmp_path / "store")), None)[0] == "done"
    assert len(commands[0]) == 1 and Storage(str(tmp_path / "store")).has("runs/a")


def test_a_source_that_was_trained_anew_replaces_the_old_one(tmp_path, nodes, commands):
    store = Storage(str(tmp_path / "store"))
    for number in (1, 2):
        source = run_folder(tmp_path / "s", **{"field.safetensors": f"f{number}", "metrics.json": f'{{"a": {number}}}'})
        store.push(source, "sources/rose")
        assert do(order(store.url, source="sources/rose", name=f"runs/{number}"), None)[0] == "done"
    assert Path("outputs/rose/source/field.safetensors").read_text() == "f2"


@pytest.mark.parametrize("name", ["rose", "my #1 rose", "a: b", "it's"])
def test_results_name_inputs_as_their_user_does(name, tmp_path, nodes, commands):
    (tmp_path / name).mkdir()
    (tmp_path / "here" / "outputs").mkdir()
    known = {}
    flags = ship([f"--capture={tmp_path / name}"], None, known)
    folder = tmp_path / "here" / "outputs" / "a"
    given = order(flags=tuple(flags), inputs=tuple(known.values()), shared=str(tmp_path / "here"), folder=str(folder))
    assert do(given, None) == ("done", {})
    assert OmegaConf.load(folder / "config.yaml").capture == str((tmp_path / name).resolve())
    assert Path("outputs").resolve() == (tmp_path / "here" / "outputs").resolve()  # where sources are


@pytest.mark.parametrize(
    "error, told",
    [
        ("--src is missing", "--src is missing"),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full: "),
        (ConnectionError("reset"), "the storage failed: reset"),
        (RuntimeError("shape\nmany lines"), "shape"),
    ],
)
def test_a_failure_is_one_line(tmp_path, nodes, commands, error, told):
    commands[1].append(error)
    outcome, files = do(order(str(tmp_path / "store")), None)
    assert outcome.startswith(told) and "\n" not in outcome and files == {}


def test_nodes_that_do_not_fit(tmp_path, nodes, commands):
    assert "the sweep has 9.9" in do(order(version="9.9"), None)[0]
    assert "does not see" in do(order(shared=str(tmp_path / "nowhere")), None)[0]


def test_a_sweep_finds_what_its_store_has(url, tmp_path):
    store, output = Storage(url), tmp_path / "out"
    store.push(run_folder(tmp_path / "r", **{"views/00.png": "p", "field.safetensors": "f"}), "runs/a")
    source = run_folder(tmp_path / "outputs" / "rose" / "source", **{"field.safetensors": "f"})
    todo = [Work("train", [], source)]
    todo += [Work("edit", [], output / "runs" / name, after=source) for name in "ab"]
    here = mirrored(todo, output, store)
    assert [work.done for work in here] == [True, True, False] and here[0].folder == here[2].after
    assert here[1].figures == {"seconds": 2} and not (here[1].folder / "field.safetensors").exists()
    assert store.has("sources/rose") and [name_of(w) for w in here] == ["sources/rose", "runs/a", "runs/b"]
    write_light(here[2].folder, {"metrics.json": b"{}", "views/00.png": b"p"})
    assert here[2].done
