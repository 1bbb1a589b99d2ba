"""What the tests of the commands look at, and how they break in."""

import importlib.util
import os
import signal
import time
from pathlib import Path

from cds3d.cli import run_command


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def fails(capsys, command, *options, code=1):
    """Run, and return the one `error:` line that it has to end in."""
    capsys.readouterr()
    assert run_command(command, [str(o) for o in options]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert sum(line.startswith("error:") for line in lines) == 1, err
    assert lines[-1].startswith("error:") and "Traceback" not in err
    assert "error:" not in out
    return lines[-1]


def stops_at(monkeypatch, kind, iteration):
    """Ctrl-C within the step after which that many iterations are done."""
    step = kind.step

    def interrupted(self):
        if self.iteration == iteration - 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the signal arrives
        return step(self)

    monkeypatch.setattr(kind, "step", interrupted)


def load_script(name):
    """A module of scripts/."""
    path = Path(__file__).resolve().parents[3] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
