"""The benchmark of images: edits, figures, tables and sheets, and the page of a user study."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from cds3d.bench import image_table, pie_bench, report, user_study
from cds3d.bench.image_runs import claim, folder_items, plan, run_all
from cds3d.bench.items import Failure, Item
from cds3d.options import load_config, pick_device
from tensorf.errors import UserError
from tensorf.files import write_text

log = logging.getLogger("cds3d")

WORDING = "the prompts as they are given to the edit, without a template"


@dataclass(frozen=True)
class ImageBench:
    """What scripts/bench_images.py is asked for. folder, or pie_bench: the images; clip, dino, lpips: the judges."""

    folder: Path | None
    pie_bench: Path | None
    src: str | None
    tgt: str | None
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    options: tuple[str, ...]
    clip: str | None
    dino: str | None
    lpips: str | None
    output: Path
    limit: int | None = None
    published: bool = False
    sheet_rows: int = 40
    study: Path | None = None
    study_seed: int | None = None
    jobs: int = 1
    engine: str = "pool"
    address: str | None = None


def bench_images(ask: ImageBench) -> list[Failure]:
    """Do what `ask` says, write images.json, images.md and images.png into its output, and return what failed.

    UserError, before anything is written, for what does not exist, and at the end if every image failed. What is
    finished is not done again.
    """
    if ask.jobs < 1:
        raise UserError(f"--jobs {ask.jobs} has to be a whole number above 0")
    if ask.engine == "pool" and ask.address is not None:
        raise UserError("--address goes with --engine ray")
    items = _items(ask)
    chosen = plan(list(ask.methods), list(ask.baselines), list(ask.options))
    image_table.check_judges(ask.clip, ask.dino, ask.lpips)
    if ask.study is not None:
        user_study.check_page(ask.study)
    claim(ask.output, items, chosen)
    failures = run_all(items, chosen, ask.output, ask.jobs, ask.engine, ask.address)
    device = pick_device(load_config("edit", next(iter(chosen.values()))).device)
    judges = image_table.load_judges(ask.clip, ask.dino, ask.lpips, device, published=ask.published)
    judging, columns = image_table.table_figures, image_table.COLUMNS
    if ask.pie_bench is not None:
        judging = pie_bench.published_pie_figures if ask.published else pie_bench.pie_figures
        columns = pie_bench.COLUMNS
    runs, unjudged = image_table.judge_all(items, list(chosen), ask.output, judges, judging)
    failures += unjudged
    _report(ask, items, list(chosen), runs, failures, judges, columns)
    if not runs:
        raise UserError(f"no image was edited: {failures[0].reason}")
    if ask.study is not None:
        _study(ask, items, list(chosen), failures)
    return failures


def _items(ask: ImageBench) -> list[Item]:
    if (ask.folder is None) == (ask.pie_bench is None):
        raise UserError("give either a folder of images or --pie-bench FOLDER")
    if ask.limit is not None and ask.limit < 1:
        raise UserError(f"--limit {ask.limit} has to be a whole number above 0")
    if ask.pie_bench is None:
        if ask.published:
            raise UserError("--published goes with --pie-bench")
        return folder_items(ask.folder, ask.src, ask.tgt)[: ask.limit]
    if ask.src or ask.tgt:
        raise UserError("--pie-bench brings its own prompts: leave out --src and --tgt")
    return pie_bench.read_mapping(ask.pie_bench, ask.limit)


def _report(ask, items, methods, runs, failures, judges, columns) -> None:
    """Write and print the table, and list what failed."""
    summary = report.summarise([run | {"pool": "overall"} for run in runs])
    if len({run["task"] for run in runs}) > 1:
        summary = report.summarise(runs) | summary
    text = image_table.table(summary, columns, "type of edit")
    if judges.missing:
        text += "\n" + "".join(f"{line}\n" for line in judges.missing)
    if failures:
        text += f"\n{len(failures)} failed:\n\n" + "".join(f"- {f.name}, {f.method}: {f.reason}\n" for f in failures)
    result = {
        "settings": json.loads((ask.output / "settings.json").read_text()),
        "judges": judges.named(ask.clip, ask.dino, ask.lpips),
        "clip_accuracy_wording": WORDING,
        "published_pie_bench": ask.published,
        "summary": summary,
        "runs": [run | {"figures": _without_nan(run["figures"])} for run in runs],
        "failed": [vars(f) for f in failures],
    }
    write_text(ask.output / "images.md", text)
    write_text(ask.output / "images.json", json.dumps(result, indent=1) + "\n")
    image_table.sheet(ask.output / "images.png", items[: ask.sheet_rows], methods, ask.output)
    print(text)
    if len(items) > ask.sheet_rows:
        log.info("images.png shows the first %d images of %d: --sheet-rows sets it", ask.sheet_rows, len(items))
    log.info("%s, with images.json and images.png beside it", ask.output / "images.md")


def _without_nan(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no nan: null."""
    return {k: None if math.isnan(v) else v for k, v in figures.items()}


def _study(ask: ImageBench, items: list[Item], methods: list[str], failures: list[Failure]) -> None:
    """The page shows images that every method has edited."""
    failed = {f.name for f in failures}
    shown = [item for item in items if item.name not in failed]
    if not shown:
        log.warning("%s: not written: no image was edited by every method", ask.study)
        return
    edits = [{m: ask.output / m / item.name / "edited.png" for m in methods} for item in shown]
    key = user_study.write_page(ask.study, shown, edits, ask.study_seed)
    log.info("%s: send this page; %s tells which method is which: keep it to yourself", ask.study, key)
