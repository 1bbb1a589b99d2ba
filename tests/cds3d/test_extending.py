"""The examples of docs/extending.md, run out of the page: each is what it says, and small."""

import importlib.util
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cds3d import options
from cds3d.commands.preparing import build_objective
from cds3d.editor import EditConfig, Editor
from cds3d.guidance import Prediction, Prompt
from cds3d.objectives import OBJECTIVES
from cds3d.objectives.objective import Prompts
from cds3d.options import build, load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from cds3d.subjects.field import FieldRates, FieldViews, Preservation
from cds3d.subjects.image import LatentPair
from cds3d.subjects.region import RegionConfig
from tensorf.cameras import Camera
from tensorf.captures import capture as captures
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.renderable import KINDS, load_field
from tensorf.space import Space

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
PROMPTS = Prompts(*(Prompt(torch.full((1, 1, 1), v)) for v in (0.0, 2.0, 3.0)))  # null, source, target


def block(name):
    """The code block of the page whose first line names this file."""
    (found,) = re.findall(rf"```\w+\n# {re.escape(name)}\n(.*?)```", PAGE.read_text(), re.S)
    assert len(found.splitlines()) < 60
    return found


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A file of the page as a module."""

    def load(name):
        path = tmp_path / Path(name).name
        path.write_text(block(name))
        spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


class LinearPrior:
    """The noise in z_t is half of z_t and the prompt's one number; latents are 8x8 means of the image."""

    device = torch.device("cpu")
    alphas = torch.full((1000,), 0.36)
    beside_others = staticmethod(nullcontext)

    def encode_image(self, image):
        return F.avg_pool2d(image * 2 - 1, 8)

    def noised(self, z, t, noise):
        return 0.6 * z + 0.8 * noise

    def submit(self, *queries):
        return queries

    def gather(self, *pending):
        return [[Prediction(0.5 * q.z_t + q.prompt.tokens.view(1, 1, 1, 1)) for q in queries] for queries in pending]


def test_an_objective(tmp_path, load, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "anchored", load("cds3d/objectives/anchored.py").Anchored)
    configs = tmp_path / "configs"
    shutil.copytree(options.data_folder("configs"), configs)
    (configs / "objective" / "anchored.yaml").write_text(block("configs/objective/anchored.yaml"))
    monkeypatch.setattr(options, "data_folder", lambda name: tmp_path / name)
    anchored = build_objective(load_config("edit", ["objective=anchored", "objective.pull=0.25"]))
    dds = build_objective(load_config("edit", ["objective=dds"]))
    assert anchored.pull == 0.25 and build_objective(load_config("edit", ["objective=anchored"])).pull == 0.1
    source, target = torch.randn(2, 1, 3, 4, 5)
    pair, draw = LatentPair(source, torch.nn.Parameter(target)), dds.draw(source, 0.0)
    step = anchored.gradient(LinearPrior(), pair, PROMPTS, draw)
    expected = dds.gradient(LinearPrior(), pair, PROMPTS, draw).gradient + 0.25 * (target - source)
    assert torch.allclose(step.gradient, expected, atol=1e-6)
    assert step.figures["pull_rms"] == pytest.approx(0.25 * (target - source).square().mean().sqrt().item())
    with pytest.raises(UserError, match=r"^objective\.pull=-1"):
        build_objective(load_config("edit", ["objective=anchored", "objective.pull=-1"]))


def test_a_metric(load):
    color_cast = load("cds3d/metrics/cast.py").color_cast
    grey = torch.full((4, 5, 3), 0.5)
    assert color_cast(grey, grey) == 0
    assert color_cast(grey + torch.tensor([0.3, 0.0, -0.4]), grey) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def llff_folder(tmp_path_factory):
    """Six photos, 64x48, in LLFF layout."""
    folder = tmp_path_factory.mktemp("llff")
    write_capture(folder, Attributes(2_000_026, "flower", "daisy", "yellow", "garden"), views=6, width=64, height=48)
    return folder


