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
import secrets
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


def write_page(page: Path, items: list[Item], edits: list[dict[str, Path]], seed: int | None) -> Path:
    """Write the page and its key, and return the key's path.

    edits: for each item the file of every method's edit. The order of the methods is drawn anew for each image from
    `seed`. None is the seed of the key that is there, or a random one: whoever knows seed and methods can tell which
    edit is whose. The page holds pictures without file names or metadata; methods appear in the key alone.
    """
    before = _read(key_path(page)) if key_path(page).exists() else None
    if seed is None:
        kept = before.get("seed") if isinstance(before, dict) else None
        seed = kept if type(kept) is int else secrets.randbits(32)
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
    if before is not None and (not isinstance(before, dict) or before.get("study") != study):
        raise UserError(f"{key_path(page)} is another study's key, which its answers need: give the page another name")
    data = {"study": study, "questions": QUESTIONS, "items": questions}
    # "</" would end the script that holds the data.
    text = PAGE.replace("@DATA@", json.dumps(data).replace("</", "<\\/"))
    text = text.replace("@COUNT@", html.escape(str(len(items))))
    write_text(page, text)
    write_text(key_path(page), json.dumps({"study": study, "seed": seed, "items": key}, indent=1) + "\n")
    return key_path(page)


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
    interval is Student's t over participants. "less": the same of each participant's value less that of CDS, or of the
    first method if CDS is not there; it has none. People differ in how strict they are, and that cancels. Questions
    that were left out are not counted. UserError names the file that is wrong, another study's, or a participant's who
    is there already.
    """
    key = _read(key_file)
    try:
        study, orders = key["study"], [item["methods"] for item in key["items"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{key_file} is not a study's key") from error
    if not answer_files:
        raise UserError("no answers are given: count_study.py KEY ANSWERS...")
    seen: dict[str, Path] = {}
    values: dict = defaultdict(lambda: defaultdict(dict))  # method, question -> a mean for each participant
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
            values[method][question][person] = float(np.mean(scores))
            given[method] += len(scores)
    methods, summary = sorted(set(sum(orders, []))), {}
    reference = "cds" if "cds" in methods else next(iter(methods), None)
    for method in methods:
        mine, other = values[method], values[reference]
        people = {person for of_question in mine.values() for person in of_question}
        summary[method] = {"participants": len(people), "answers": given[method], **_means(mine)}
        if method != reference:
            both = {q: {p: mine[q][p] - other[q][p] for p in mine[q].keys() & other[q].keys()} for q in QUESTIONS}
            summary[method]["less"] = _means(both)
    return summary


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


def _means(values: dict[str, dict[str, float]]) -> dict:
    """values: of each question, a value for each participant."""
    row: dict = {}
    for question in QUESTIONS:
        found = list(values[question].values())
        if found:
            row[question] = round(float(np.mean(found)), 4)
        if len(found) > 1:
            row[question + "_ci"] = [round(v, 4) for v in interval(found)]
    return row


def _read(path: Path):
    try:
        return load_json(path)
    except OSError as error:
        raise UserError(f"{path}: no such file, or it cannot be read") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({reason(error)})") from error


def table(summary: dict[str, dict]) -> str:
    """Markdown, as CDS's Table 2; then the differences, where there are several methods."""
    lines = ["| method | participants | answers | text match | structure | quality |", "|---" * 6 + "|"]
    for method, row in summary.items():
        cells = [str(row["participants"]), str(row["answers"]), *(cell(row, q, 2) for q in QUESTIONS)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    less = {method: row["less"] for method, row in summary.items() if "less" in row}
    if less:
        reference = next(method for method in summary if method not in less)
        lines += ["", f"Each method less {reference}, participant by participant:", ""]
        lines += ["| method | text match | structure | quality |", "|---" * 4 + "|"]
    for method, row in less.items():
        lines.append(f"| {method} | " + " | ".join(cell(row, q, 2) for q in QUESTIONS) + " |")
    return "\n".join(lines) + "\n"
