"""`edit.py --image ... baseline=NAME`, from options to run folder."""

import json

import numpy as np
import pytest
from checks import fails
from omegaconf import OmegaConf
from PIL import Image

import cds3d.commands.baselines
from cds3d.baselines import BASELINES
from cds3d.baselines.sdedit import SDEdit
from cds3d.cli import run_command
from tensorf.errors import UserError

TINY = {
    "sdedit": ["baseline.steps=4"],
    "ddpm-inversion": ["baseline.steps=4", "baseline.skip=1"],
    "ddpm-p2p": ["baseline.steps=4", "baseline.skip=1"],
    "ddpm-pnp": ["baseline.steps=4", "baseline.skip=1"],
    "pnp": ["baseline.steps=2", "baseline.inversion_steps=4"],
    "dds-pnp": [],
}
ITERATIONS = {"sdedit": 3, "ddpm-inversion": 7, "ddpm-p2p": 7, "ddpm-pnp": 7, "pnp": 5, "dds-pnp": 2}


def edited(folder):
    return np.asarray(Image.open(folder / "edited.png")).astype(int)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_writes_a_run_folder(tmp_path, image_options, capsys, name):
    assert run_command("edit", [*image_options, f"baseline={name}", *TINY[name]]) == 0
    run = tmp_path / "outputs" / "images" / "a flower" / f"a-red-flower-{name}"
    with Image.open(run / "edited.png") as picture:
        assert picture.size == (23, 17)  # no whole number of latent cells
    with Image.open(run / "comparison.png") as picture:
        assert picture.size == (46, 17)
    config, metrics = OmegaConf.load(run / "config.yaml"), json.loads((run / "metrics.json").read_text())
    assert config.baseline.kind == name and config.tgt == "a red flower"
    assert metrics["iterations"] == ITERATIONS[name]
    assert metrics["edit_seconds"] > 0 and "psnr_to_source_db" in metrics
    assert "100%" in capsys.readouterr().err
    told = fails(capsys, "edit", *image_options, f"baseline={name}", *TINY[name])
    assert "holds a finished run" in told and ("more edit.iterations" in told) == (name == "dds-pnp")
    both = fails(capsys, "edit", *image_options, f"baseline={name}", *TINY[name], "objective=sds")
    assert f"either baseline={name} or objective=sds" in both


def test_the_seed_decides(tmp_path, image_options):
    pictures = []
    for i, seed in enumerate((0, 0, 1)):
        options = [*image_options, "baseline=sdedit", "baseline.steps=4", f"seed={seed}", f"output={tmp_path / str(i)}"]
        assert run_command("edit", options) == 0
        pictures.append(edited(tmp_path / str(i)))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()


def test_strength_zero_is_the_source_as_the_encoder_sees_it(tmp_path, image_options):
    for name, strength in (("a", "0.0"), ("b", "1.0")):
        options = ["baseline=sdedit", "baseline.steps=2", f"baseline.strength={strength}", f"output={tmp_path / name}"]
        assert run_command("edit", [*image_options, *options]) == 0
    nothing = [*image_options, "edit.iterations=1", "edit.lr=1e-12", "objective=dds", f"output={tmp_path / 'c'}"]
    assert run_command("edit", nothing) == 0
    assert (edited(tmp_path / "a") == edited(tmp_path / "c")).all()
    assert (edited(tmp_path / "b") != edited(tmp_path / "c")).any()


def test_ctrl_c_is_130_and_the_same_command_starts_again(tmp_path, image_options, monkeypatch, capsys):
    options = [*image_options, "baseline=sdedit", "baseline.steps=4"]
    monkeypatch.setattr(cds3d.commands.baselines, "tqdm", _interrupted)
    assert run_command("edit", options) == 130
    run = tmp_path / "outputs" / "images" / "a flower" / "a-red-flower-sdedit"
    assert (run / "config.yaml").exists() and not (run / "metrics.json").exists()
    assert "stopped: after 1 steps; the same command starts again" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run_command("edit", options) == 0


def _interrupted(steps, **_):
    for i, step in enumerate(steps):
        if i == 1:
            raise KeyboardInterrupt
        yield step


