"""From runs to a summary: means with confidence intervals, curves, comparison at equal progress, table and sheets."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_RESAMPLES = 2000
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


def interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of the mean, by bootstrap; of one value it is that value."""
    values = np.asarray(values)
    picks = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def summarise(runs: list[dict]) -> dict[str, dict[str, dict]]:
    """summary[task][objective]: the mean of each figure, its interval as <figure>_ci, and the number of runs."""
    grouped: dict = defaultdict(lambda: defaultdict(list))
    for run in runs:
        grouped[run["task"]][run["objective"]].append(run["figures"])
    return {
        task: {objective: _means(figures) for objective, figures in by_objective.items()}
        for task, by_objective in grouped.items()
    }


def _means(figures: list[dict]) -> dict:
    row: dict = {"runs": len(figures)}
    for key in figures[0]:
        values = [f[key] for f in figures if not math.isnan(f[key])]
        if values:
            row[key] = round(float(np.mean(values)), 4)
            row[key + "_ci"] = [round(v, 4) for v in interval(values)]
    return row


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


def at_gain(stages: list[dict], gain: float, key: str) -> float:
    """The figure `key` where a run's gain first reaches `gain`, linear between stages."""
    before = stages[0]
    for now in stages:
        if now["edit_gain_db"] >= gain:
            step = now["edit_gain_db"] - before["edit_gain_db"]
            share = 1.0 if step <= 0 else (gain - before["edit_gain_db"]) / step
            return before[key] + share * (now[key] - before[key])
        before = now
    return stages[-1][key]


def equal_progress(runs: list[dict], first: str = "cds", second: str = "dds") -> dict[str, dict]:
    """Per task: how much more `first` keeps than `second` at the largest gain that both reach in a case.

    Cases in which either never gains anything are left out, and counted.
    """
    by_case: dict = defaultdict(dict)
    for run in runs:
        if run.get("stages") and run["objective"] in (first, second):
            by_case[run["task"], run["case"], run["seed"]][run["objective"]] = run["stages"]
    result: dict = {}
    for (task, _, _), pair in by_case.items():
        if len(pair) < 2:
            continue
        row = result.setdefault(task, {"cases": 0, "left_out": 0, "gain_db": [], "kept_db": [], "structure": []})
        gain = min(max(s["edit_gain_db"] for s in stages) for stages in pair.values())
        if gain <= 0:
            row["left_out"] += 1
            continue
        row["cases"] += 1
        row["gain_db"].append(gain)
        for name, key in (("kept_db", "kept_psnr_db"), ("structure", "structure")):
            row[name].append(at_gain(pair[first], gain, key) - at_gain(pair[second], gain, key))
    for row in result.values():
        for name in ("gain_db", "kept_db", "structure"):
            values = row.pop(name)
            if values:
                row[name] = round(float(np.mean(values)), 4)
                row[name + "_ci"] = [round(v, 4) for v in interval(values)]
    return result


def table(summary: dict, bounds: dict, progress: dict) -> str:
    """Markdown."""
    lines = ["| task | objective | runs | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for task, rows in summary.items():
        for name, row in {**bounds.get(task, {}), **rows}.items():
            label = name if name in rows else f"({name})"
            cells = [cell(row, key, decimals) for key, _, decimals in COLUMNS]
            lines.append(f"| {task} | {label} | {row['runs']} | " + " | ".join(cells) + " |")
    if progress:
        lines += ["", "CDS less DDS at the largest gain that both reach in a case:", ""]
        lines += ["| task | cases | at gain, dB | kept, dB | edge F1 |", "|---|---|---|---|---|"]
        for task, row in progress.items():
            cells = [cell(row, key, d) for key, d in (("gain_db", 1), ("kept_db", 1), ("structure", 3))]
            lines.append(f"| {task} | {row['cases']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict, key: str, decimals: int) -> str:
    """A mean and half of its interval, for a table; empty where there is none."""
    if key not in row:
        return ""
    low, high = row.get(key + "_ci", (row[key], row[key]))
    spread = f" ±{(high - low) / 2:.{decimals}f}" if row.get("runs", row.get("cases", 1)) > 1 else ""
    return f"{row[key]:.{decimals}f}{spread}"


def contact_sheet(path: Path, rows: list[tuple[str, list[Path]]], headings: list[str]) -> None:
    """One PNG: a row of pictures, all of one size, a case, under its title; a heading over each column."""
    pictures = [(title, [Image.open(p).convert("RGB") for p in files]) for title, files in rows]
    width, height = pictures[0][1][0].size
    bar = 16
    sheet = Image.new("RGB", (width * len(headings), bar + len(rows) * (height + bar)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, heading in enumerate(headings):
        draw.text((k * width + 4, 2), heading, fill="black")
    for r, (title, images) in enumerate(pictures):
        top = bar + r * (height + bar)
        draw.text((4, top + 2), title, fill="black")
        for k, image in enumerate(images):
            sheet.paste(image.resize((width, height)), (k * width, top + bar))
    sheet.save(path)
