"""Being asked to end: Ctrl-C, `kill`, a cluster's scheduler, a terminal that is closed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ONE = 10.0  # seconds within which several signals are one request: shells, kernels and schedulers send two
_waiting: list[_Pressed] = []  # loops that end between their steps, the innermost last


class _Pressed:
    """Whether somebody has asked since the loop began."""

    def __init__(self):
        self.pressed = False

    def interrupt(self, _signal=None, _frame=None) -> None:
        """Ctrl-C. A second one is raised at once."""
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


@contextmanager
def gentle_ends() -> Iterator[None]:
    """Within, SIGTERM (`kill`, schedulers) and SIGHUP (a closed terminal) are what Ctrl-C is: KeyboardInterrupt.

    Where a program has its own handlers, or `nohup` ignores SIGHUP, those stay. Outside of the main thread nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals, asked = [fd for fd in (0, 1, 2) if _is_terminal(fd)], -math.inf

    def end(number, _frame) -> None:
        nonlocal asked
        if number == signal.SIGHUP:
            _let_go(terminals)
        again, asked = time.monotonic() - asked < _ONE, time.monotonic()
        if again:  # the state is being kept
            return
        if _waiting:
            _waiting[-1].pressed = True
        else:
            raise KeyboardInterrupt

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Gives `check`: Ctrl-C waits for the next `check()`, so that no step is cut in two; a second one does not."""
    asked = _Pressed()

    def check() -> None:
        if asked.pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield check
        return
    before = signal.signal(signal.SIGINT, asked.interrupt)
    _waiting.append(asked)
    try:
        yield check
    finally:
        _waiting.pop()
        signal.signal(signal.SIGINT, before)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _let_go(terminals: list[int]) -> None:
    """What was written to a closed terminal would raise OSError, and the state would not be kept."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in terminals:
        os.dup2(nothing, fd)
    os.close(nothing)