@pytest.fixture
def table(tmp_path, llff_folder):
    """The six photos with their poses in poses.csv."""
    folder = tmp_path / "garden"
    shutil.copytree(llff_folder / "images", folder / "images")
    lines = []
    for photo, row in zip(sorted((folder / "images").iterdir()), np.load(llff_folder / "poses_bounds.npy")):
        down, right, back, position, (_, _, focal) = row[:15].reshape(3, 5).T
        pose = np.stack([right, down, -back, position], 1)
        lines.append(",".join([photo.name, repr(float(focal)), *(repr(float(v)) for v in pose.ravel())]))
    (folder / "poses.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_format_of_captures(load, monkeypatch, llff_folder, table):
    module, read = load("tensorf/captures/table.py"), captures._read
    scope = {"is_table": module.is_table, "read_table": module.read_table, "read": read}
    entry = "".join(f"    {line}\n" for line in block("in _read").splitlines())
    exec(f"def extended(root, *options):\n{entry}    return read(root, *options)\n", scope)
    monkeypatch.setattr(captures, "_read", scope["extended"])
    ours, llff = load_capture(table, space="box"), load_capture(llff_folder, space="box")
    assert ours.image_names == llff.image_names and torch.equal(ours.images, llff.images)
    for a, b in zip(ours.cameras, llff.cameras, strict=True):
        assert torch.allclose(a.pose, b.pose, atol=1e-5) and a.fx == pytest.approx(b.fx)
    text = (table / "poses.csv").read_text()
    (table / "poses.csv").write_text(text.replace("view002.jpg,", "view002.jpg,1.0,"))
    with pytest.raises(UserError, match=r"poses\.csv: row 2 has to be a name and 13 numbers"):
        load_capture(table)
    (table / "poses.csv").write_text(text)
    (table / "images" / "view004.jpg").unlink()
    with pytest.raises(UserError, match="view004.jpg of row 4 does not exist"):
        load_capture(table)


@pytest.fixture
def voxels(load, monkeypatch):
    """A field with structure: half of it is thick, and its colours differ."""
    module = load("tensorf/voxels.py")
    monkeypatch.setitem(KINDS, "voxels", module.load_voxels)
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    field = module.Voxels(Space("box", box, 1.0, 10.0, torch.eye(3, 4), 0.25), size=6, steps=24)
    torch.manual_seed(0)
    with torch.no_grad():
        field.paint.normal_()
        field.thickness[:, :, :, 3:] = 1.0
    return field


@pytest.fixture
def cameras():
    """Two, 24x16, from the side of -z."""
    pose = torch.eye(3, 4)
    pose[2, 3] = -3.0
    camera = Camera(pose, fx=28.0, fy=28.0, cx=12.0, cy=8.0, width=24, height=16)
    moved = pose.clone()
    moved[0, 3] = 0.2
    return [camera, camera.with_pose(moved)]


def test_a_kind_of_field_is_rendered_saved_and_loaded(tmp_path, voxels, cameras):
    path = tmp_path / "run" / "field.safetensors"
    voxels.save(path)
    loaded = load_field(path)
    assert type(loaded) is type(voxels) and [p.name for p in path.parent.iterdir()] == [path.name]
    before, after = voxels.render(cameras[0]), loaded.render(cameras[0])
    assert {k: tuple(v.shape) for k, v in after.items()} == {
        "color": (16, 24, 3),
        "opacity": (16, 24),
        "depth": (16, 24),
    }
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert before["opacity"].min() < 0.9 < 0.99 < before["opacity"].max() and before["color"].std() > 0.05
    assert torch.equal(loaded.space.box, voxels.space.box) and loaded.space.background == 0.25


def test_a_kind_of_field_is_edited(voxels, cameras):
    config = load_config("edit", ["objective=dds", "edit.iterations=2", "edit.density_lr=0.05", "edit.warmup=0"])
    subject = FieldViews(
        voxels,
        cameras,
        LinearPrior(),
        build(FieldRates, config.edit, group="edit"),
        build(RegionConfig, config.edit.region, group="edit.region"),
        build(Preservation, config.edit, group="edit"),
    )
    objective = replace(build_objective(config), scale=2.0)
    editor = Editor(subject, LinearPrior(), objective, PROMPTS, build(EditConfig, config.edit, group="edit", seed=0))
    before, source = subject.target.render(cameras[0])["color"], voxels.paint.clone()
    figures = [editor.step() for _ in range(2)]
    assert editor.iteration == 2 and all(f["score_gradient_rms"] > 0 for f in figures)
    moved = {
        name: float((p - dict(voxels.named_parameters())[name]).detach().abs().max())
        for name, p in subject.target.named_parameters()
    }
    assert moved["paint"] > 1e-4 and moved["thickness"] > 1e-5
    assert torch.equal(voxels.paint, source)
    # The target's prompt asks for more noise than the source's: its latents go down, and with them the colours.
    assert (subject.target.render(cameras[0])["color"] - before).mean() < 0
