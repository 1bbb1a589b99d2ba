"""A sweep whose runs lie in a store: what its own machine has of them, and what the store has already.

The folders here hold a run's figures and pictures alone, so that the table and its page can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cds3d.sweep.cluster import name_of
from cds3d.sweep.node import LIGHT, SOURCE, write_light
from cds3d.sweep.pool import Work
from cds3d.sweep.storage import Storage


def mirrored(todo: Sequence[Work], output: Path, storage: Storage) -> list[Work]:
    """The same runs, with folders for their light files. What the store has finished is done here, too.

    Sources that are trained on this machine go to the store.
    """
    folders = {work.folder: output / "sources" / work.folder.parent.name for work in todo if work.command == "train"}
    here = [replace(work, folder=folders.get(work.folder, work.folder), after=folders.get(work.after)) for work in todo]
    finished = storage.finished("runs") | storage.finished("sources")
    for before, work in zip(todo, here):
        if work.command == "train" and before.done and name_of(work) not in finished:
            storage.push(before.folder, name_of(work), SOURCE)
            finished.add(name_of(work))
    missing = {name_of(work): work for work in here if name_of(work) in finished and not work.done}
    found = {file: storage.read([*missing], file) for file in LIGHT}
    for name, work in missing.items():
        write_light(work.folder, {file: data[name] for file, data in found.items() if name in data})
    return here
