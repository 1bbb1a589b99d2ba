"""Short campaigns, in a process of their own that forks: nothing is lost, and they notice what they are there for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaigns need Linux")

# Each control takes a guard away in the parent, of whose forks some then lose something.
SHORT = """
import contextlib, sys, json, tempfile
from pathlib import Path
sys.path.insert(0, {scripts!r})
from campaigns import forks
forks.prepare()
from unittest import mock
from campaigns import clock, fuzz, kill
from campaigns.tally import Order
from campaigns.tiny import Inputs

def first_step_again(self, state):
    restore(self, state)
    self.iteration = 0

table = {{}}
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    inputs = Inputs(folder)
    def run(name, campaign, *order):
        work = folder / name
        work.mkdir()
        tally = campaign(inputs, work, Order(*order))
        table[name] = tally.table()
    run("kill", kill.campaign, 3, 0, "latents")
    run("viewer", kill.campaign, 1, 0, "viewer itself", float("inf"), 66)  # one SIGHUP
    run("fuzz", fuzz.campaign, 18, 0)
    (folder / "unspoiled").mkdir()
    table["unspoiled"] = fuzz.unspoiled(inputs, folder / "unspoiled")
    run("clock", clock.campaign, 1, 0, "latents")
    (folder / "two").mkdir()
    table["two"] = clock.second_process(inputs, folder / "two" / "world")
    with mock.patch("tensorf.locks.hold"):
        (folder / "unlocked").mkdir()
        table["unlocked"] = clock.second_process(inputs, folder / "unlocked" / "world")
    from cds3d.editor import Editor
    restore = Editor.load_state_dict
    with mock.patch.object(Editor, "load_state_dict", first_step_again):
        run("restarted", kill.campaign, 6, 0, "latents")
    with mock.patch("cds3d.cli.gentle_ends", contextlib.nullcontext):
        run("asked roughly", kill.campaign, 1, 0, "viewer itself", float("inf"), 14)  # one SIGTERM
    with mock.patch("cds3d.cli._one_line", lambda error: f"{{error}}\\nand more"):
        run("two lines", fuzz.campaign, 6, 0, "image")
    import campaign
    try:
        kill.campaign(inputs, folder, campaign.Order(1, 0, "nope"))
    except SystemExit as end:  # a text is printed on stderr, and the exit code is 1
        table["nope"] = str(end)
print(json.dumps(table))
"""


@pytest.fixture(scope="module")
def table():
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SHORT.format(scripts=str(SCRIPTS))], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_lost(table):
    assert table["kill"]["kills"] >= 3 and table["fuzz"]["inputs"] == 18 and table["clock"]["runs"] == 1
    assert table["viewer"]["by_way"] == {"the viewer: SIGHUP": 1}
    for kind in ("kill", "viewer", "fuzz", "clock"):
        assert table[kind]["failures"] == []
    assert table["two"] == []
    assert table["unspoiled"] == {}  # what is refused whole tries nothing when it is spoiled


def test_what_is_lost_is_noticed(table):
    """Without locks; with states that are not gone on from; with two lines of error; with SIGTERM that ends at once."""
    assert "let in" in table["unlocked"][0]
    assert any("went on from step 0" in p for f in table["restarted"]["failures"] for p in f["problems"])
    assert any("it ends with -" in p for f in table["asked roughly"]["failures"] for p in f["problems"])
    assert any("not one line" in p for f in table["two lines"]["failures"] for p in f["problems"])


def test_the_script_starts_without_the_package_and_leaves_torch_to_prepare():
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import campaign; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "campaigns.forks" in told and not {"torch", "cds3d"} & {*told}


def test_a_case_that_is_not_there_is_told(table):
    assert table["nope"].startswith("error: --only nope: there are train, edit,") and "\n" not in table["nope"]
