"""Functions elsewhere: the runs of the benchmarks, by the same pool as a sweep's (pool.py).

Here, in this process, one after the other; in processes of this machine that are kept from one call to the next; or on
a cluster (cluster.py). In this process and in those that are kept, models are too: each process loads them once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from cds3d.jobs import outcome_of
from cds3d.kept_models import drop_models, keep_models
from cds3d.process_memory import free_memory
from cds3d.sweep.pool import Work
from tensorf.errors import reason


class Calling(Work):
    """function(*arguments), which writes the file `result` last. after: the result of one that comes before it."""

    def __init__(self, result: Path, function: Callable, *arguments, after: Path | None = None):
        super().__init__("", (), result, after)
        self.function, self.arguments = function, arguments

    @property
    def done(self) -> bool:
        return self.folder.exists()


class Call:
    """A function that runs elsewhere. future: of its result. cancel: asks it to stop.

    lost: exceptions that mean that its process died. read: turns the result into an outcome of one line.
    """

    def __init__(
        self,
        future: Future,
        cancel: Callable[[], None],
        lost: tuple[type[BaseException], ...],
        read: Callable[..., str],
    ):
        self._future, self._cancel, self._lost, self._read, self._stopping = future, cancel, lost, read, False

    @property
    def running(self) -> bool:
        return not self._future.done()

    @property
    def killed(self) -> bool:
        return isinstance(self._error(), self._lost)

    def _error(self) -> BaseException | None:
        return None if self._future.cancelled() else self._future.exception()

    def outcome(self) -> str:
        if self._stopping or self._future.cancelled():
            return outcome_of(130, [])
        if (error := self._error()) is None:
            return self._read(self._future.result())
        return f"its process was killed, perhaps for lack of memory: {reason(error)}" if self.killed else reason(error)

    def stop(self) -> None:
        first, self._stopping = not self._stopping, True
        if first:
            self._cancel()

    def close(self, seconds: float = 20.0) -> None:
        """Stop, and wait until it has ended."""
        self.stop()
        wait([self._future], seconds)


def _called(function: Callable, *arguments) -> object:
    """function(*arguments). What it raises comes as its one line alone.

    An exception holds the frames that it came through, and these the models of a failed edit: trying again would need
    memory for two.
    """
    try:
        return function(*arguments)
    except Exception as error:
        told = reason(error)
    free_memory()
    raise RuntimeError(told)


def _begin() -> None:
    """In a process that is kept, before its first call."""
    torch.set_num_threads(1)
    keep_models()


class Here:
    """This process: a call has ended when it returns."""

    def call(self, function: Callable, *arguments) -> Call:
        future: Future = Future()
        try:
            future.set_result(_called(function, *arguments))
        except Exception as error:  # of one call: the others are worth having whatever it is
            future.set_exception(error)
        return Call(future, lambda: None, (), _done)

    def close(self) -> None:
        pass


class Kept:
    """Processes on this machine with one thread each, as many as calls run at a time."""

    def __init__(self):
        self._idle: list[ProcessPoolExecutor] = []

    def call(self, function: Callable, *arguments) -> Call:
        spawn = multiprocessing.get_context("spawn")
        process = self._idle.pop() if self._idle else ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin)
        future = process.submit(_called, function, *arguments)
        future.add_done_callback(partial(self._ended, process))
        return Call(future, partial(process.shutdown, wait=False, cancel_futures=True), (BrokenExecutor,), _done)

    def _ended(self, process: ProcessPoolExecutor, future: Future) -> None:
        if not future.cancelled() and not isinstance(future.exception(), BrokenExecutor):
            self._idle.append(process)

    def close(self) -> None:
        for process in self._idle:
            process.shutdown(wait=False, cancel_futures=True)


def _done(_result) -> str:
    return "done"


@contextmanager
def callers(engine: str, jobs: int, address: str | None, device: str) -> Iterator[Callable]:
    """Gives what starts a `Calling`, as `run_pool` wants it. engine: pool or ray. Calls elsewhere have one thread each.

    Models are kept from one call to the next in this process, until the end, and in those of this machine.
    """
    if engine == "ray":
        from cds3d.sweep.cluster import Cluster

        caller = Cluster(address, 1, jobs, Path.cwd())
    else:
        caller = Here() if jobs == 1 else Kept()
    try:
        if engine == "ray":
            caller.reserve([], device)
        elif jobs == 1:
            keep_models()
        yield lambda work: caller.call(work.function, *work.arguments)
    finally:
        caller.close()
        drop_models()
