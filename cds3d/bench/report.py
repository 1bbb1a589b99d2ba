"""From runs to a summary: means with confidence intervals, curves, comparison at equal progress, table and sheets."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cds3d.bench.tasks import SHIPPED_FIELDS
from tensorf.files import atomic

# Student's t, 97.5%, for 1, 2, ... degrees of freedom, and for more.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_T += (2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
_T_OF_MORE = ((40, 2.042), (60, 2.021), (120, 2.0), (math.inf, 1.98))  # below so many degrees; never too narrow
# What a table shows: key of the figures, heading, decimals.
COLUMNS = (
    ("edit_gain_db", "gain, dB", 1),
    ("kept_psnr_db", "kept, dB", 1),
    ("edit_truth_ssim", "SSIM", 2),
    ("structure", "edge F1", 2),
    ("accuracy", "accuracy", 2),
    ("depth_error", "depth error", 3),
    ("view_consistency_db", "consistency, dB", 1),
    ("seconds", "s", 0),
    ("peak_memory_mb", "MB", 0),
)
COMPARED = ("edit_gain_db", "kept_psnr_db", "structure")  # scene by scene
_WIDEST = 5  # columns of a contact sheet; more are wrapped


def interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of a mean from n independent values: Student's t. One value has none: nan."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n)
    t = _T[n - 2] if n - 1 <= len(_T) else next(t for below, t in _T_OF_MORE if n - 1 < below)
    half = t * spread
    return mean - half, mean + half


def proportion_interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of a share, from n values between 0 and 1 (Wilson's)."""
    n, p, z = len(values), float(np.mean(values)), 1.96
    if n < 2:
        return math.nan, math.nan
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half / (1 + z * z / n), middle + half / (1 + z * z / n)


def summarise(runs: list[dict]) -> dict[str, dict[str, dict]]:
    """summary[task][objective]: the mean of each figure, its interval as <figure>_ci, the number of cases and of runs.

    Several seeds of a case count as one: their mean. Where there is one case only, the seeds are what varies.
    """
    cases = defaultdict(set)
    for run in runs:
        cases[_pool(run)].add((run["task"], run["case"]))
    grouped: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        unit = (run["task"], run["case"], None if len(cases[_pool(run)]) > 1 else run["seed"])
        grouped[_pool(run)][run["objective"]][unit].append(run["figures"])
    return {
        task: {objective: _means(units) for objective, units in by_objective.items()}
        for task, by_objective in grouped.items()
    }


def _pool(run: dict) -> str:
    return run.get("pool", run["task"])


def _means(units: dict[tuple, list[dict]]) -> dict:
    """units: figures of the runs by (task, case, seed)."""
    cases, runs = {unit[:2] for unit in units}, list(units.values())
    row: dict = {"cases": len(cases), "runs": sum(len(unit) for unit in runs)}
    for key in runs[0][0]:
        values = [[f[key] for f in unit if not math.isnan(f[key])] for unit in runs]
        _put(row, key, [float(np.mean(v)) for v in values if v])
    return row


def _put(row: dict, key: str, values: list[float]) -> None:
    """The mean of independent values under `key`, their interval under key_ci; nothing where there is none."""
    if values:
        row[key] = round(float(np.mean(values)), 4)
    if len(values) > 1:
        low, high = (proportion_interval if key == "accuracy" else interval)(values)
        row[key + "_ci"] = [round(low, 4), round(high, 4)]


