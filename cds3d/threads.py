"""Threads beside the main one, for work that would otherwise leave cores idle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


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
