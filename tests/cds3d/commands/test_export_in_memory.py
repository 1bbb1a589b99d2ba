"""`export_field`: a field in memory is written as `cds3d export` writes that of a run."""

from pathlib import Path

import pytest

from cds3d.cli import main
from cds3d.export.field import export_field
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.renderable import load_field


def files(path):
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in found}


@pytest.mark.parametrize("format", ["dataset", "splats", "points"])
def test_files_are_those_of_the_command(opaque, capture_folder, format):
    field, capture = load_field(opaque / "field.safetensors"), load_capture(capture_folder, width=64, check=False)
    suffix = "" if format == "dataset" else ".ply"
    assert main(["export", str(opaque), format, f"output=by_command{suffix}", "points=300"]) == 0
    assert export_field(field, capture, format, f"in_memory{suffix}", 300) == Path(f"in_memory{suffix}")
    mine, theirs = files(Path(f"in_memory{suffix}")), files(Path(f"by_command{suffix}"))
    assert mine == theirs and len(mine) == (1 if suffix else 11)
    with pytest.raises(UserError, match="exists: give another output"):
        export_field(field, capture, format, f"in_memory{suffix}")


def test_wrong_calls(opaque, capture_folder):
    field, capture = load_field(opaque / "field.safetensors"), load_capture(capture_folder, width=64, check=False)
    with pytest.raises(ValueError, match="format='obj' is unknown"):
        export_field(field, capture, "obj", "mesh.obj")
