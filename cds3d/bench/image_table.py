"""The figures of edited images, as rows of the paper's Tables 1 and 3, and a contact sheet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from cds3d.bench.items import Failure, Item, picture
from cds3d.bench.report import cell
from cds3d.metrics.clip import Clip, clip_direction, clip_score, is_nearer_to_target
from cds3d.metrics.dino import Dino
from cds3d.metrics.lpips import Lpips
from cds3d.metrics.pretrained import check_location
from cds3d.metrics.psnr import psnr
from tensorf.errors import UserError, reason
from tensorf.files import atomic

log = logging.getLogger("cds3d")

# Key of the figures, heading, decimals.
Columns = tuple[tuple[str, str, int], ...]
COLUMNS: Columns = (
    ("accuracy", "CLIP accuracy", 3),
    ("structure_distance", "structure distance", 4),
    ("lpips", "LPIPS", 3),
    ("psnr_to_source_db", "PSNR to source, dB", 1),
    ("seconds", "s", 1),
    ("peak_memory_mb", "MB", 0),
)
_CELL, _BAR = 160, 16  # pixels of the contact sheet: a picture's square, a line of text


@dataclass
class Judges:
    """The networks that could be loaded, and a line for each that could not."""

    clip: Clip | None = None
    dino: Dino | None = None
    lpips: Lpips | None = None
    missing: list[str] = field(default_factory=list)

    def named(self, clip: str | None, dino: str | None, lpips: str | None) -> dict[str, str | None]:
        """For the record: what was loaded from where."""
        return {
            "clip": clip if self.clip else None,
            "dino": dino if self.dino else None,
            "lpips": f"{lpips} ({self.lpips.net})" if self.lpips else None,
        }


def check_judges(clip: str | None, dino: str | None, lpips: str | None) -> None:
    """UserError if a path leads nowhere. Nothing is loaded: the edits come first, and need the memory."""
    for option, path in (("--clip", clip), ("--dino", dino)):
        if path is not None:
            check_location(option, path)
    if lpips is not None and not Path(lpips).is_file():
        raise UserError(f"--lpips {lpips}: no such file")


def load_judges(
    clip: str | None, dino: str | None, lpips: str | None, device: torch.device, published: bool = False
) -> Judges:
    """Load what is given. What is not given, or cannot be loaded, is told in `missing`.

    published: pictures are resized as PIE-Bench's authors did for DINO, by a torchvision that did not antialias.
    """
    judges = Judges()
    for name, kind, path, columns in (
        ("clip", Clip, clip, "CLIP figures"),
        ("dino", partial(Dino, antialias=not published), dino, "the structure distance"),
        ("lpips", Lpips, lpips, "LPIPS"),
    ):
        if path is None:
            judges.missing.append(f"{columns}: left out, for want of weights: give --{name} (see docs/metrics.md)")
            continue
        try:
            setattr(judges, name, kind(path, device))
        except UserError as error:
            judges.missing.append(f"{columns}: left out: {error}")
    return judges


Judging = Callable[[Item, Tensor, Tensor, Judges], dict[str, float]]


def table_figures(item: Item, source: Tensor, edited: Tensor, judges: Judges) -> dict[str, float]:
    """source, edited: (H, W, 3) in [0, 1] of one size.

    accuracy: 1 if CLIP puts the edit nearer to the target prompt, else 0. clip_score: of the edit and the target
    prompt. clip_direction, structure_distance, lpips, psnr_to_source_db: edit against source. Without their network
    figures are left out.
    """
    figures = {"psnr_to_source_db": psnr(edited, source)}
    if judges.clip is not None:
        before, after = judges.clip.image(source), judges.clip.image(edited)
        src, tgt = judges.clip.text(item.src), judges.clip.text(item.tgt)
        figures["accuracy"] = float(is_nearer_to_target(after, src, tgt))
        figures["clip_score"] = clip_score(after, tgt)
        figures["clip_direction"] = clip_direction(before, after, src, tgt)
    if judges.dino is not None:
        figures["structure_distance"] = judges.dino.structure_distance(edited, source)
    if judges.lpips is not None:
        figures["lpips"] = judges.lpips.distance(edited, source)
    return figures


def judge_all(
    items: list[Item], methods: list[str], output: Path, judges: Judges, judging: Judging
) -> tuple[list[dict], list[Failure]]:
    """Runs as `report.summarise` takes them, one an edit that is finished; and those that could not be judged."""
    runs, failures = [], []
    for case, item in enumerate(items):
        for method in methods:
            folder = output / method / item.name
            if not (folder / "metrics.json").exists():
                continue
            try:
                metrics = json.loads((folder / "metrics.json").read_text())
                edited = picture(folder / "edited.png")
                figures = judging(item, picture(item.path, tuple(edited.shape[:2])), edited, judges)
                figures |= {key: float(metrics[key]) for key in ("seconds", "peak_memory_mb")}
            except Exception as error:  # of one image: a torn picture, or one too small for a network
                failures.append(Failure(method, item.name, reason(error)))
                log.warning("%s, %s: cannot be judged: %s", item.name, method, reason(error))
                continue
            run = {"task": item.kind, "case": case, "objective": method, "seed": 0, "image": item.name}
            runs.append({**run, "prompts": [item.src, item.tgt], "figures": figures})
    return runs, failures


def table(summary: dict[str, dict[str, dict]], columns: Columns, label: str = "images of") -> str:
    """Markdown of `report.summarise`'s means, with half of their 95% interval; columns without a figure are left out.

    label: the heading of the first column, which is left out where there is one task only.
    """
    rows = [(task, method, row) for task, by_method in summary.items() for method, row in by_method.items()]
    columns = tuple(c for c in columns if any(c[0] in row for *_, row in rows))
    several = len(summary) > 1
    heads = [*([label] if several else []), "method", "images", *(heading for _, heading, _ in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for task, method, row in rows:
        cells = [*([task] if several else []), method, str(row["cases"]), *(cell(row, k, d) for k, _, d in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(path: Path, items: list[Item], methods: list[str], output: Path) -> None:
    """One PNG: a row an image, the source first, then each method's edit; what is not there stays white."""
    width, height = _CELL * (1 + len(methods)), _BAR + len(items) * (_CELL + _BAR)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for column, heading in enumerate(("source", *methods)):
        draw.text((column * _CELL + 4, 2), heading, fill="black")
    for row, item in enumerate(items):
        top = _BAR + row * (_CELL + _BAR)
        title = f'{item.name}: "{item.src}" to "{item.tgt}"'
        draw.text((4, top + 2), title.encode("ascii", "replace").decode(), fill="black")  # as far as Pillow's font goes
        files = [item.path, *(output / method / item.name / "edited.png" for method in methods)]
        for column, file in enumerate(files):
            try:
                shown = Image.fromarray((picture(file) * 255).round().byte().numpy())
            except (UserError, OSError):
                continue
            shown = ImageOps.contain(shown, (_CELL, _CELL), Image.LANCZOS)
            left = column * _CELL + (_CELL - shown.width) // 2
            page.paste(shown, (left, top + _BAR + (_CELL - shown.height) // 2))
    with atomic(path) as partial:
        page.save(partial)
