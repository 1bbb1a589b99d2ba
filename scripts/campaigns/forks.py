"""Commands in forked processes.

To import torch and diffusers takes seconds. A parent imports them once, does all on one thread, and forks a child for
each command: that child is, but for its start, the process that a user would have.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def prepare() -> None:
    """Import what commands need. Before it, nothing may have imported torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cds3d"), str(ROOT / "tests" / "tensorf")]

    import torch.utils.tensorboard  # noqa: F401
    import tqdm

    import cds3d.commands.edit
    import cds3d.commands.export
    import cds3d.commands.importing
    import cds3d.commands.render
    import cds3d.commands.sweep
    import cds3d.commands.train
    import cds3d.commands.view  # noqa: F401
    import tensorf.kernels  # noqa: F401
    from cds3d import jobs

    tqdm.tqdm.monitor_interval = 0  # its thread would outlive no fork
    jobs.subprocess = SimpleNamespace(
        Popen=ForkedCommand, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    torch.set_num_threads(1)


class Child:
    """A forked process that does `work()` in `folder`, in a group of its own; what it prints to stderr goes to `told`.

    It ends with what `work` returns, or with a traceback and 1, as a script would.
    """

    def __init__(self, work: Callable[[], int | None], folder: Path, told: Path):
        self.told, self.returncode = told, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(PermissionError):
                os.setpgid(0, 0)
            _become(work, folder, os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        self._ended = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None if it still runs after so many seconds."""
        if self.returncode is None and select.select([self._ended], [], [], max(0.0, seconds))[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._ended)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL to it and to all that it has started."""
        kill([self.pid, *self.family()])

    def family(self) -> list[int]:
        """The processes that it has started, and those that they have."""
        from cds3d.sweep.ports import family  # after `prepare`

        return family(self.pid)[1:]

    def lines(self) -> list[str]:
        return [line for line in self.told.read_text(errors="replace").splitlines() if line.strip()]


def have_ended(processes: list[int], seconds: float) -> bool:
    """Whether all of them, whoever has started them, end within so many seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process)
            ended = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]
            os.close(descriptor)
            if not ended:
                return False
    return True


def kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _become(work: Callable[[], int | None], folder: Path, stderr: int) -> None:
    """The rest of a forked child's life."""
    import tqdm

    code = 1
    try:
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor, to in ((nothing, 0), (nothing, 1), (stderr, 2)):
            os.dup2(descriptor, to)
        _let_go_of_signals()
        _let_go_of_locks()
        tqdm.tqdm.set_lock(threading.RLock())  # its own is shared by forks: one that is killed would stop all others
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _let_go_of_signals() -> None:
    """A fork has its parent's handlers, a program that is started anew has none; and `nohup` is not for commands."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _let_go_of_locks() -> None:
    """A fork shares its parent's locks; a process that is started anew does not."""
    from tensorf import locks

    for descriptor in locks._held.values():
        os.close(descriptor)
    locks._held.clear()


def run_command(command: str, options: list[str]) -> int:
    """What `python -m cds3d COMMAND OPTIONS` does once it has started."""
    from cds3d import cli

    sys.argv = ["cds3d", command, *options]
    return cli.main([command, *options])


class ForkedCommand:
    """In the place of `subprocess.Popen` in cds3d/jobs.py: a fork where it starts `python -m cds3d COMMAND`."""

    def __init__(self, arguments, *, stdin, stdout, stderr, env, start_new_session):
        place = arguments.index("-m")
        assert arguments[place + 1] == "cds3d" and stderr == subprocess.PIPE
        read, write = os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            if start_new_session:
                os.setsid()
            _become(lambda: run_command(arguments[place + 2], arguments[place + 3 :]), Path.cwd(), write)
        os.close(write)
        self.stderr = os.fdopen(read, "rb")
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("cds3d", timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --- what a child does to itself


def at_write(number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Call `act` before file operation `number` (from 1) that changes something; 0: never.

    Those of this process and of its forks are counted together, and whoever does that one acts. Counted are opening to
    write, renaming, deleting, making folders and starting programs; what C++ code does is not seen. Returns what tells
    the count so far.
    """
    memory = mmap.mmap(-1, 8)  # shared with what this process forks

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            flags = arguments[2]
            counts = isinstance(flags, int) and flags & _WRITING and str(arguments[0]) != os.devnull
        else:
            counts = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen")
        if counts:
            count = told() + 1
            memory[:] = count.to_bytes(8, "little")
            if count == number:
                act()

    def told() -> int:
        return int.from_bytes(memory[:], "little")

    sys.addaudithook(hook)
    return told


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def require_one_thread() -> None:
    """RuntimeError if this process has threads, which a fork would not have, and would wait for."""
    gc.collect()  # priors have a thread each
    until = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > until:
            raise RuntimeError("this process has threads, and cannot be forked")
        time.sleep(0.01)


def limit_memory(gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)


def seconds_of(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start
