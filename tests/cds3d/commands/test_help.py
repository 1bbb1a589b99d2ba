"""`--help` and the entry point."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cds3d.cli import main, run_command
from cds3d.options import data_folder, groups

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", ["train", "import", "edit", "render", "view", "export", "bench"])
def test_help_shows_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(command, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    folder = data_folder("configs")
    config = OmegaConf.load(folder / f"{command}.yaml")
    for key, value in config.items():
        if key != "defaults" and not OmegaConf.is_dict(value):
            shown = f"[{', '.join(value)}]" if OmegaConf.is_list(value) else value
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else shown
            assert f"{key}: {shown}" in text
    chosen = {k: v for entry in config.get("defaults", []) if entry != "_self_" for k, v in entry.items()}
    for group, default in chosen.items():
        assert group in text and all(name in text for name in groups()[group])
        for line in lines_of(folder / group / f"{default}.yaml"):
            assert line in text
    flags = {
        "train": ["--capture"],
        "import": [],
        "edit": ["--tgt", "--src", "--image", "--capture", "--run", "--where", "--views"],
        "render": [],
        "view": ["--scene", "--capture"],
        "export": [],
        "bench": ["--quick", "--full"],
    }
    assert all(flag in text for flag in flags[command])


def lines_of(path):
    """Lines with options, of the file and of those that it is based on, without values that it sets itself."""
    own = path.read_text()
    bases = OmegaConf.create(own).get("defaults", [])
    lines = [line for line in own.splitlines() if line and not line.startswith(("defaults:", "  - "))]
    set_here = {line.split(":")[0] for line in lines if line[0].isalpha() and line.split("#")[0].rstrip()[-1] != ":"}
    inherited = [line for base in bases if base != "_self_" for line in lines_of(path.with_name(f"{base}.yaml"))]
    return lines + [line for line in inherited if line.split(":")[0] not in set_here]


def test_help_shows_a_value_once(capsys):
    with pytest.raises(SystemExit):
        run_command("edit", ["--help", "edit=shape"])
    text = capsys.readouterr().out
    objective = text[text.index("objective.KEY=VALUE") : text.index("refit.KEY=VALUE")]
    assert objective.count("scale_end:") == 1 and "scale_end: ${edit.scale_end}" in objective
    edit = text[text.index("edit.KEY=VALUE") : text.index("field.KEY=VALUE")]
    assert "mask_threshold:" in edit and "visits: 2" in edit  # of groups of values, what is not set here stays
    assert "\ndefaults:\n" not in text


def test_every_option_has_a_comment():
    for path in data_folder("configs").glob("*.yaml"):
        lines = path.read_text().splitlines()
        for line in lines[lines.index("") + 1 :] if "" in lines else lines:
            if ":" in line and line.split(":")[0] not in ("seed", "frames", "fps"):
                assert "#" in line, f"{path.name}: {line}"


@pytest.mark.parametrize(
    "chosen, shown, hidden",
    [
        (["edit=latent"], "edit=latent:", "color_lr:"),
        (["--image", "x.png"], "edit=latent:", "color_lr:"),
        (["edit=shape", "objective=pds"], "agreement: 0.3", "adam_floor: 0.3"),
        (["edit=pictures"], "rounds: 2", "smoothness:"),
        (["edit=none"], "edit=field:", "edit=none"),
    ],
)
def test_help_shows_what_is_chosen(chosen, shown, hidden, capsys):
    with pytest.raises(SystemExit):
        run_command("edit", [*chosen, "--help"])
    text = capsys.readouterr().out
    assert shown in text and hidden not in text


@pytest.mark.parametrize(
    "given, meant",
    [
        (["--prompt", "x"], "here it is --tgt"),
        (["--prompt=x\ny"], "error: unrecognized arguments: --prompt=x y (here it is --tgt)\n"),
        (["--seed", "3"], "here it is seed=VALUE"),
        (["--scene", "cat"], "here it is scene=VALUE"),
        (["--mask", "x"], "here it is mask=VALUE"),
        (["--negative", "x"], "objective.negative_prompt=TEXT"),
        (["-m"], "here it is cds3d sweep"),
        (["--iterations", "3"], "here it is edit.iterations=VALUE"),
        (["--target", "x"], "here it is --tgt"),
    ],
)
def test_flags_of_other_programs_are_told_what_is_meant(given, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command("edit", ["--tgt", "x", *given])
    assert stop.value.code == 2 and meant in capsys.readouterr().err


def test_what_is_meant_is_what_the_command_has(capsys):
    for given, meant in ((["--prompt", "x"], None), (["--iterations", "3"], "here it is field.iterations=VALUE")):
        with pytest.raises(SystemExit):
            run_command("train", given)
        error = capsys.readouterr().err
        assert meant in error if meant else "here it is" not in error


@pytest.mark.parametrize(
    "option, told",
    [
        ("edit.iteration=3", "did you mean edit.iterations?"),
        ("edit.parameter=latent", "edit.parameter is an option of edit=latent and edit=pixels only"),
        ("objective.stride=2", "objective.stride is an option of objective=pds"),
        ("seed=1,2", "has to be a whole number of at least 0; cds3d sweep makes an edit for each"),
        ("objective=cds,dds", "objective=cds,dds is unknown; use one of"),
        ("objective.weight=1,2", "has to be a number; cds3d sweep"),
        ("guidance.scale=1,2", "above 0; cds3d sweep"),
        ("prompt=x", "unknown option prompt: did you mean --tgt?"),
        ("+edit.lr=3", "'+edit.lr=3' is no key=value"),
        ("=3", "'=3' is no key=value"),
        ("edit.lr=[1", "cannot read edit.lr=[1: are all brackets and quotes closed?"),
    ],
)
def test_wrong_options_are_told_what_is_meant(option, told, capsys):
    assert run_command("edit", ["--tgt", "a red flower", option]) == 1
    error = capsys.readouterr().err
    assert told in error and "no key was changed" not in error


def test_a_reader_that_goes_away_is_no_error():
    """As in "cds3d list | head -1"."""
    command = [sys.executable, "-c", "from cds3d.cli import main; raise SystemExit(main(['list']))"]
    told, put = os.pipe()
    os.close(told)
    ended = subprocess.run(command, stdout=put, stderr=subprocess.PIPE, text=True, timeout=300, cwd=ROOT)
    os.close(put)
    assert ended.returncode == 141 and ended.stderr == ""


def test_versions(capsys):
    import cds3d

    for command in ("train", "edit", "render", "view"):
        with pytest.raises(SystemExit) as stop:
            run_command(command, ["--version"])
        assert stop.value.code == 0 and capsys.readouterr().out == f"cds3d {cds3d.__version__}\n"


def test_the_list_tells_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert '"a yellow flower"' in text and "objective=NAME: cds, csd" in text and "no finished runs" in text
    assert "tulip" in text and "wooden" in text
    for name, metrics in (("scene/a-b", '{"edit_gain_db": 3.25}'), ("images/x/c", "{"), ("scene/begun", None)):
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("scene: {}\n")
        if metrics is not None:
            (run / "metrics.json").write_text(metrics)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "outputs/scene/a-b  gain 3.2 dB" in text and "outputs/images/x/c  (metrics.json is damaged)" in text
    assert "begun" not in text


def test_a_name_that_the_terminal_cannot_show_is_printed_by_its_codes(tmp_path, monkeypatch):
    run = tmp_path / "outputs" / "blüte" / "rot"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("scene: {}\n")
    (run / "metrics.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["list", "runs"]) == 0
    assert b"outputs/bl\\xfcte/rot" in shown.buffer.getvalue()


def test_the_list_of_one_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begins = {"scenes": "scenes (", "presets": "field=NAME", "runs": "no finished runs", "words": "words that"}
    for what, begin in begins.items():
        assert main(["list", what]) == 0
        text = capsys.readouterr().out
        assert text.startswith(begin) and not any(other in text for name, other in begins.items() if name != what)
    assert main(["list", "edits"]) == 1
    assert "error: edits is nothing that can be listed: use one of scenes, presets" in capsys.readouterr().err


def test_switches_stand_for_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command("bench", ["--full", "cases=0"]) == 1
    assert "cases=0 has to be" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run_command("bench", ["--quick", "--full"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_main(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "edit", "render", "bench"))
    assert main(["paint"]) == 2
    out, err = capsys.readouterr()
    assert (
        err
        == "error: 'paint' is no command; use one of: train, import, edit, render, view, export, sweep, bench, list\n"
        and out == ""
    )
    assert main(["--version"]) == 0
    assert "cds3d 0." in capsys.readouterr().out


def test_main_hands_on_to_the_commands(capsys):
    assert main(["render"]) == 1
    assert "which run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "edit"])
def test_help_of_a_capture_shows_its_options(command, capsys):
    with pytest.raises(SystemExit):
        run_command(command, ["--capture", "walk.mp4", "--help"])
    text = capsys.readouterr().out
    assert "scene.KEY=VALUE, as in scene=capture" in text and "  frames: " in text


def test_help_shows_each_block_once_with_the_presets_own_values(capsys):
    with pytest.raises(SystemExit):
        run_command("edit", ["edit=pictures", "--help"])
    shown = capsys.readouterr().out.partition("edit.KEY=VALUE")[2].partition("field.KEY=VALUE")[0]
    assert shown.count("  region:") == 1 and shown.count("    mask_threshold: ") == 1
    assert "    mask_threshold: 0.6 " in shown and "    visits: 3" in shown and "    agreement: 0.5" in shown
