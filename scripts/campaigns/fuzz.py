"""Inputs that are spoiled, for commands that have to answer with one line of error, or to work."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

from campaigns import forks
from campaigns.answers import judge
from campaigns.families import Family, families
from campaigns.tally import Order, Tally
from campaigns.tiny import Inputs
from campaigns.wholeness import damages

_TIME = 120.0  # seconds that an input may take, on a machine that does other things too
_BATCH = 40  # inputs one after the other in a process
_REAL = 200  # one input of so many goes to a process that is started anew
_MEMORY = 12.0  # GB of addresses


def campaign(inputs: Inputs, folder: Path, order: Order) -> Tally:
    """As many inputs as `order` says, each format in turn."""
    kinds, numbers = order.chosen(_prepared(inputs, folder)), order.numbers()
    tally = Tally("fuzz", "inputs")
    todo = [(kinds[i % len(kinds)], next(numbers), i % _REAL == _REAL - 1) for i in range(order.count)]
    while todo and order.goes_on(tally.count):
        todo = todo[_batch(todo[:_BATCH], folder, tally) :]
    return tally


def unspoiled(inputs: Inputs, folder: Path) -> dict[str, str]:
    """The formats whose good input is refused, and why: their spoiled inputs would try nothing."""
    refused = {}
    for family in [replace(family, spoiled={}) for family in _prepared(inputs, folder) if family.spoiled]:
        commands = {json.dumps(family.command(random.Random(number))): number for number in range(20)}
        for number in commands.values():
            child = forks.Child(partial(_refused, family, number, folder), folder, folder / "try.log")
            if child.wait(_TIME) != 0:
                refused[f"{family.name}, number {number}"] = (_lines(folder / "answer.log") or ["no answer"])[-1]
    return refused


def _refused(family: Family, number: int, folder: Path) -> bool:
    return attempt(family, number, folder / "try", real=False)["way"] != "works"


def _prepared(inputs: Inputs, folder: Path) -> list[Family]:
    """The families, with their inputs made in `folder`."""
    dataset = next(case for case in inputs.cases() if case.name == "dataset")
    inputs.run_whole(dataset, inputs.begin(dataset, inputs.folder / "starts" / "dataset"))
    inputs.starts["dataset"] = inputs.folder / "starts" / "dataset"
    child = forks.Child(lambda: families(inputs, folder / "good") and 0, folder, folder / "making.log")
    if child.wait(_TIME) != 0:
        raise RuntimeError(f"the inputs cannot be made: {child.lines()[-1:]}")
    return _made(inputs, folder)


def _made(inputs: Inputs, folder: Path) -> list[Family]:
    """The families again, without making their inputs: that is for a fork, as it computes."""
    from campaigns import families as module

    made, module._Good.make = module._Good.make, lambda self, name, make: self.folder / name
    try:
        return families(inputs, folder / "good")
    finally:
        module._Good.make = made


def _batch(tries: list[tuple[Family, int, bool]], folder: Path, tally: Tally) -> int:
    """Try them in one child; returns how many were tried: fewer if one hangs, or ends the process."""
    told = folder / "told.jsonl"
    told.unlink(missing_ok=True)

    def work() -> int:
        forks.limit_memory(_MEMORY)
        with told.open("a") as file:
            for family, number, real in tries:
                answer = attempt(family, number, folder / "try", real)
                file.write(json.dumps(answer) + "\n")
                file.flush()
        return 0

    child = forks.Child(work, folder, folder / "batch.log")
    seen, since = 0, time.monotonic()
    while child.wait(0.05) is None:
        now = _lines(told)
        if len(now) > seen:
            seen, since = len(now), time.monotonic()
        if time.monotonic() - since > _TIME:
            child.kill()
            child.wait(_TIME)
            break
    answers = [json.loads(line) for line in _lines(told)]
    for (family, number, real), answer in zip(tries, answers, strict=False):
        _count(tally, family, number, real, answer)
    if len(answers) < len(tries):
        family, number, real = tries[len(answers)]
        how = "hangs" if child.returncode == -9 else f"ends the process ({child.returncode})"
        log = (child.lines() or [""])[-1]
        _count(tally, family, number, real, {"way": "lost", "problems": [f"{how}: {log[:200]}"], "line": _line(folder)})
    return min(len(answers) + 1, len(tries))


def _count(tally: Tally, family: Family, number: int, real: bool, answer: dict) -> None:
    problems = [*answer["problems"], answer["line"]] if answer["problems"] else []
    way = f"{answer['way']}{', a process of its own' if real else ''}"
    tally.add(family.name, 1, problems, f"{family.name}, number {number}", {way: 1})


def _line(folder: Path) -> str:
    return (folder / "line.txt").read_text() if (folder / "line.txt").exists() else ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def attempt(family: Family, number: int, folder: Path, real: bool) -> dict:
    """Spoil an input, give it to its command, and judge the answer."""
    chance = random.Random(number)
    os.chdir(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(family.good, folder)
    spoiled = family.spoil(folder, chance)
    line = [text.replace("\ud7ff", "?") for text in family.command(chance)]
    (folder.parent / "line.txt").write_text(f"{spoiled}: {line}")
    before = {p for p in folder.rglob("*")}
    log = folder.parent / "answer.log"
    if real and not any("\0" in text for text in line):
        code, crash = _as_process(line, folder, log)
    else:
        code, crash = _in_here(line, folder, log)
    told = [text for text in log.read_text(errors="replace").replace("\r", "\n").splitlines() if text.strip()]
    problems = judge(code, crash, told)
    if code != 0:
        problems += _in_the_way(folder, before)
    return {"way": "works" if code == 0 else "one line", "problems": problems, "line": f"{spoiled}: {line}"[:600]}


def _in_the_way(folder: Path, before: set[Path]) -> list[str]:
    """A line for each thing that a failed command has left where the next one trips over it."""
    from tensorf.files import is_partial

    new = {p for p in folder.rglob("*") if p.is_file()} - before
    lines = [f"left {p.relative_to(folder)}" for p in new if is_partial(p) or p.name == ".lock"]
    lines += [f"left {p.relative_to(folder)} of a failed run" for p in new if p.name == "metrics.json"]
    out = folder / "out"
    if out.is_dir() and any(out.iterdir()) and not (out / "config.yaml").exists():
        lines.append(f"left out/ without a config.yaml: {sorted(p.name for p in out.iterdir())[:5]}")
    return lines + ([] if not new else [text for text in damages(out)])


def _in_here(line: list[str], folder: Path, log: Path) -> tuple[int | None, str | None]:
    """(exit code, traceback) of a command in this process, whose stderr goes to `log`."""
    import cds3d.commands.sweep

    cds3d.commands.sweep.run_pool = lambda *_, **__: None  # a sweep's edits are other commands' inputs
    kept, file = os.dup(2), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.chdir(folder)
    try:
        return forks.run_command(line[0], line[1:]), None
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1, None
    except BaseException:
        last = traceback.format_exc().strip().splitlines()
        return None, " | ".join(text.strip() for text in last[-7:])
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)


def _as_process(line: list[str], folder: Path, log: Path) -> tuple[int, None]:
    command = [sys.executable, "-m", "cds3d", *line]
    environment = {**os.environ, "PYTHONPATH": str(forks.ROOT)}
    with log.open("wb") as file:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
                              env=environment, timeout=2 * _TIME, check=False)  # fmt: skip
    return done.returncode, None
