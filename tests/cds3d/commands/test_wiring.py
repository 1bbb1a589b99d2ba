"""What a command hands to the editor, and that the figures it writes are those of what it wrote."""

import json
import logging
import shutil

import pytest
import torch
from checks import fails
from judges import save_clip
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from cds3d.cli import run_command
from cds3d.commands import edit as edit_module
from cds3d.commands import evaluation as evaluation_module
from cds3d.commands import images as images_module
from cds3d.editor import Editor
from cds3d.metrics.clip import Clip
from cds3d.metrics.psnr import psnr
from cds3d.metrics.truth import changed_region
from cds3d.pocket.world.capture import WorldCapture
from tensorf import train as train_module
from tensorf.captures import load_capture
from tensorf.renderable import load_field

SHARES = ["edit.color_lr=0.3", "edit.network_lr=0.5", "edit.density_lr=0.7", "edit.line_lr=0.25"]


@pytest.fixture
def editors(monkeypatch):
    """The editors that the commands build."""
    built = []

    class Recorded(Editor):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            built.append(self)

    for module in (edit_module, images_module):
        monkeypatch.setattr(module, "Editor", Recorded)
    return built


def test_an_edit_is_what_its_options_say(trained, edit_options, capture_folder, editors, prior):
    options = [
        "guidance.scale=4.5",
        "objective.weight=7",
        "objective.t_max=600",
        "edit.lr=0.02",
        "edit.region.mask_threshold=0.6",
        "edit.region.visits=5",
        "edit.preservation=13",
        "edit.ray_share=0.5",
        "seed=3",
        "video_frames=0",
    ]
    assert run_command("edit", [*edit_options, *SHARES, *options]) == 0
    (editor,) = editors
    subject, objective = editor.subject, editor.objective
    assert torch.equal(editor.prompts.source.tokens, prior.embed("a yellow flower").tokens)
    assert torch.equal(editor.prompts.target.tokens, prior.embed("a red flower").tokens)
    assert torch.equal(editor.prompts.null.tokens, prior.embed("").tokens)
    assert (objective.scale, objective.weight, objective.t_min, objective.t_max) == (4.5, 7.0, 50, 600)
    assert (editor.config.lr, editor.config.iterations, editor.config.seed) == (0.02, 2, 3)
    rates = {id(g["params"][0]): rate for g, rate in zip(editor.optimizer.param_groups, editor._rates, strict=True)}
    groups = subject.target.parameter_groups()
    expected = {"color": 0.3, "network": 0.5, "density": 0.7, "color_lines": 0.3 * 0.25, "density_lines": 0.7 * 0.25}
    assert {n: rates[id(groups[n][0])] for n in groups} == pytest.approx({n: 0.02 * s for n, s in expected.items()})
    assert (subject.region.config.mask_threshold, subject.region.config.visits) == (0.6, 5)
    assert (subject.preservation.preservation, subject.preservation.ray_share, subject.views.seed) == (13.0, 0.5, 3)
    capture = load_capture(capture_folder, width=64, test_every=8)
    own = [capture.cameras[i].resized(48, 36) for i in capture.train]
    assert len(subject.cameras) == len(own) < len(capture.cameras)  # the held-out view is not edited through
    assert all(torch.equal(a.pose, b.pose) and a.width == 48 for a, b in zip(subject.cameras, own, strict=True))


@pytest.mark.parametrize(("preset", "exact"), [("field", False), ("published", True)])
def test_only_the_published_preset_renders_all_samples(edit_options, editors, preset, exact):
    options = [f"edit={preset}", "edit.iterations=1", "edit.width=48", "video_frames=0"]
    assert run_command("edit", [*edit_options, *SHARES, *options]) == 0
    assert editors[0].subject.exact is exact


def test_an_image_edit_is_what_its_options_say(image_options, editors, prior):
    options = ["objective=dds", "objective.scale=3", "edit.lr=0.3", "seed=2"]
    assert run_command("edit", [*image_options, *options]) == 0
    (editor,) = editors
    assert torch.equal(editor.prompts.target.tokens, prior.embed("a red flower").tokens)
    assert editor.objective.scale == 3.0 and editor.config.lr == 0.3 and editor.config.seed == 2
    assert editor.config.optimizer == "sgd"


