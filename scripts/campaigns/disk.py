"""Disks that are full at some point: a file system in memory of a random size, which then gets room again.

It is a real one, of the kernel, so that every write of every library and of ffmpeg meets it. It is mounted in a
namespace of the process's own, which needs no rights. What a disk does besides being full, it does not: tmpfs has no
errors of reading, and nothing to synchronise.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
from pathlib import Path

from campaigns import forks
from campaigns.answers import judge
from campaigns.tally import Order, Tally
from campaigns.tiny import LIMIT, Case, Inputs, Truth, do, is_done
from campaigns.wholeness import contents, damages, differences, leftovers

_NEW_USER, _NEW_MOUNTS, _REMOUNT, _PRIVATE = 0x10000000, 0x00020000, 32, 0x4000 | 1 << 18
_PAGE = 4096
_AMPLE, _MANY = 1 << 30, 1_000_000  # bytes and files of a disk with room
_libc = ctypes.CDLL(None, use_errno=True)


def campaign(inputs: Inputs, folder: Path, order: Order) -> Tally:
    """As many full disks as `order` says, each command in turn."""
    cases, numbers = order.chosen(inputs.cases()), order.numbers()
    tally, truths = Tally("disk", "full disks"), {}
    while order.goes_on(tally.count):
        case, number = cases[tally.trials % len(cases)], next(numbers)
        if case.name not in truths:
            truths[case.name] = _true(inputs, case, folder)
        answer = _in_small_space(inputs, case, truths[case.name], folder, number)
        tally.add(case.name, answer["full"], answer["problems"], f"{case.name}, number {number}", answer["ways"])
    return tally


def _true(inputs: Inputs, case: Case, folder: Path) -> tuple[Truth, int, int]:
    """An unbroken run, and the bytes and files that it adds."""
    whole = inputs.begin(case, folder / "whole")
    before = _used(whole)
    truth = inputs.run_whole(case, whole)
    after = _used(whole)
    return truth, after[0] - before[0], after[1] - before[1]


def _used(folder: Path) -> tuple[int, int]:
    """(bytes in whole pages, files and folders)."""
    files = list(folder.rglob("*"))
    return sum(-(-p.stat().st_size // _PAGE) * _PAGE for p in files if p.is_file()), len(files)


def _in_small_space(inputs: Inputs, case: Case, true: tuple[Truth, int, int], folder: Path, number: int) -> dict:
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)

    def work() -> int:
        answer.write_text(json.dumps(_try(inputs, case, true, folder, random.Random(number))))
        return 0

    child = forks.Child(work, folder, folder / "space.log")
    if child.wait(4 * LIMIT) != 0:
        child.kill()
        child.wait(LIMIT)
        raise RuntimeError(f"{case.name} cannot be tried on a small disk: {child.lines()[-1:]}")
    return json.loads(answer.read_text())


def _try(inputs: Inputs, case: Case, true: tuple[Truth, int, int], folder: Path, chance: random.Random) -> dict:
    """In a process of its own: the case on a disk with too little room, then with enough."""
    truth, more_bytes, more_files = true
    small = folder / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    _own_mounts()
    _mount(small, _AMPLE, _MANY)
    world = inputs.begin(case, small / "world")
    used, files = _used(small)
    way = chance.choice(("no bytes left", "no bytes left", "no names left"))
    room = (used + chance.randrange(_PAGE, max(2 * _PAGE, int(1.2 * more_bytes))), files + 10_000)
    if way == "no names left":
        room = (_AMPLE, files + 1 + chance.randrange(1, max(2, int(1.3 * more_files))))
    _mount(small, *room, again=True)
    problems, code = _call(case, world, folder, [])
    if code == 0:
        problems += differences(contents(world), truth.files)
        return {"full": 0, "problems": problems, "ways": {"room enough": 1}}
    problems += damages(world)
    problems += [] if case.command == "sweep" else leftovers(world)
    _mount(small, _AMPLE, _MANY, again=True)
    done = is_done(case, world) and case.starts != "edit"
    if not done:
        late, code = _call(case, world, folder, list(case.again))
        problems += [f"with room again: {line}" for line in late]
        problems += [f"with room again it ends with {code}"] if code else []
    problems += differences(contents(world), truth.files) + leftovers(world)
    return {"full": 1, "problems": problems, "ways": {way: 1}}


def _call(case: Case, world: Path, folder: Path, more: list[str]) -> tuple[list[str], int]:
    """(what is wrong with the answer, exit code)."""
    log = folder / "call.log"
    log.unlink(missing_ok=True)
    child = forks.Child(lambda: do(case, more), world, log)
    code = child.wait(LIMIT)
    if code is None:
        child.kill()
        child.wait(LIMIT)
        return [f"still running after {LIMIT:.0f} s"], 1
    told = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    problems = judge(code, None, told)
    if code and not problems and "the disk is full" not in told[-1]:
        problems.append(f"does not tell that the disk is full: {told[-1]}")
    return problems, code


# --- mounts of this process alone


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise RuntimeError(f"this system has no user namespaces ({os.strerror(ctypes.get_errno())})")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _checked(_libc.mount(b"none", b"/", None, _PRIVATE, None))


def _mount(folder: Path, size: int, files: int, again: bool = False) -> None:
    """tmpfs of `size` bytes and as many files."""
    options = f"size={size // _PAGE * _PAGE},nr_inodes={files}".encode()
    _checked(_libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", _REMOUNT if again else 0, options))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
