"""A blind user study of image edits: one HTML page to send, a key to keep, and the count of the answers.

The three questions are those of CDS's Table 2, answered from 1 to 5 for every edit.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from cds3d.bench.items import Item, picture
from cds3d.bench.report import cell, interval
from cds3d.bench.user_study_page import PAGE
from tensorf.errors import UserError, reason
from tensorf.files import write_text
from tensorf.untrusted import load_json

QUESTIONS = {
    "text": "Does the picture show what the text says?",
    "structure": "Does it keep the content and the structure of the original?",
    "quality": "Does it look real?",
}
_SHOWN = 384  # pixels: the longer side of a picture in the page


def check_page(path: Path) -> None:
    """UserError unless `path` can be the page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--user-study {path}: the page's name has to end in .html")


def key_path(page: Path) -> Path:
    """study.html -> study.key.json, beside it."""
    return page.with_name(page.stem + ".key.json")


def write_page(page: Path, items: list[Item], edits: list[dict[str, Path]], seed: int) -> Path:
    """Write the page and its key, and return the key's path.

    edits: for each item the file of every method's edit. The order of the methods is drawn anew for each image from
    `seed`. The page holds pictures without file names or metadata; methods appear in the key alone.
    """
    draw = random.Random(seed)
    questions, key = [], []
    for item, files in zip(items, edits, strict=True):
        methods = list(files)
        draw.shuffle(methods)
        pictures = [_embedded(files[m]) for m in methods]
        questions.append({"from": item.src, "to": item.tgt, "source": _embedded(item.path), "edits": pictures})
        key.append({"image": item.name, "methods": methods})
    # Answers carry it, so that they are not counted with another page's key.
    study = hashlib.sha256(json.dumps([seed, questions, key]).encode()).hexdigest()[:16]
    if _study_of(key_path(page)) not in (None, study):
        raise UserError(f"{key_path(page)} is another study's key, which its answers need: give the page another name")
    data = {"study": study, "questions": QUESTIONS, "items": questions}
    # "</" would end the script that holds the data.
    text = PAGE.replace("@DATA@", json.dumps(data).replace("</", "<\\/"))
    text = text.replace("@COUNT@", html.escape(str(len(items))))
    write_text(page, text)
    write_text(key_path(page), json.dumps({"study": study, "seed": seed, "items": key}, indent=1) + "\n")
    return key_path(page)


def _study_of(key_file: Path) -> str | None:
    """The study that a key is of; None if there is no key."""
    if not key_file.exists():
        return None
    key = _read(key_file)
    return key.get("study", "") if isinstance(key, dict) else ""


def _embedded(path: Path) -> str:
    """A picture as a data URI, encoded anew, so that nothing but its pixels is in it."""
    image = Image.fromarray((picture(path) * 255).round().byte().numpy())
    image.thumbnail((_SHOWN, _SHOWN), Image.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# --- counting


def count(key_file: Path, answer_files: list[Path]) -> dict[str, dict]:
    """summary[method]: the mean of each question from 1 to 5, its 95% interval as <question>_ci, and counts.

    A participant's answers about a method count as one value, their mean: a person's answers are not independent. The
    interval is Student's t over participants. Questions that were left out are not counted. UserError names the file
    that is wrong, another study's, or a participant's who is there already.
    """
    key = _read(key_file)
    try:
        study, orders = key["study"], [item["methods"] for item in key["items"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{key_file} is not a study's key") from error
    if not answer_files:
        raise UserError("no answers are given: count_study.py KEY ANSWERS...")
    seen: dict[str, Path] = {}
    values: dict = defaultdict(lambda: defaultdict(list))  # method, question -> one mean a participant
    given: dict = defaultdict(int)
    for path in answer_files:
        answers = _read(path)
        if not isinstance(answers, dict) or answers.get("study") != study:
            raise UserError(f"{path} does not answer the study of {key_file}")
        person = str(answers.get("participant"))
        if person in seen:
            raise UserError(f"{path} and {seen[person]} are one participant's: leave one out")
        seen[person] = path
        for (method, question), scores in _scores(path, answers, orders).items():
            values[method][question].append(float(np.mean(scores)))
            given[method] += len(scores)
    return {
        method: {"participants": len(seen), "answers": given[method], **_means(values[method])}
        for method in sorted(set(sum(orders, [])))
    }


def _scores(path: Path, answers: dict, orders: list[list[str]]) -> dict[tuple[str, str], list[int]]:
    found: dict = defaultdict(list)
    places = set()
    try:
        for answer in answers["answers"]:
            item, place = answer["item"], answer["place"]
            if type(item) is not int or type(place) is not int or item < 0 or place < 0 or (item, place) in places:
                raise ValueError(f"item {item}, place {place}")
            places.add((item, place))
            for question in QUESTIONS:
                score = answer.get(question)
                if score is None:
                    continue
                if type(score) is not int or not 1 <= score <= 5:
                    raise ValueError(f"{question} is {score}")
                found[orders[item][place], question].append(score)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"{path} has a wrong answer ({reason(error)})") from error
    return found


def _means(values: dict[str, list[float]]) -> dict:
    row: dict = {}
    for question in QUESTIONS:
        if values[question]:
            row[question] = round(float(np.mean(values[question])), 4)
        if len(values[question]) > 1:
            row[question + "_ci"] = [round(v, 4) for v in interval(values[question])]
    return row


def _read(path: Path):
    try:
        return load_json(path)
    except OSError as error:
        raise UserError(f"{path}: no such file, or it cannot be read") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({reason(error)})") from error


def table(summary: dict[str, dict]) -> str:
    """Markdown, as CDS's Table 2."""
    lines = ["| method | participants | answers | text match | structure | quality |", "|---" * 6 + "|"]
    for method, row in summary.items():
        cells = [str(row["participants"]), str(row["answers"]), *(cell(row, q, 2) for q in QUESTIONS)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
