"""Being asked to end: Ctrl-C, `kill`, a cluster's scheduler, a terminal that is closed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ONE_REQUEST = 10.0  # seconds within which several signals count as one: shells, kernels and schedulers send two
_asked = -math.inf  # when SIGTERM or SIGHUP has come, by the monotonic clock
_waiting: list[_Pressed] = []  # loops that end between their steps, the innermost last


class _Pressed:
    """Whether somebody has asked since the loop began."""

    def __init__(self):
        self.pressed = False

    def interrupt(self, _signal=None, _frame=None) -> None:
        """Ctrl-C. A second one is raised at once."""
        if self.pressed and not _just_asked():
            raise KeyboardInterrupt
        self.pressed = True


def _just_asked() -> bool:
    return time.monotonic() - _asked < _ONE_REQUEST


@contextmanager
def gentle_ends() -> Iterator[None]:
    """Within, SIGTERM (`kill`, schedulers) and SIGHUP (a closed terminal) are what Ctrl-C is: KeyboardInterrupt.

    All that comes within ten seconds is one request, so that the state can be kept: a scheduler ends an edit and the
    sweep that started it, and the sweep interrupts the edit too. Where a program has its own handlers, or `nohup`
    ignores SIGHUP, those stay. Outside of the main thread nothing changes.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, terminals = -math.inf, [fd for fd in (0, 1, 2) if _is_terminal(fd)]

    def end(number, _frame) -> None:
        global _asked
        if number == signal.SIGHUP:
            _let_go(terminals)
        again, _asked = _just_asked(), time.monotonic()
        if again:
            return
        if _waiting:
            _waiting[-1].pressed = True
        else:
            raise KeyboardInterrupt

    def interrupt(_signal, _frame) -> None:
        if not _just_asked():
            raise KeyboardInterrupt

    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}
    for number in ours:
        signal.signal(number, interrupt if number == signal.SIGINT else end)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


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
