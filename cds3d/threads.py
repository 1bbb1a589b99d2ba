"""How many CPU threads torch uses, and threads beside the main one for work that would otherwise leave cores idle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch

from cds3d.jobs import usable_cores
from tensorf.errors import UserError


def set_threads(config: Mapping) -> None:
    """As many CPU threads as `config.threads` says, or OMP_NUM_THREADS, or as there are cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(_asked(config) or (int(told) if told.isdecimal() else 0) or usable_cores())


@contextmanager
def threads_of(config: Mapping) -> Iterator[None]:
    """As many CPU threads as `config.threads` says, and then as many as before; null leaves the program's own."""
    asked, before = _asked(config), torch.get_num_threads()
    if asked in (None, before):  # the command line has set them
        yield
        return
    torch.set_num_threads(asked)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _asked(config: Mapping) -> int | None:
    """`config.threads`. UserError unless it is null or a whole number above 0."""
    threads = config.get("threads")  # cds3d list has none
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UserError(f"threads={threads} has to be a whole number above 0")
    return threads


def beside(name: str, cores: int, count: int = 1) -> ThreadPoolExecutor:
    """`count` threads whose torch operators use so many cores each. The calling thread's number stays what it is."""
    threads = torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(cores)
        torch.get_num_threads()  # a new thread takes its number when it is first asked

    executor = ThreadPoolExecutor(count, name, initializer=begin)
    ready = Barrier(count + 1)
    for _ in range(count):
        executor.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(threads)  # for this thread again: the setting is in part the process's
    return executor
