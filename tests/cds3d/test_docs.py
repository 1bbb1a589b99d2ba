"""The documentation: its links lead somewhere, and its commands have the options that they show."""

import re
import shlex
from pathlib import Path

import pytest

from cds3d import cli
from cds3d.options import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS]
COMMANDS = {"train_source.py": "train", "edit.py": "edit", "render.py": "render", "view.py": "view"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert {p.name for p in DOCS} == set(re.findall(r"[\w-]+\.md", text))


def commands(page):
    """(command, words) of each line that calls one of ours, in fenced blocks."""
    for block in re.findall(r"```\n(.*?)```", page.read_text().replace("\\\n", " "), re.S):
        for line in block.splitlines():
            if not line.startswith(("python ", ".venv/bin/python ", "cds3d ")):
                continue
            words = shlex.split(line, comments=True)
            words = words[1:] if words[:1] in (["python"], [".venv/bin/python"]) else words
            if words[:2] == ["-m", "cds3d"]:
                words = ["cds3d", *words[2:]]
            if words and words[0] in COMMANDS:
                yield COMMANDS[words[0]], words[1:]
            elif words[:1] == ["cds3d"] and words[1:2] and words[1] in cli.COMMANDS and "..." not in words:
                yield words[1], words[2:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_have_the_options_that_pages_show(page):
    for command, words in commands(page):
        if "..." in words or any("NAME" in w or "|" in w for w in words):
            continue
        args = cli._parser(command, words).parse_intermixed_args(words)
        options = [o for o in args.options if "=" in o]
        if getattr(args, "image", None) and not any(o.startswith("edit=") for o in options):
            options.insert(0, "edit=latent")
        load_config(command, options)


def test_some_commands_are_found():
    assert sum(len(list(commands(page))) for page in PAGES) > 40


def test_every_protection_has_the_test_that_is_said_to_guard_it():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
    assert len(rows) > 20
