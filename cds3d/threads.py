"""How many CPU threads torch uses, and threads beside the main one for work that would otherwise leave cores idle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from cds3d.jobs import usable_cores
from tensorf.errors import UserError


def set_threads(config: Mapping) -> None:
    """As many CPU threads as `config.threads` says, or OMP_NUM_THREADS, or as there are cores."""
    threads = config.get("threads")  # cds3d list has none
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UserError(f"threads={threads} has to be a whole number above 0")
    told = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(threads or (int(told) if told.isdecimal() else 0) or usable_cores())


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