def curves(runs: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """curves[task][objective]: the means at each stage of the runs."""
    grouped: dict = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.get("stages"):
            grouped[run["task"]][run["objective"]].append(run["stages"])
    return {
        task: {
            objective: [
                {key: round(float(np.nanmean([s[k][key] for s in several])), 4) for key in several[0][k]}
                for k in range(len(several[0]))
            ]
            for objective, several in by_objective.items()
        }
        for task, by_objective in grouped.items()
    }


def at_gain(stages: list[dict], gain: float, key: str) -> float | None:
    """The figure `key` where a run's gain first reaches `gain`, linear between stages.

    None where it has reached it by the first stage already (what was kept on the way there is not known), or never.
    """
    for before, now in zip(stages, stages[1:]):
        if stages[0]["edit_gain_db"] < gain <= now["edit_gain_db"]:
            share = (gain - before["edit_gain_db"]) / (now["edit_gain_db"] - before["edit_gain_db"])
            return before[key] + share * (now[key] - before[key])
    return None


def equal_progress(runs: list[dict]) -> dict[str, dict]:
    """Per task: how much more CDS keeps than DDS at the largest gain that both reach in a case.

    Several seeds of a case count as one: their mean. Cases without such a gain, or with one that a run has reached by
    its first stage, are left out, and counted.
    """
    by_case: dict = defaultdict(dict)
    for run in runs:
        if run.get("stages") and run["objective"] in ("cds", "dds"):
            key = (_pool(run), run["task"], run["case"], run["seed"])
            by_case[key][run["objective"]] = run["stages"]
    result: dict = {}
    found: dict = defaultdict(lambda: defaultdict(list))  # (pool, task, case) -> figures, one a seed
    left_out: dict = defaultdict(set)
    for (pool, task, case, _), pair in by_case.items():
        if len(pair) < 2:
            continue
        result.setdefault(pool, {})
        gain = min(max(s["edit_gain_db"] for s in stages) for stages in pair.values())
        kept, structure = (
            [at_gain(pair[name], gain, key) for name in ("cds", "dds")] for key in ("kept_psnr_db", "structure")
        )
        if gain <= 0 or None in kept:
            left_out[pool].add((task, case))
            continue
        figures = found[pool, task, case]
        figures["gain_db"].append(gain)
        figures["kept_db"].append(kept[0] - kept[1])
        figures["structure"].append(structure[0] - structure[1])
    for pool, row in result.items():
        mine = {key[1:]: figures for key, figures in found.items() if key[0] == pool}
        row |= {"cases": len(mine), "left_out": len(left_out[pool] - mine.keys())}
        for name in ("gain_db", "kept_db", "structure"):
            values = [[v for v in figures[name] if not math.isnan(v)] for figures in mine.values()]
            _put(row, name, [float(np.mean(v)) for v in values if v])
    return result


def paired(runs: list[dict]) -> dict[str, dict[str, dict]]:
    """As `summarise`, of each method's figures less those of CDS in the same scene with the same seed.

    Scenes differ by more than methods do, and in these differences that cancels. Where there are several tasks, "all
    images" and "all fields" have the scenes of all of them. They stay apart, since fields are of the images' scenes.
    Shipped captures, on which settings were tuned, are in neither.
    """
    place = lambda run: (_pool(run), run["task"], run["case"], run["seed"])  # noqa: E731
    reference = {place(run): run["figures"] for run in runs if run["objective"] == "cds"}
    less = [
        run | {"figures": {key: run["figures"][key] - reference[place(run)][key] for key in COMPARED}}
        for run in runs
        if run["objective"] != "cds" and place(run) in reference
    ]
    judged = [run for run in less if run["task"].removeprefix("field-") not in SHIPPED_FIELDS]
    for pool, is_field in (("all images", False), ("all fields", True)):
        mine = [run | {"pool": pool} for run in judged if run["task"].startswith("field-") == is_field]
        less += mine if len({run["task"] for run in mine}) > 1 else []
    return summarise(less)


def table(summary: dict, bounds: dict, progress: dict, less: dict) -> str:
    """Markdown of `summarise`, of the figures of bounds, of `equal_progress`, and of `paired`."""
    lines = ["| task | objective | cases | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for task in dict.fromkeys([*summary, *bounds]):
        rows = summary.get(task, {})
        for name, row in {**bounds.get(task, {}), **rows}.items():
            label = name if name in rows else f"({name.replace('_', ' ')})"
            cells = [cell(row, key, decimals) for key, _, decimals in COLUMNS]
            lines.append(f"| {task} | {label} | {row['cases']} | " + " | ".join(cells) + " |")
    if progress:
        lines += ["", "CDS less DDS at the largest gain that both reach in a case:", ""]
        lines += ["| task | cases | left out | at gain, dB | kept, dB | edge F1 |", "|---|---|---|---|---|---|"]
        for task, row in progress.items():
            cells = [cell(row, key, d) for key, d in (("gain_db", 1), ("kept_db", 1), ("structure", 3))]
            lines.append(f"| {task} | {row['cases']} | {row['left_out']} | " + " | ".join(cells) + " |")
    if less:
        lines += ["", "Each method less CDS in the same scene:", ""]
        lines += ["| task | objective | cases | gain, dB | kept, dB | edge F1 |", "|---|---|---|---|---|---|"]
        for task, rows in less.items():
            for name, row in rows.items():
                cells = [cell(row, key, d) for key, d in zip(COMPARED, (1, 1, 2), strict=True)]
                lines.append(f"| {task} | {name} | {row['cases']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict, key: str, decimals: int) -> str:
    """A mean and half of its interval, of an accuracy both ends, for a table; empty where there is none.

    A share's interval is lopsided: that of 3 of 3 reaches far down, and not up.
    """
    if key not in row:
        return ""
    if key == "accuracy" and key + "_ci" in row:
        low, high = (min(max(end, 0.0), 1.0) for end in row[key + "_ci"])
        return f"{row[key]:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
    low, high = row.get(key + "_ci", (row[key], row[key]))
    spread = f" ±{(high - low) / 2:.{decimals}f}" if key + "_ci" in row else ""
    return f"{row[key]:.{decimals}f}{spread}"


def contact_sheet(path: Path, rows: list[tuple[str, list[Path]]], headings: list[str]) -> None:
    """One PNG or JPEG of `rows`: a case each, its title and its picture files, one for each of `headings`."""
    pictures = [(title, [Image.open(p).convert("RGB") for p in files]) for title, files in rows]
    with atomic(path) as partial:
        draw_sheet(pictures, headings).save(partial, **({"quality": 88} if path.suffix == ".jpg" else {}))


def draw_sheet(rows: list[tuple[str, list[Image.Image]]], headings: list[str]) -> Image.Image:
    """Pictures, all of the first one's size, in columns; a row a case, under its title ("" is none).

    More columns than fit at a page's width go into several bands of a row, each under its own headings. Letters are as
    tall as 2.8% of the sheet's width (20 of 720 pixels), or smaller where a heading would not fit over its column.
    """
    width, height = rows[0][1][0].size
    bands = math.ceil(len(headings) / _WIDEST)
    across = math.ceil(len(headings) / bands)
    letters = max(10, round(0.028 * across * width))
    bar = round(1.4 * letters)
    titles = sum(bool(title) for title, _ in rows)
    heading_bars = bands * len(rows) if bands > 1 else 1  # in one band, the headings over the first row serve all
    tall = (titles + heading_bars) * bar + bands * len(rows) * height
    sheet = Image.new("RGB", (across * width, tall), "white")
    draw = ImageDraw.Draw(sheet)

    def write(text: str, x: int, y: int, room: int) -> None:
        size = letters
        while size > 8 and draw.textlength(text, ImageFont.load_default(size)) > room - 8:
            size -= 1
        draw.text((x + 4, y + bar / 2), text, "black", ImageFont.load_default(size), anchor="lm")

    top = 0
    for number, (title, pictures) in enumerate(rows):
        for band in range(bands):
            here = slice(band * across, (band + 1) * across)
            if number == 0 or bands > 1:
                for k, heading in enumerate(headings[here]):
                    write(heading, k * width, top, width)
                top += bar
            if title and band == 0:
                write(title, 0, top, across * width)
                top += bar
            for k, picture in enumerate(pictures[here]):
                sheet.paste(picture.resize((width, height)), (k * width, top))
            top += height
    return sheet