def test_wrong_uses_are_told_in_one_line(image_options, tiny_folder, capsys, monkeypatch):
    scene = ["--tgt", "a pig", f"guidance.path={tiny_folder}", "baseline=pnp"]
    assert "baseline=pnp edits images, not scenes: give one with --image FILE" in fails(capsys, "edit", *scene)
    text = fails(capsys, "edit", *image_options, "baseline=diffuseit")
    assert "baseline=diffuseit is unknown" in text and all(name in text for name in BASELINES)
    told = {
        ("baseline=sdedit", "baseline.strength=2.0"): "baseline.strength=2.0 has to lie in 0..1",
        ("baseline=sdedit", "baseline.steps=4.5"): "baseline.steps=4.5 has to be a whole number",
        ("baseline=sdedit", "baseline.steps=1000"): "baseline.steps=1000 has to lie in 1..999",
        ("baseline=sdedit", "baseline.skip=3"): "baseline.skip is an option of baseline=ddpm-inversion",
        ("baseline=sdedit", "baseline.kind=paint"): "baseline.kind=paint is unknown",
        ("baseline=sdedit", "edit=pixels"): "a baseline edits the latent",
        ("baseline=dds-pnp", "baseline.t_max=1000"): "baseline.t_min..t_max is 50..1000",
    }
    for options, message in told.items():
        assert message in fails(capsys, "edit", *image_options, *options)
    monkeypatch.setattr(SDEdit, "edit", lambda self, prior, source, *_, **__: source / 0)
    assert "the edited latent is not finite" in fails(capsys, "edit", *image_options, "baseline=sdedit")


@pytest.mark.parametrize(
    ("guidance", "negative", "told"),
    [
        ("pocket", "a blurry cat", True),
        ("pocket", "a cat", False),
        ("pocket", "", False),
        ("sd14", "a blurry cat", False),
    ],
)
def test_words_that_pocket_does_not_know_are_told(image_options, caplog, monkeypatch, guidance, negative, told):
    def stop(config):
        raise UserError("far enough")

    monkeypatch.setattr(cds3d.commands.baselines, "_output_folder", stop)
    options = [o for o in image_options if not o.startswith("guidance.path")]
    options += [f"guidance={guidance}", "baseline=pnp", f"baseline.negative_prompt={negative}"]
    assert run_command("edit", options) == 1
    text = caplog.text
    assert ('does not know "blurry" of the negative prompt' in text) == told == ("negative" in text)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], None),
        (["guidance.image_scale_end=null"], None),  # benchmarks set it for all methods
        (["edit.lr=0.3", "objective.weight=9"], "objective.weight, edit.lr:"),
        (["guidance.scale=2"], "guidance.scale:"),
    ],
)
def test_options_that_a_baseline_does_not_use_are_told(image_options, caplog, more, told):
    own = [o for o in image_options if not o.startswith("edit.iterations")]
    assert run_command("edit", [*own, "baseline=sdedit", *TINY["sdedit"], *more]) == 0
    warnings = [r.getMessage() for r in caplog.records if "does not use" in r.getMessage()]
    assert warnings == (
        [] if told is None else [f"baseline=sdedit does not use {told} its own options begin with baseline."]
    )


def test_dds_with_features_uses_the_options_of_an_edit(image_options, caplog):
    assert run_command("edit", [*image_options, "baseline=dds-pnp", "edit.lr=0.3", "objective.weight=9"]) == 0
    assert "baseline=dds-pnp does not use objective.weight: its" in caplog.text


def test_help_names_the_baselines(capsys):
    with pytest.raises(SystemExit):
        run_command("edit", ["--help"])
    text = capsys.readouterr().out
    assert "baseline=none" in text and all(name in text for name in BASELINES)


@pytest.mark.parametrize(
    ("name", "option"), [("pnp", "baseline.inversion_steps=7"), *((n, "baseline.steps=1000") for n in ITERATIONS)][:-1]
)
def test_options_that_do_not_fit_the_model_leave_no_folder(tmp_path, image_options, capsys, name, option):
    told = fails(capsys, "edit", *image_options, f"baseline={name}", *TINY[name], option)
    assert option in told
    assert not (tmp_path / "outputs" / "images").exists()
