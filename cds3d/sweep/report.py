"""A sweep's table: JSON, CSV, and a page with pictures that sorts and filters without a server."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import time
from collections.abc import Sequence
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


def rows(tasks: Sequence[Task], works: Sequence[Work]) -> list[dict]:
    """One for each edit: its settings, its state (done, failed, waiting), why it failed, and its figures."""
    by_folder = {work.folder: work for work in works}
    table = []
    for task in tasks:
        work = by_folder[task.folder]
        row = {name: getattr(task, name) for name in _SETTINGS[:-1]} | {"options": " ".join(task.extra)}
        row |= {"state": "done" if work.done else "failed" if work.failure else "waiting", "failure": work.failure}
        figures = work.figures or {}
        row |= {name: figures[name] for name in _FIGURES if name in figures}
        table.append(row | {"run": str(task.folder), "attempts": work.attempts})
    return table


class Reporter:
    """Writes the table of a sweep when something has changed, and seldom enough to cost little however long it is.

    Call `changed` at each change, `tick` now and then, and `write` in the end.
    """

    def __init__(self, output: Path, tasks: Sequence[Task], works: Sequence[Work]):
        self._output, self._tasks, self._works = output, tasks, works
        self._earlier = _earlier_rows(output, {str(task.folder) for task in tasks})
        self.page = output / "index.html"
        self._due, self._next = False, 0.0

    def changed(self) -> None:
        self._due = True

    def tick(self) -> None:
        if self._due and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        begun = time.monotonic()
        write_report(self._output, [*rows(self._tasks, self._works), *self._earlier])
        now = time.monotonic()
        self._due, self._next = False, now + max(_LEAST, (now - begun) / _SHARE)


def _earlier_rows(output: Path, now: set[str]) -> list[dict]:
    """Rows of runs that an earlier sweep has done in this folder, that are still there and that this one has not."""
    try:
        table = load_json(output / "sweep.json")
        done = [row for row in table if row["state"] == "done" and row["run"] not in now]
        return [row for row in done if (Path(row["run"]) / "metrics.json").exists()]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write_report(output: Path, table: list[dict]) -> None:
    """sweep.json, sweep.csv and index.html in `output`."""
    write_text(output / "sweep.json", json.dumps(table, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(output / "sweep.csv", text.getvalue())
    write_text(output / "index.html", _page(output, table, columns))


def _page(output: Path, table: list[dict], columns: list[str]) -> str:
    shown = [c for c in columns if c not in ("run", "failure") and any(row.get(c) not in (None, "") for row in table)]
    head = "".join(f'<th onclick="sortBy({i + 1})">{html.escape(c)}</th>' for i, c in enumerate(shown))
    body = "".join(_row(output, row, shown) for row in table)
    return _PAGE.replace("HEAD", head).replace("BODY", body)


def _row(output: Path, row: dict, shown: list[str]) -> str:
    media = _media(output, Path(row["run"])) if row["state"] == "done" else ""
    cells = "".join(f"<td>{html.escape(_text(row.get(c)))}</td>" for c in shown)
    failure = f'<div class="failure">{html.escape(row["failure"])}</div>' if row["failure"] else ""
    return f'<tr class="{row["state"]}"><td>{media}{failure}</td>{cells}</tr>\n'


def _media(output: Path, run: Path) -> str:
    """The run's video, or picture, which a browser loads once it is scrolled to."""
    name = next((name for name in _MEDIA if (run / name).exists()), None)
    if name is None:
        return ""
    source = html.escape(quote(Path(os.path.relpath(run / name, output)).as_posix()))
    if name.endswith(".png"):
        return f'<img src="{source}" width="420" loading="lazy">'
    still = source.removesuffix(name) + _MEDIA[1]
    return f'<video src="{source}" width="420" controls loop muted preload="none" poster="{still}"></video>'


def _text(value) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>cds3d sweep</title>
<style>
body { font: 14px sans-serif; margin: 1em } table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ccc; padding: 4px 8px; text-align: left; vertical-align: top }
th { cursor: pointer; position: sticky; top: 0; background: #fff } .failure { color: #b00; max-width: 420px }
tr.waiting { color: #888 } input { width: 30em; padding: 4px; margin-bottom: 1em }
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
  for (const row of [...body.rows].sort((a, b) => sign * compare(a, b))) body.append(row)
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
