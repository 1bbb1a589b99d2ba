"""Pages of the documentation whose text lies outside docs/; mkdocs.yml names this file as a hook.

SECURITY.md, CHANGELOG.md, CONTRIBUTING.md, pocket's model card and the programs in examples/ become pages, and links
to them lead there. In a checkout the same links lead to the files.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "model-card.md": "cds3d/pocket/weights/README.md",
}
ASSETS = {"samples.jpg": "cds3d/pocket/weights/samples.jpg"}  # what these pages show
EXAMPLES = "examples.md"


def on_files(files, config):
    """Add the pages and what they show to mkdocs' files."""
    from mkdocs.structure.files import File  # here, so that tests read this file without mkdocs

    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for asset, source in ASSETS.items():
        files.append(File.generated(config, asset, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, EXAMPLES, content=examples_page()))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to files that are pages here lead to the pages."""
    return site_links(markdown, page.file.src_uri)


def on_page_content(html, **_):
    """Names in `code` may break after their dots, underscores, slashes and signs, so that tables fit on a phone."""
    return re.sub(r"<code>([^<\n]+)</code>", lambda m: f"<code>{breakable(m[1])}</code>", html)


def breakable(code: str) -> str:
    return re.sub(r"([._/=,])(?=\w)", r"\1<wbr>", code)


def examples_page() -> str:
    """Markdown: each program of examples/ under the first line of its docstring."""
    parts = ["# Examples", "Each is one short program of `examples/`, to run in a checkout and to copy from."]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text()
        title = ast.get_docstring(ast.parse(text)).splitlines()[0].rstrip(".")
        parts += [f"## {title}", f"`examples/{file.name}`", f"```python\n{text}```"]
    return "\n\n".join(parts) + "\n"


def site_links(markdown: str, page: str) -> str:
    """`markdown` of a page (`page`: its path in docs/): links to files outside docs/ lead to their pages."""
    folder = (ROOT / PAGES[page] if page in PAGES else ROOT / "docs" / page).parent
    uris = {ROOT / source: uri for uri, source in (PAGES | ASSETS).items()}

    def replaced(match):
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target:
            return match[0]
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(ROOT / "examples"):
            uri = EXAMPLES
        elif path in uris:
            uri = uris[path]
        elif page in PAGES and path.is_relative_to(ROOT / "docs"):
            uri = path.relative_to(ROOT / "docs").as_posix()
        else:
            return match[0]
        uri = os.path.relpath(uri, Path(page).parent)
        return f"]({uri}#{anchor})" if anchor else f"]({uri})"

    return re.sub(r"\]\(([^)\s]+)\)", replaced, markdown)
