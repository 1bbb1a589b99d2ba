"""Whole runs of the benchmark of edits on a tiny model."""

import json

import pytest
from checks import fails
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image

from cds3d.cli import run_command


@pytest.fixture()
def quick(tiny_folder):
    options = f'options=["guidance.path={tiny_folder}","edit.iterations=4","objective.weight=2"]'
    return ["tasks=[color]", "cases=1", "jobs=1", "objectives=[dds,cds]", options]


def test_bench_writes_its_report_and_goes_on(quick, tmp_path, capsys):
    assert run_command("bench", quick) == 0
    out = tmp_path / "outputs" / "bench"
    result = json.loads((out / "edits.json").read_text())
    assert set(result["summary"]["color"]) == {"dds", "cds"}
    for row in result["summary"]["color"].values():
        assert {"edit_gain_db", "kept_psnr_db", "structure", "accuracy", "seconds", "peak_memory_mb"} <= row.keys()
    assert set(result["bounds"]["color"]) == {"unedited", "truth"}
    assert len(result["curves"]["color"]["cds"]) == 5
    assert "| color | cds | 1 |" in capsys.readouterr().out
    with Image.open(out / "edits" / "color.png") as sheet:
        assert sheet.width == 4 * 256 and sheet.height > 192
    stamp = (out / "edits" / "color" / "000-cds-0.json").stat().st_mtime_ns
    (out / "edits" / "color" / "000-dds-0.json").unlink()
    assert run_command("bench", quick) == 0  # the missing run only
    assert (out / "edits" / "color" / "000-cds-0.json").stat().st_mtime_ns == stamp
    again = json.loads((out / "edits.json").read_text())
    for key in ("edit_gain_db", "kept_psnr_db"):
        assert again["summary"]["color"]["dds"][key] == result["summary"]["color"]["dds"][key]
    assert "benchmark of other settings" in fails(capsys, "bench", *quick, "seeds=2")
    assert run_command("bench", [*quick, "seeds=2", "overwrite=true"]) == 0


def test_bench_edits_fields_by_the_command(tmp_path, tiny_folder, capture_folder):
    options = [f"scene.root={capture_folder}", f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]
    options += [o for o in (*TINY_SCENE, *TINY_FIELD) if not o.startswith("threads")]
    quoted = ",".join(f'"{o}"' for o in options)
    bench = ["tasks=[]", "fields=[flower]", "objectives=[cds]", "threads=1", f"options=[{quoted}]"]
    assert run_command("bench", bench) == 0
    row = json.loads((tmp_path / "outputs" / "bench" / "edits.json").read_text())["summary"]["field-flower"]["cds"]
    assert {"edit_gain_db", "kept_psnr_db", "structure", "depth_error", "seconds"} <= row.keys()
    assert (tmp_path / "outputs" / "bench" / "edits" / "field-flower" / "000-cds-0" / "field.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["size=huge"], "size=huge is unknown"),
        (["tasks=[dance]"], "tasks: dance is unknown"),
        (["tasks=color"], "tasks: color is unknown"),
        (["fields=[fox]"], "fields: fox is unknown"),
        (["objectives=[cut]"], "objectives: cut is unknown"),
        (["cases=0"], "cases=0 has to be"),
        (["tasks=[]"], "nothing to do"),
        (['options=["objective.wait=3"]'], "objective.wait=3 is no option"),
        (["jobs=none"], "jobs=none has to be"),
    ],
)
def test_wrong_settings_are_told(tmp_path, capsys, options, message):
    assert message in fails(capsys, "bench", *options)
    assert not (tmp_path / "outputs").exists() or message.startswith("jobs")


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "outputs" / "bench" / "edits").mkdir(parents=True)
    (tmp_path / "outputs" / "bench" / "edits" / "thesis.txt").write_text("mine")
    assert "is no benchmark's" in fails(capsys, "bench", "overwrite=true")
    assert (tmp_path / "outputs" / "bench" / "edits" / "thesis.txt").read_text() == "mine"
