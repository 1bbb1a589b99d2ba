"""Whole runs of the benchmark of edits on a tiny model."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from checks import fails, load_script
from fakes import TINY_FIELD, TINY_SCENE
from PIL import Image

from cds3d import holding
from cds3d.bench import fields, image_runs, run
from cds3d.bench.tasks import cases
from cds3d.cli import run_command
from cds3d.commands import edit
from cds3d.options import load_config
from cds3d.pocket.world.capture import WorldCapture
from tensorf import locks


@pytest.fixture()
def quick(tiny_folder):
    options = f'options=["guidance.path={tiny_folder}","edit.iterations=4","objective.weight=2"]'
    return ["tasks=[color]", "cases=1", "jobs=1", "threads=1", "objectives=[dds,cds]", options]


def test_bench_writes_its_report_and_goes_on(quick, tmp_path, capsys):
    assert run_command("bench", quick) == 0
    out = tmp_path / "outputs" / "bench"
    result = json.loads((out / "edits.json").read_text())
    assert set(result["summary"]["color"]) == {"dds", "cds"}
    for row in result["summary"]["color"].values():
        assert {"edit_gain_db", "kept_psnr_db", "structure", "accuracy", "seconds", "peak_memory_mb"} <= row.keys()
    assert set(result["bounds"]["color"]) == {"unedited", "truth"}
    assert len(result["curves"]["color"]["cds"]) == 8
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


def test_baselines_stand_beside_objectives(tmp_path, tiny_folder, capsys):
    options = f'options=["guidance.path={tiny_folder}","edit.iterations=2","baseline.steps=4"]'
    methods = ["objectives=[dds]", "baselines=[sdedit,dds-pnp]"]
    bench = ["tasks=[color]", "cases=2", "jobs=1", "threads=1", *methods, options]
    assert run_command("bench", bench) == 0
    out = tmp_path / "outputs" / "bench"
    result = json.loads((out / "edits.json").read_text())
    rows = result["summary"]["color"]
    assert list(rows) == ["dds", "sdedit", "dds-pnp"] and all(row["cases"] == 2 for row in rows.values())
    assert len({row["kept_psnr_db"] for row in rows.values()}) == 3  # three methods, three results
    assert len(result["curves"]["color"]["sdedit"]) == 1 and len(result["curves"]["color"]["dds-pnp"]) == 8
    with Image.open(out / "edits" / "color.png") as sheet:
        assert sheet.width == 5 * 256
    assert "sdedit" not in fails(capsys, "bench", "baselines=[magic]", "output=other").split("use a list of")[0]


def test_edits_that_begin_at_the_truth(tmp_path, tiny_folder):
    still = f'options=["guidance.path={tiny_folder}","edit.iterations=1","edit.lr=1e-9"]'
    bench = ["tasks=[color]", "cases=1", "jobs=1", "threads=1", "objectives=[dds]", still]
    assert run_command("bench", [*bench, "start=truth"]) == 0
    out = tmp_path / "outputs" / "bench"
    result = json.loads((out / "edits.json").read_text())
    at_the_truth, truth = result["summary"]["color"]["dds"], result["bounds"]["color"]["truth"]
    for figure in ("edit_gain_db", "kept_psnr_db"):
        assert at_the_truth[figure] == pytest.approx(truth[figure], abs=1e-3) != 0
    assert run_command("bench", [*bench, "output=source"]) == 0
    from_source = json.loads((tmp_path / "source" / "edits.json").read_text())["summary"]["color"]["dds"]
    assert from_source["edit_gain_db"] == pytest.approx(0, abs=1e-3)


def test_bench_edits_fields_by_the_command(tmp_path, tiny_folder, capture_folder):
    options = [f"scene.root={capture_folder}", f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]
    options += [o for o in (*TINY_SCENE, *TINY_FIELD) if not o.startswith("threads")]
    quoted = ",".join(f'"{o}"' for o in options)
    bench = ["tasks=[]", "fields=[flower]", "objectives=[cds]", "threads=1", f"options=[{quoted}]"]
    assert run_command("bench", bench) == 0
    row = json.loads((tmp_path / "outputs" / "bench" / "edits.json").read_text())["summary"]["field-flower"]["cds"]
    assert {"edit_gain_db", "kept_psnr_db", "structure", "depth_error", "seconds"} <= row.keys()
    assert (tmp_path / "outputs" / "bench" / "edits" / "field-flower" / "000-cds-0" / "field.safetensors").exists()


def test_bench_makes_captures_of_held_out_scenes(tmp_path, tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr(fields, "write_capture", partial(fields.write_capture, views=8, width=64, height=48))
    options = [f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48", *TINY_SCENE, *TINY_FIELD]
    quoted = ",".join(f'"{o}"' for o in options if not o.startswith("threads"))
    bench = ["tasks=[]", "fields=[color]", "field_cases=2", "objectives=[dds]", "threads=1", f"options=[{quoted}]"]
    assert run_command("bench", bench) == 0
    result = json.loads((tmp_path / "outputs" / "bench" / "edits.json").read_text())
    assert result["summary"]["field-color"]["dds"]["cases"] == 2
    for case, held_out in zip(cases("color", 2), result["runs"], strict=True):
        assert held_out["prompts"] == [case.src, case.tgt]
        world = WorldCapture.read(tmp_path / "outputs" / "captures" / f"held-out-color-{held_out['case']:03d}")
        assert world.attributes == case.source and world.edited(case.src, case.tgt) == case.target
    assert run_command("bench", [*bench, "tuning=true", "output=tuning"]) == 0
    tuned_on = json.loads((tmp_path / "tuning" / "edits.json").read_text())["runs"]
    assert [r["prompts"] for r in tuned_on] == [[c.src, c.tgt] for c in cases("color", 2, tuning=True)]
    # A capture of another scene in the place of ours is told, not used.
    captures = tmp_path / "outputs" / "captures"
    shutil.rmtree(captures / "held-out-color-000")
    (captures / "tuning-color-000").rename(captures / "held-out-color-000")
    assert "holds no capture of" in fails(capsys, "bench", *bench, "output=again")
    (captures / "held-out-color-000" / "world.json").write_text("{")
    assert "holds no capture of" in fails(capsys, "bench", *bench, "output=again")
    assert not (tmp_path / "again").exists()


def test_options_of_a_preset_are_those_of_the_runs_that_have_it():
    options = ("edit.volume.grow=0.2", "edit=shape", "objective.weight=6", "edit.width=200")
    assert run._fitting(options, run._base("field", "cds")) == list(options)
    assert run._fitting(options, run._base("field", "dds")) == [options[0], options[1], options[3]]
    assert run._fitting(options, run._base("image", "cds")) == ["objective.weight=6"]
    assert run._fitting(options[:1], run._base("field", "cds")) == []


def test_weights_in_one_file_are_in_the_fingerprint(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {"tasks": ["color"], "fields": [], "objectives": ["cds"], "baselines": []}
    found = set()
    for content in (b"one", b"two"):
        for name in ("file.safetensors", "folder/file.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
            path = f"guidance.path=~/{name.removesuffix('/file.safetensors')}"
            found.add(run._fingerprint({**settings, "options": [path]}))
    assert len(found) == 4


def test_an_interrupted_bench_tells_how_to_go_on(tmp_path, tiny_folder, capture_folder, capsys, monkeypatch):
    def interrupted(run):
        raise KeyboardInterrupt("at iteration 3; the same command with resume=true goes on")

    monkeypatch.setattr("cds3d.bench.run._one", interrupted)
    assert run_command("bench", ["tasks=[]", "fields=[flower]"]) == 130
    told = capsys.readouterr().err
    assert "the same command goes on" in told and "resume=true" not in told


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
        (["jobs=0", "overwrite=true"], "jobs=0 has to be"),
        (["objectives=[]"], "nothing to do"),
        (["tasks=[]", "fields=[color]", "objectives=[bounds]"], "have no bounds"),
        (["tasks=[color,color]"], "a name comes twice"),
        (["tasks=[[color]]"], "tasks: ['color'] is unknown"),
        (["fields=[{color: 1}]"], "fields: {'color': 1} is unknown"),
        (["tasks=[null]"], "tasks: None is unknown"),
        (["options=null"], "options=None has to be a list of key=value"),
        (["options=objective.weight"], "options=objective.weight has to be a list of key=value"),
        (['options=["objective.patch_sizes=[]"]'], "patch_sizes=[] has to be a list of whole numbers"),
        (['options=["baseline=pnp"]'], "baseline is the benchmark's own"),
        (['options=["objective.stride=4"]'], "objective.stride=4 is no option of edit.py that a run here has"),
        (['options=["guidance.path=[]"]'], "guidance.path=[] has to be text"),
        (["output=[a]"], "output=['a'] has to be text"),
        (["output=null"], "output=null: a path has to be given"),
        (["overwrite=no"], "overwrite=no has to be true or false"),
        (["tuning=true", "fields=[color,cat]"], "fields has cat, a shipped capture"),
        (["start=end"], "start=end is unknown"),
        (["start=truth", "fields=[cat]"], "start=truth is for objectives on images"),
        (["start=truth", "baselines=[pnp]"], "start=truth is for objectives on images"),
        (["fields=[color]", "field_cases=0"], "field_cases=0 has to be"),
        (["options=[3]"], "3 is not of the form key=value"),
        (['options=["objective=dds"]'], "objective is the benchmark's own"),
        (['options=["edit.iterations=none"]'], "iterations=none has to be"),
    ],
)
def test_wrong_settings_are_told(tmp_path, capsys, options, message):
    assert message in fails(capsys, "bench", *options)
    assert not (tmp_path / "outputs").exists()


def test_nothing_is_deleted_by_wrong_settings(quick, tmp_path, capsys):
    assert run_command("bench", quick) == 0
    before = sorted((tmp_path / "outputs").rglob("*"))
    fails(capsys, "bench", *quick, "overwrite=true", "jobs=0")
    fails(capsys, "bench", *quick, "overwrite=true", "device=tpu")
    assert sorted((tmp_path / "outputs").rglob("*")) == before


def test_runs_of_other_weights_are_not_mixed(quick, tmp_path, capsys, tiny_folder):
    assert run_command("bench", quick) == 0
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = [o.replace(str(tiny_folder), str(other)) for o in quick]
    fails(capsys, "bench", *renamed)
    assert run_command("bench", [*renamed, "overwrite=true"]) == 0
    assert run_command("bench", renamed) == 0  # nothing has changed
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "other settings, defaults or weights" in fails(capsys, "bench", *renamed)


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "outputs" / "bench" / "edits").mkdir(parents=True)
    (tmp_path / "outputs" / "bench" / "edits" / "thesis.txt").write_text("mine")
    assert "is no benchmark's" in fails(capsys, "bench", "overwrite=true")
    assert (tmp_path / "outputs" / "bench" / "edits" / "thesis.txt").read_text() == "mine"


def test_claims_write_tables_and_sheets(tmp_path, tiny_folder, monkeypatch, capsys):
    claims = load_script("claims")
    monkeypatch.setattr(claims, "MIXED", ["color"])
    monkeypatch.setitem(claims.SWEEPS, "figure6", (["color"], claims.SWEEPS["figure6"][1]))
    few = [
        "--cases",
        "1",
        "--jobs",
        "1",
        "--draws",
        "2",
        "--options",
        f"guidance.path={tiny_folder}",
        "edit.iterations=2",
    ]
    claims.main(["figure6", *few])
    out = tmp_path / "outputs" / "bench" / "claims"
    found = json.loads((out / "figure6.json").read_text())
    rows, less = found["variants"], found["less_default_cds"]
    assert list(rows) == ["none (DDS)", "score", "cross-attention", "self-attention"]
    assert rows["score"]["kept_psnr_db"] != rows["self-attention"]["kept_psnr_db"]
    text = (out / "figure6.md").read_text()
    assert "| cross-attention | 1 |" in text and "Each variant less CDS with the defaults" in text
    assert list(less) == ["none (DDS)", "score", "cross-attention"]
    apart = rows["score"]["kept_psnr_db"] - rows["self-attention"]["kept_psnr_db"]
    assert less["score"]["kept_psnr_db"] == pytest.approx(apart, abs=2e-4)
    with Image.open(out / "figure6.jpg") as sheet:
        assert sheet.width == 3 * 256 and sheet.height > 2 * 192  # six columns in two rows
    claims.main(["figure5", *few])
    assert len(json.loads((out / "figure5.json").read_text())) == 3
    assert "cds less dds" in capsys.readouterr().out
    with Image.open(out / "figure5.jpg") as sheet:
        assert sheet.width == 3 * 256
    monkeypatch.setitem(claims.SWEEPS, "figure7", (["color"], {"score": claims.SWEEPS["figure6"][1]["score"]}))
    claims.main(["figure7", *few, "--cases", "2"])  # runs that other claims made of fewer scenes are not in the way
    text = (out / "figure7.md").read_text()
    assert "| score | 2 |" in text and "less CDS" not in text  # the default is not among them
    scores = {}
    for scale in ("1", "5"):
        claims.main(["features", *few, f"guidance.scale={scale}", "objective.patches=768"])  # all positions
        lines = (out / "features.md").read_text().splitlines()
        scores[scale] = [line.partition("score |")[2] for line in lines if "score |" in line]
    assert len(scores["1"]) == 4 and scores["1"][:2] == scores["1"][2:]  # at 1, guidance is the prompt's prediction
    assert scores["5"][:2] == scores["1"][:2] and scores["5"][:2] != scores["5"][2:]


@pytest.mark.parametrize("kind", ["field", "images"])
def test_a_run_that_fails_lets_its_folder_go(kind, tmp_path, monkeypatch):
    """The process goes on with other runs, and another one may try this again."""
    folder = tmp_path / "color" / "000-cds-0" if kind == "field" else tmp_path / "run"
    folder.mkdir(parents=True)

    def fails_inside(*_):
        holding.hold(folder)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(edit, "edit_image", fails_inside)
    monkeypatch.setattr(edit, "_edit_scene", fails_inside)
    monkeypatch.setattr(run, "edit_field", edit.edit_command)
    monkeypatch.setattr(
        run, "_field_config", lambda *_: load_config("edit", ["scene=flower", 'src="a flower"', 'tgt="a red flower"'])
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        if kind == "field":
            run._one(run.Run("field", "color", 0, "cds", 0, False, (), str(tmp_path), "cpu"))
        else:
            Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
            item = SimpleNamespace(path=tmp_path / "a.png", src="a cat", tgt="a dog")
            image_runs._run(item, ["edit=latent", "threads=1"], folder)
    assert folder.resolve() not in locks._held
