"""One process at a time in a folder."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorf import locks
from tensorf.errors import UserError

ROOT = str(Path(__file__).resolve().parents[2])
HOLD = f"""
import sys, time
sys.path.insert(0, {ROOT!r})
from pathlib import Path
from tensorf import locks
locks.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture()
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused(tmp_path, other):
    with pytest.raises(UserError, match=f"in use by another process \\({other.pid}\\)"):
        locks.hold(tmp_path)


def test_a_dead_process_holds_nothing(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / locks.NAME).exists()
    locks.hold(tmp_path)
    locks.release(tmp_path)
    assert not (tmp_path / locks.NAME).exists()


def test_a_process_may_come_again(tmp_path):
    locks.hold(tmp_path)
    locks.hold(tmp_path)
    locks.release(tmp_path)
    locks.release(tmp_path)
    code = HOLD.replace("time.sleep(60)", "locks.release(Path(sys.argv[1]))")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)


def test_a_released_folder_is_free(tmp_path, other):
    """Also for one that waits at the moment of the release: it never holds a file that is gone."""
    other.terminate()
    other.wait()
    for _ in range(5):
        locks.hold(tmp_path)
        with pytest.raises(subprocess.CalledProcessError):
            code = HOLD.replace("time.sleep(60)", "")
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        locks.release(tmp_path)
        time.sleep(0.01)


def test_without_the_systems_locks_one_line_says_so():
    """As on Windows. It is told before anything else is imported that Windows has not."""
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import cds3d.cli"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: Windows itself is not supported: run this in WSL (docs/index.md)"]
