"""What stands in a folder: whether every file is whole, and what has to be the same however often a run was broken."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import yaml

_MAY_DIFFER = re.compile(r"seconds|memory|threads|attempts")  # of figures
_HOW = ("resume", "overwrite")  # of options
_NOT_COMPARED = ("logs", "state")  # folders: times of steps stand in them


def contents(folder: Path) -> dict:
    """File -> what of it does not hang on time: its digest, or its figures."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not set(name.parts) & {*_NOT_COMPARED, ".lock"} and path.suffix not in (".csv", ".html"):
            found[str(name)] = _content(path)
    return found


def _content(path: Path):
    if path.name in ("metrics.json", "sweep.json"):
        table = json.loads(path.read_text())
        rows = table if isinstance(table, list) else [table]
        return [{k: v for k, v in row.items() if not _MAY_DIFFER.search(k)} for row in rows]
    if path.name == "config.yaml":
        return {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in _HOW}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: dict, truth: dict) -> list[str]:
    """One line for each file that is missing, too much, or not the same."""
    lines = [f"{name} is missing" for name in truth.keys() - found.keys()]
    lines += [f"{name} is too much" for name in found.keys() - truth.keys()]
    return lines + [f"{name} differs" for name in truth.keys() & found.keys() if truth[name] != found[name]]


def damages(folder: Path) -> list[str]:
    """One line for each file that is torn, but for those whose names say that they are partial, and for logs."""
    from tensorf.files import is_partial

    lines = []
    for path in folder.rglob("*"):
        partial = any(is_partial(p) for p in (path, *path.parents))
        if path.is_file() and not partial and "logs" not in path.parts and path.name != ".lock":
            try:
                _read(path)
            except Exception as error:  # whatever a torn file makes of its reader
                lines.append(f"{path.relative_to(folder)} is torn ({type(error).__name__}: {str(error)[:80]})")
    return lines


def leftovers(folder: Path) -> list[str]:
    """One line for each partial file, and for each lock of a process that has ended."""
    from tensorf.files import is_partial

    return [
        f"{path.relative_to(folder)} is left" for path in folder.rglob("*") if is_partial(path) or path.name == ".lock"
    ]


def _read(path: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text()), dict)
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix == ".mp4":
        _read_mp4(path.read_bytes())
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</script>")
    elif path.suffix in (".csv", ".ply", ".bin", ".txt"):
        assert path.stat().st_size > 0


def _read_mp4(data: bytes) -> None:
    """Its boxes fill the file, and the index is among them."""
    place, kinds = 0, []
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        assert size >= 8, "a box without a size"
        place, kinds = place + size, [*kinds, kind]
    assert place == len(data) and b"moov" in kinds and b"mdat" in kinds, "a cut video"
