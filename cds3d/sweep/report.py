"""A sweep's table: JSON, CSV, and a page with pictures that sorts and filters without a server.

A row's `run` is the folder of its run. In the files it is relative to theirs, so that a sweep's folder can be renamed,
and be named from anywhere.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cds3d.sweep.plan import Task
from cds3d.sweep.pool import Work
from tensorf.files import write_text
from tensorf.untrusted import load_json

_SETTINGS = ("scene", "src", "tgt", "objective", "seed", "options")
_FIGURES = ("edit_gain_db", "kept_psnr_db", "structure", "accuracy", "psnr_to_source_db", "view_consistency_db")
_FIGURES += ("clip_direction", "edit_seconds", "edit_peak_memory_mb")


_MEDIA = ("comparison.mp4", "views/00.png")
_SHARE, _LEAST = 0.05, 3.0  # of the time for tables, and seconds between two of them


def rows(tasks: Sequence[Task], works: Sequence[Work], attempts: Mapping[str, int] | None = None) -> list[dict]:
    """One for each edit: its settings, its state (done, failed, waiting), why it failed, and its figures.

    attempts: of earlier calls, by the name of the run's folder, for edits that this call has not tried.
    """
    by_folder = {work.folder: work for work in works}
    table = []
    for task in tasks:
        work = by_folder[task.folder]
        row = {name: getattr(task, name) for name in _SETTINGS[:-1]} | {"options": shlex.join(task.extra)}
        row |= {"state": "done" if work.done else "failed" if work.failure else "waiting", "failure": work.failure}
        figures = work.figures or {}
        row |= {name: figures[name] for name in _FIGURES if name in figures}
        tried = work.attempts or (attempts or {}).get(task.folder.name, 0)
        table.append(row | {"run": str(task.folder), "attempts": tried})
    return table


class Reporter:
    """Writes the table of a sweep when something has changed, and seldom enough to cost little however long it is.

    Call `changed` at each change, `tick` now and then, and `write` in the end.
    """

    def __init__(self, output: Path, tasks: Sequence[Task], works: Sequence[Work]):
        self._output, self._tasks, self._works = output, tasks, works
        earlier, now = _earlier_rows(output), {task.folder.name for task in tasks}
        self._attempts = {name: row.get("attempts", 0) for name, row in earlier.items()}
        self._others = [row for name, row in earlier.items() if name not in now and _is_done(row)]
        self.page = output / "index.html"
        self._due, self._next = False, 0.0

    def changed(self) -> None:
        self._due = True

    def tick(self) -> None:
        if self._due and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        begun = time.monotonic()
        write_report(self._output, [*rows(self._tasks, self._works, self._attempts), *self._others])
        now = time.monotonic()
        self._due, self._next = False, now + max(_LEAST, (now - begun) / _SHARE)


def _earlier_rows(output: Path) -> dict[str, dict]:
    """The rows of the table that is there, by the names of the runs' folders.

    All runs of a sweep lie in `runs/`: only the name counts, for older tables have paths from where the command was
    given, and a run twice if it was given from two places.
    """
    found: dict[str, dict] = {}
    try:
        for row in load_json(output / "sweep.json"):
            name = Path(row["run"]).name
            found.setdefault(name, row | {"run": str(output / "runs" / name)})
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return found


def _is_done(row: dict) -> bool:
    """Whether an earlier sweep has done the run of this row, and the run is still there."""
    return row.get("state") == "done" and (Path(row["run"]) / "metrics.json").exists()


def write_report(output: Path, table: list[dict]) -> None:
    """sweep.json, sweep.csv and index.html in `output`."""
    table = [row | {"run": _relative(row["run"], output)} for row in table]
    write_text(output / "sweep.json", json.dumps(table, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(output / "sweep.csv", text.getvalue())
    write_text(output / "index.html", _page(output, table, columns))


def _relative(run: str, output: Path) -> str:
    return Path(os.path.relpath(run, output)).as_posix()


def _page(output: Path, table: list[dict], columns: list[str]) -> str:
    shown = [c for c in columns if c not in ("run", "failure") and any(row.get(c) not in (None, "") for row in table)]
    names = [html.escape(c.replace("_", " ")) for c in shown]  # which wrap
    head = "".join(f'<th onclick="sortBy({i + 1})">{name}</th>' for i, name in enumerate(names))
    body = "".join(_row(output, row, shown) for row in table)
    return _PAGE.replace("HEAD", head).replace("BODY", body)


def _row(output: Path, row: dict, shown: list[str]) -> str:
    media = _media(output, row["run"]) if row["state"] == "done" else ""
    kinds = {c: ' class="options"' if c == "options" else "" for c in shown}
    cells = "".join(f"<td{kinds[c]}>{html.escape(_text(row.get(c)))}</td>" for c in shown)
    failure = f'<div class="failure">{html.escape(row["failure"])}</div>' if row["failure"] else ""
    return f'<tr class="{row["state"]}"><td>{media}{failure}</td>{cells}</tr>\n'


def _media(output: Path, run: str) -> str:
    """The run's video, or picture, which a browser loads once it is scrolled to. run: its folder, from `output`."""
    name = next((name for name in _MEDIA if (output / run / name).exists()), None)
    if name is None:
        return ""
    source = html.escape(quote(f"{run}/{name}"))
    if name.endswith(".png"):
        return f'<img src="{source}" loading="lazy">'
    still = source.removesuffix(name) + _MEDIA[1]
    return f'<video src="{source}" controls loop muted preload="none" poster="{still}"></video>'


def _text(value) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


_PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, minimum-scale=1"><title>cds3d sweep</title>
<style>
body { font: 14px sans-serif; margin: 1em } table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ccc; padding: 4px 6px; text-align: left; vertical-align: top; background: #fff }
th { cursor: pointer; position: sticky; top: 0; z-index: 1 }
.options { font-size: 11px; min-width: 9em; overflow-wrap: break-word }
td:first-child, th:first-child { position: sticky; left: 0 } th:first-child { z-index: 2 }
img, video, .failure { display: block; width: 260px } .failure { color: #b00; overflow-wrap: anywhere }
tr.waiting { color: #888 } input { width: 30em; max-width: 90%; padding: 4px; margin-bottom: 1em }
@media (max-width: 700px) { body { font-size: 12px } img, video, .failure { width: 130px } }
</style>
<input placeholder="only rows with these words" oninput="filterBy(this.value)">
<table><thead><tr><th></th>HEAD</tr></thead><tbody>
BODY</tbody></table>
<script>
const body = document.querySelector("tbody")
let last = 0, sign = 1
function sortBy(column) {
  sign = column === last ? -sign : 1
  last = column
  const value = row => row.cells[column].textContent
  const compare = (a, b) => isNaN(value(a)) || isNaN(value(b)) ? value(a).localeCompare(value(b)) : value(a) - value(b)
  // Rows without a figure come last whichever way: to isNaN, an empty text is a 0.
  const order = (a, b) => (value(a) === "") - (value(b) === "") || sign * compare(a, b)
  for (const row of [...body.rows].sort(order)) body.append(row)
}
function filterBy(text) {
  const words = text.toLowerCase().split(" ").filter(word => word)
  for (const row of body.rows) {
    const found = row.textContent.toLowerCase()
    row.hidden = !words.every(word => found.includes(word))
  }
}
</script>
"""
