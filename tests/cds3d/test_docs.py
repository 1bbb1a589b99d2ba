"""The documentation: its links lead somewhere, and its commands have the options that they show."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from cds3d import cli
from cds3d.options import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
CARD = ROOT / "cds3d" / "pocket" / "weights" / "README.md"
OTHERS = [*(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")), CARD]
PAGES = [*OTHERS, *DOCS]
COMMANDS = {"train_source.py": "train", "edit.py": "edit", "render.py": "render", "view.py": "view"}
PROGRAM = re.compile(r"(?:python|\.venv/bin/python) |cds3d ")
PLACEHOLDER = re.compile(r"\.\.\.|NAME|OPTION|\||<")  # of lines that show a form, not a command to type
# Scripts whose options are those of a configuration; the other scripts have a parser of their own.
CONFIGURED = {"bench_edits.py": "bench"}
MADE_BY_THE_PAGE = "objective=anchored"  # in extending.md; test_extending.py runs what that page makes


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def blocks(text):
    """The fenced blocks of a page."""
    return re.findall(r"^[ ]*```\w*\n(.*?)^[ ]*```", text, re.S | re.M)


def slugs(page):
    """The anchors of a page's headings, as mkdocs and GitHub make them of ours."""
    text = re.sub(r"^[ ]*```.*?^[ ]*```", "", page.read_text(), flags=re.S | re.M)
    titles = [re.sub(r"\]\([^)]*\)|[\[`*]", "", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target), f"{link}: {sorted(slugs(target))}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_are_named_by_what_they_lead_to(page):
    """A reader of the website knows no files: links to pages have titles as their text."""
    assert not re.findall(r"\[`?[\w/-]+\.md`?\]\([^)]*\)", page.read_text())


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    own = {p.name for p in DOCS if p.parent.name == "docs"}
    site = site_pages()
    assert own | set(site.PAGES) | {site.EXAMPLES} == set(re.findall(r"[\w-]+\.md", text))


def command_lines(page):
    """Lines that call one of our programs: in fenced blocks, and in `code` of tables and running text."""
    text = page.read_text()
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^[ ]*```.*?^[ ]*```", "", text, flags=re.S | re.M)
    mentioned = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    lines += [line for line in mentioned if not re.search(r" --[\w-]+$", line)]  # "`cds3d train --capture`" is a form
    return [line for line in map(str.strip, lines) if PROGRAM.match(line) and not PLACEHOLDER.search(line)]


def commands(page):
    """(command, words) of each line that calls one of our commands."""
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        words = words[1:] if words[:1] in (["python"], [".venv/bin/python"]) else words
        if words[:2] == ["-m", "cds3d"]:
            words = ["cds3d", *words[2:]]
        if words and words[0] in COMMANDS:
            yield COMMANDS[words[0]], words[1:]
        elif words[:1] == ["cds3d"] and words[1:2] and words[1] in cli.COMMANDS:
            yield words[1], words[2:]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_have_the_options_that_pages_show(page):
    for command, words in commands(page):
        if "--help" in words or MADE_BY_THE_PAGE in words:
            continue
        args = cli._parser(command, words).parse_intermixed_args(words)
        options = [o for o in args.options if "=" in o]
        if getattr(args, "image", None) and not any(o.startswith("edit=") for o in options):
            options.insert(0, "edit=latent")
        load_config(command, options)


def programs(page):
    """(path, words) of each line that runs a program of scripts/ or examples/."""
    for line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        if words and words[0].startswith(("scripts/", "examples/")):
            yield words[0], words[1:]


class Parsed(Exception):
    """Raised in place of running a script, once its parser has accepted its words."""


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_scripts_have_the_options_that_pages_show(page, monkeypatch):
    """Each script's own parser reads the words of the page; the script itself does not run."""
    parsing = []

    def until_parsed(method):
        def parse(*args, **kwargs):
            if parsing:  # one of argparse's methods calls another
                return method(*args, **kwargs)
            parsing.append(method)
            try:
                method(*args, **kwargs)
            finally:
                parsing.clear()
            raise Parsed

        return parse

    monkeypatch.syspath_prepend(ROOT / "scripts")  # a script finds the modules beside it
    for path, words in programs(page):
        file = ROOT / path
        assert file.is_file(), path
        if file.name in CONFIGURED:
            load_config(CONFIGURED[file.name], [w for w in words if not w.startswith("--")])
            assert {w for w in words if w.startswith("--")} <= {"--quick", "--full", "--overwrite"}, words
        elif path.startswith("scripts/"):
            with monkeypatch.context() as patch:
                module = loaded(file)
                for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
                    patch.setattr(argparse.ArgumentParser, name, until_parsed(getattr(argparse.ArgumentParser, name)))
                patch.setattr(sys, "argv", [str(file), *words])
                with pytest.raises(Parsed):
                    module.main()


def loaded(file):
    """A script as a module, not run."""
    spec = importlib.util.spec_from_file_location(f"docs_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_commands_of_every_kind_are_found():
    found = [line for page in PAGES for line in command_lines(page)]
    assert sum(len(list(commands(page))) for page in PAGES) > 90
    assert sum(len(list(programs(page))) for page in PAGES) > 50
    assert "python train_source.py --capture walk.mp4" in found  # of a table
    assert any(line.startswith("python scripts/train_pocket.py") for line in command_lines(CARD))
    assert list(commands(ROOT / "docs" / "extending.md"))  # between blocks of another language


def test_every_protection_has_the_test_that_is_said_to_guard_it():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
    assert len(rows) > 20


def site_pages():
    return loaded(ROOT / "scripts" / "site_pages.py")


def test_links_out_of_docs_lead_to_pages_of_the_site():
    """The same link serves a checkout, where it leads to a file, and the website, where it leads to a page."""
    site = site_pages()
    assert (
        site.site_links("[a](../SECURITY.md#report) [b](edits.md)", "index.md")
        == "[a](security.md#report) [b](edits.md)"
    )
    assert site.site_links("[a](../examples)", "index.md") == "[a](examples.md)"
    assert site.site_links("[a](docs/viewer.md#speed) [b](SECURITY.md)", "contributing.md") == (
        "[a](viewer.md#speed) [b](security.md)"
    )
    assert site.site_links("![a](samples.jpg)", "model-card.md") == "![a](samples.jpg)"
    assert site.site_links("[a](../../SECURITY.md)", "claims/methods.md") == "[a](../security.md)"
    assert site.on_page_content("<code>a=b.c</code> d=e") == "<code>a=<wbr>b.<wbr>c</code> d=e"
    page = site.examples_page()
    assert page.count("\n## ") == len(list((ROOT / "examples").glob("*.py")))


def test_code_of_pages_fits_the_column():
    """Commands that are typed fit into 88 columns, the width of a code block on the website."""
    for page in DOCS:
        for block in blocks(page.read_text()):
            for line in block.splitlines():
                if PROGRAM.match(line.strip()):
                    assert len(line) <= 88, f"{page.name}: {line}"


def test_citation_names_the_version():
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()
