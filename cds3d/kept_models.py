"""Models that a process keeps from one call to the next, so that a benchmark of many edits loads each of them once.

Only where `keep_models` was called: elsewhere nothing outlives its edit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from cds3d.process_memory import free_memory

T = TypeVar("T")

_models: dict[str, tuple[Hashable, object]] = {}  # by their kind: what decides the model, and the model
_keeping = False


def keep_models() -> None:
    """Let `kept` keep what it loads from now on."""
    global _keeping
    _keeping = True


def drop_models() -> None:
    """Free what is kept, and keep nothing from now on."""
    global _keeping
    _keeping = False
    _models.clear()
    free_memory()


def kept(kind: str, key: Hashable, load: Callable[[], T], again: Callable[[T], None] = lambda model: None) -> T:
    """The model that `load` gives, or gave last for this kind and key.

    One of another key is let go before, as there may be no room for two. again: called with one that is given again.
    """
    if not _keeping:
        return load()
    if kind in _models and _models[kind][0] == key:
        again(_models[kind][1])
    else:
        _models.pop(kind, None)
        free_memory()
        _models[kind] = key, load()
    return _models[kind][1]
