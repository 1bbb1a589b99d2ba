"""scripts/bench_images.py and scripts/count_study.py from end to end, with pocket and two iterations."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import load_script, stops_at
from judges import save_clip, save_dino, save_trunk
from PIL import Image

from cds3d.cli import run_command
from cds3d.editor import Editor
from cds3d.guidance import Prior, loading
from tensorf.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
QUICK = ["edit.iterations=2", "threads=1", "guidance.image_width=48", "device=cpu"]
PROMPTS = ["--src", "a cat", "--tgt", "a dog"]


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_images")


@pytest.fixture(scope="module")
def judge_options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    paths = save_clip(folder / "clip"), save_dino(folder / "dino"), save_trunk(folder / "a.pth", "alex")
    return [str(o) for pair in zip(("--clip", "--dino", "--lpips"), paths) for o in pair]


@pytest.fixture()
def cats(tmp_path):
    folder = tmp_path / "some cats"
    folder.mkdir()
    for k, name in enumerate(("a", "b")):
        noise = np.random.default_rng(k).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 50), Image.BICUBIC).save(folder / f"{name}.png")
    return folder


def result(folder):
    return json.loads((folder / "images.json").read_text())


def test_a_table_of_two_methods(cats, bench, judge_options, capsys):
    given = [str(cats), *PROMPTS, "--methods", "cds,dds", "--output", "out", *judge_options, *QUICK]
    assert bench.main(given) == 0
    out = Path("out")
    assert capsys.readouterr().out.startswith((out / "images.md").read_text())
    found = result(out)
    for method in ("cds", "dds"):
        assert {p.name for p in (out / method).iterdir()} == {"a", "b"}
        assert (out / method / "a" / "config.yaml").exists() and (out / method / "a" / "edited.png").exists()
        row = found["summary"]["overall"][method]
        assert row["cases"] == 2 and 0 <= row["accuracy"] <= 1
        metrics = [json.loads((out / method / n / "metrics.json").read_text()) for n in ("a", "b")]
        for key in ("seconds", "peak_memory_mb"):
            assert row[key] == pytest.approx(np.mean([m[key] for m in metrics]), abs=1e-3)
        assert row["structure_distance"] > 0 and row["lpips"] > 0 and len(row["lpips_ci"]) == 2
    assert found["judges"]["lpips"].endswith("(alex)") and not found["failed"] and len(found["runs"]) == 4
    assert "structure distance" in (out / "images.md").read_text() and "left out" not in (out / "images.md").read_text()
    assert Image.open(out / "images.png").size == (3 * 160, 16 + 2 * 176)


def test_finished_runs_are_kept_and_half_done_ones_go_on(cats, bench, monkeypatch):
    given = [str(cats), *PROMPTS, "--methods", "dds", "--output", "out", *QUICK]
    with monkeypatch.context() as patch:
        stops_at(patch, Editor, 1)
        with pytest.raises(KeyboardInterrupt):
            bench.main(given)
    begun = Path("out") / "dds" / "a"
    assert (begun / "state" / "state.pt").exists() and not (begun / "metrics.json").exists()
    steps = []
    step = Editor.step
    monkeypatch.setattr(Editor, "step", lambda self: (steps.append(self.iteration), step(self))[1])
    assert bench.main(given) == 0
    assert steps == [1, 0, 1]  # the rest of a, all of b
    written = (begun / "metrics.json").stat().st_mtime_ns
    assert bench.main(given) == 0
    assert steps == [1, 0, 1] and (begun / "metrics.json").stat().st_mtime_ns == written
    assert not result(Path("out"))["failed"]
    with pytest.raises(UserError, match="was begun with"):
        bench.main([str(cats), "--src", "a cat", "--tgt", "a pig", "--methods", "dds", "--output", "out", *QUICK])
    (cats / "b.png").write_bytes((cats / "a.png").read_bytes())  # another picture of the same name
    with pytest.raises(UserError, match="was begun with .* for b"):
        bench.main(given)


def test_the_model_is_loaded_once_and_held_once(cats, bench, monkeypatch):
    """Also after an edit that found no memory; and each edit is what it is alone."""
    loads, held, load, step = [], [], loading._from_folder, Editor.step
    monkeypatch.setattr(loading, "_from_folder", lambda *args: (loads.append(args[0]), load(*args))[1])

    def failing(self):
        held.append(_priors() - before)
        if len(held) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
        return step(self)

    monkeypatch.setattr(Editor, "step", failing)
    before = _priors()
    assert bench.main([str(cats), *PROMPTS, "--methods", "dds", "--output", "out", *QUICK]) == 0
    assert len(loads) == 1 and max(held) == 1 and _priors() == before
    options = ["--image", str(cats / "b.png"), *PROMPTS, "objective=dds", *QUICK, "output=alone"]
    assert run_command("edit", options) == 0
    alone, benched = (np.asarray(Image.open(Path(p) / "edited.png")) for p in ("alone", "out/dds/b"))
    assert np.array_equal(alone, benched)


def _priors():
    gc.collect()
    return sum(isinstance(o, Prior) for o in gc.get_objects())


def test_missing_weights_leave_columns_out(cats, bench, capsys):
    assert bench.main([str(cats), *PROMPTS, "--methods", "dds", "--limit", "1", "--output", "out", *QUICK]) == 0
    text = (Path("out") / "images.md").read_text()
    assert text.splitlines()[0] == "| method | images | PSNR to source, dB | s | MB |"
    assert sum("left out" in line for line in text.splitlines()) == 3
    assert not (Path("out") / "dds" / "b").exists()  # --limit 1


def test_an_image_that_fails_is_listed_and_the_rest_goes_on(cats, bench, capsys):
    (cats / "aa.png").write_bytes(b"no image")
    given = [str(cats), *PROMPTS, "--methods", "dds", "--output", "out", "--user-study", "study.html", *QUICK]
    assert bench.main(given) == 1
    assert [(f["method"], f["name"]) for f in result(Path("out"))["failed"]] == [("dds", "aa")]
    assert result(Path("out"))["summary"]["overall"]["dds"]["cases"] == 2
    assert "- aa, dds:" in (Path("out") / "images.md").read_text()
    assert "1 failed" in capsys.readouterr().err
    assert [i["image"] for i in json.loads(Path("study.key.json").read_text())["items"]] == ["a", "b"]
    shutil.rmtree("out")
    for name in ("a", "b"):
        (cats / f"{name}.png").unlink()
    with pytest.raises(UserError, match="no image was edited: .*aa.png"):
        bench.main(given)


def test_pie_bench(cats, bench, judge_options):
    folder = Path("pie")
    (folder / "annotation_images").mkdir(parents=True)
    entry = {"original_prompt": "a [cat]", "editing_prompt": "a [dog]", "mask": [0, 512 * 256]}
    mapping = {}
    for name, kind in (("a", "1"), ("b", "9")):
        shutil.copy(cats / f"{name}.png", folder / "annotation_images" / f"{name}.png")
        mapping[f"00{name}"] = {**entry, "image_path": f"{name}.png", "editing_type_id": kind}
    mapping["00b"]["mask"] = [0, 512 * 512]
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    given = ["--pie-bench", str(folder), "--methods", "dds", "--output", "out", *judge_options, *QUICK]
    assert bench.main(given) == 0
    found = result(Path("out"))
    assert found["summary"].keys() == {"change object", "change style", "overall"}
    assert [r["prompts"] for r in found["runs"]] == [["a cat", "a dog"]] * 2
    assert (Path("out") / "dds" / "00a" / "edited.png").exists()
    assert found["runs"][1]["figures"]["background_psnr_db"] is None  # JSON has no nan
    assert "background_psnr_db" not in found["summary"]["change style"]["dds"]
    row = found["summary"]["overall"]["dds"]
    assert row["background_psnr_db"] == pytest.approx(found["runs"][0]["figures"]["background_psnr_db"], abs=1e-3)
    assert bench.main([*given, "--published"]) == 0
    assert result(Path("out"))["published_pie_bench"]
    assert result(Path("out"))["summary"]["overall"]["dds"]["background_psnr_db"] > row["background_psnr_db"]


@pytest.mark.parametrize(
    "given, text",
    [
        ([*PROMPTS], "either a folder of images or --pie-bench"),
        (["none", *PROMPTS], "none: no such folder"),
        (["CATS", "--src", "a cat", "--tgt", "A cat "], '--src and --tgt are both "A cat"'),
        ([".", "CATS", *PROMPTS], "one folder"),
        (["CATS"], "--src is missing"),
        (["CATS", *PROMPTS, "--methods", "magic"], "magic is unknown"),
        (["CATS", *PROMPTS, "--clip", "./none"], "--clip ./none: no such folder"),
        (["CATS", *PROMPTS, "--lpips", "none.pth"], "--lpips none.pth: no such file"),
        (["CATS", *PROMPTS, "--user-study", "study"], "end in .html"),
        (["CATS", *PROMPTS, "--limit", "0"], "--limit 0"),
        (["CATS", *PROMPTS, "--published"], "goes with --pie-bench"),
        (["--pie-bench", "CATS"], "no mapping_file.json"),
        (["--pie-bench", "CATS", *PROMPTS], "brings its own prompts"),
        (["CATS", *PROMPTS, "edit.nothing=1"], "unknown option edit.nothing"),
        (["CATS", *PROMPTS, "edit.iterations=many"], "edit.iterations=many"),
        (["CATS", *PROMPTS, "objective.weight=-1"], "weight=-1"),
        (["CATS", *PROMPTS, "zoom=2"], "zoom= is for scenes"),
        (["CATS", *PROMPTS, "edit=field"], "images are edited with edit=latent or edit=pixels"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(cats, bench, given, text):
    given = [str(cats) if g == "CATS" else g for g in given]
    with pytest.raises(UserError) as error:
        bench.main([*given, "--output", "out"])
    assert text in str(error.value) and "\n" not in str(error.value)
    assert not Path("out").exists()


def test_scripts_end_in_one_line_and_exit_code_1(tmp_path):
    for command in (["bench_images.py", "none", *PROMPTS], ["count_study.py", "none.json", "a.json"]):
        done = subprocess.run([sys.executable, SCRIPTS / command[0], *command[1:]], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: none") and done.stderr.count("\n") == 1


def test_a_study_is_counted(cats, bench, capsys):
    given = [str(cats), *PROMPTS, "--methods", "cds,dds", "--output", "out", "--user-study", "study.html", *QUICK]
    assert bench.main(given) == 0
    key = json.loads(Path("study.key.json").read_text())
    liked = {"cds": 5, "dds": 2}
    answers = [
        {"item": i, "place": k, **dict.fromkeys(("text", "structure", "quality"), liked[method])}
        for i, item in enumerate(key["items"])
        for k, method in enumerate(item["methods"])
    ]
    Path("one.json").write_text(json.dumps({"study": key["study"], "participant": "1", "answers": answers}))
    capsys.readouterr()
    assert load_script("count_study").main(["study.key.json", "one.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| cds | 1 | 6 | 5.00 | 5.00 | 5.00 |", "| dds | 1 | 6 | 2.00 | 2.00 | 2.00 |"]