def test_the_figures_are_those_of_the_files(tmp_path, trained, edit_options, capture_folder):
    clip = save_clip(tmp_path / "clip")
    assert run_command("edit", [*edit_options, "edit.lr=0.3", "edit.warmup=0", f"clip={clip}"]) == 0
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    metrics = json.loads((run / "metrics.json").read_text())
    source, edited = (load_field(folder / "field.safetensors") for folder in (trained, run))
    capture, world = load_capture(capture_folder, width=64), WorldCapture.read(capture_folder)
    gains, kept, same, directions = [], [], [], []
    judge = Clip(str(clip), torch.device("cpu"), fit="squash")
    words = judge.text("a red flower") - judge.text("a yellow flower")
    for i in capture.test:
        camera = capture.cameras[i].resized(48, 36)
        before, after = (field.render(camera)["color"] for field in (source, edited))
        name = capture.image_names[i].split(".")[0]
        was, now = (world.view(name, a, 48, 36).image for a in (world.attributes, world.attributes.edited(color="red")))
        changed, truth = torch.from_numpy(changed_region(was, now)), torch.from_numpy(now).float() / 255
        gains.append(psnr(after, truth, changed) - psnr(before, truth, changed))
        kept.append(psnr(after, before, ~changed))
        same.append(psnr(after, before))
        seen = judge.image(after) - judge.image(before)
        directions.append(float(torch.nn.functional.cosine_similarity(seen, words, 0)))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert metrics["edit_gain_db"] == pytest.approx(mean(gains), abs=1e-3) and abs(metrics["edit_gain_db"]) > 1e-3
    assert metrics["kept_psnr_db"] == pytest.approx(mean(kept), abs=1e-3)
    assert metrics["psnr_to_source_db"] == pytest.approx(mean(same), abs=1e-3)
    assert metrics["clip_direction"] == pytest.approx(mean(directions), abs=1e-3)
    assert all(-1 <= metrics[f"clip_{k}"] <= 1 for k in ("direction", "path_consistency", "motion_consistency"))
    assert OmegaConf.load(run / "config.yaml").clip == str(clip)


def test_a_clip_that_is_not_there_is_told_before_the_edit(tmp_path, trained, edit_options, capsys):
    assert run_command("edit", [*edit_options, "clip=nowhere/at/all"]) == 1
    assert "error: clip=nowhere/at/all: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "daisies" / "a-red-flower").exists()


def test_metrics_are_written_last(tmp_path, trained, edit_options, monkeypatch):
    def broken(*arguments, **options):
        raise OSError(28, "no room")

    monkeypatch.setattr(evaluation_module, "write_video", broken)
    assert run_command("edit", edit_options) == 1
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    assert (run / "field.safetensors").exists() and not (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("difference", "options", "told"), [(0.2, [], 1), (0.2, ["field.exposure=0.02"], 0), (0.02, [], 0)]
)
def test_exposures_that_are_learnt_by_themselves_are_told(
    tmp_path, train_options, monkeypatch, caplog, difference, options, told
):
    monkeypatch.setattr(train_module, "exposure_difference", lambda capture: difference)
    with caplog.at_level(logging.INFO):
        assert run_command("train", [*train_options, *options, f"output={tmp_path}/source"]) == 0
    assert caplog.text.count("field.exposure=0 turns this off") == told


@pytest.mark.parametrize("kind", ["field", "image", "baseline"])
def test_an_edit_does_not_go_on_with_other_weights(
    kind, tmp_path, tiny_folder, edit_options, image_file, request, capsys
):
    if kind == "field":
        request.getfixturevalue("trained")
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    of_image = ["--image", str(image_file), "--src", "a cat", "--tgt", "a pig", "edit.iterations=2", "device=cpu"]
    options = {"field": edit_options, "image": of_image, "baseline": [*of_image, "baseline=dds-pnp"]}[kind]
    options = [o for o in options if not o.startswith("guidance.path")]
    options += [f"guidance.path={folder}", "output=run", *(["video_frames=0"] if kind == "field" else [])]
    assert run_command("edit", options) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    save_file({k: 1.01 * v for k, v in weights.items()}, file, metadata={"format": "pt"})
    more = [*options, "edit.iterations=4", "resume=true"]
    assert "begun with other weights of guidance.path" in fails(capsys, "edit", *more)
    assert {p: p.read_bytes() for p in before} == before
    save_file(weights, file, metadata={"format": "pt"})
    assert run_command("edit", more) == 0
