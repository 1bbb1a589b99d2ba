"""Whole commands on a device that is not the CPU (`fake_device`): nothing mixes, and fields come out the same."""

import copy
import json
from dataclasses import replace
from unittest import mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from authors import random_model
from fake_device import DEVICE, Counter, Elsewhere
from tiny_models import build_xl

from cds3d.cli import run_command
from cds3d.commands import preparing
from cds3d.commands.evaluation import rendered
from cds3d.commands.render import axial_depth
from cds3d.export.surface import surface_points
from cds3d.guidance import load_prior
from cds3d.guidance.loading import DTYPES
from cds3d.guidance.prior import Prior
from cds3d.options import groups
from cds3d.pocket.world.capture import WorldCapture, write_orbit
from cds3d.pocket.world.scenes import Attributes
from cds3d.subjects.given import in_ball, in_box, point_at, seen_share, zoomed
from cds3d.subjects.volume import edited_volume
from cds3d.viewer.looking import ViewRequest, picture, point_seen
from tensorf.captures import load_capture
from tensorf.local import LocalField
from tensorf.renderable import load_field

# --- what the other device catches


def test_it_catches_what_cuda_would(there):
    x, index = torch.rand(4, 3).to(DEVICE), torch.tensor([1, 2])
    assert isinstance(x, Elsewhere) and x.device == DEVICE
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.rand(4, 3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.Linear(3, 2)(x)
    with pytest.raises(RuntimeError, match="on the CPU"):
        torch.rand(4)[index.to(DEVICE)]
    with pytest.raises(TypeError, match="cpu"):
        x.numpy()
    with pytest.raises(RuntimeError, match="same device"):
        x.index_add(0, index, torch.rand(2, 3).to(DEVICE))
    torch.testing.assert_close(x[index].cpu(), x.cpu()[index])  # as CUDA allows
    before = Counter.synchronisations
    assert float(x.sum()) > 0 and Counter.synchronisations == before + 1


def test_it_computes_what_the_cpu_does(there):
    torch.manual_seed(0)
    here = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 3))
    moved = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 3))
    moved.load_state_dict(here.state_dict())
    moved = moved.to(DEVICE)
    image = torch.rand(1, 2, 8, 8)
    for network, data in ((here, image), (moved, image.to(DEVICE))):
        adam = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            adam.zero_grad()
            network(data).square().sum().backward()
            adam.step()
    for a, b in zip(here.parameters(), moved.parameters()):
        torch.testing.assert_close(a.data, b.data.cpu())


# --- commands


OBJECTIVES = sorted(groups()["objective"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_images_by_every_objective(objective, there, tmp_path, image_options):
    assert run_command("edit", [*image_options, f"objective={objective}", f"output={tmp_path}/edit"]) == 0


@pytest.mark.parametrize("baseline", sorted(set(groups()["baseline"]) - {"none"}))
def test_images_by_every_baseline(baseline, there, tmp_path, image_options):
    options = [o for o in image_options if not o.startswith("edit.")]
    options += ["edit.iterations=2"] if baseline == "dds-pnp" else ["baseline.steps=4"]
    options += ["baseline.skip=1"] if baseline.startswith("ddpm") else []
    options += ["baseline.inversion_steps=8"] if baseline == "pnp" else []
    assert run_command("edit", [*options, f"baseline={baseline}", f"output={tmp_path}/edit"]) == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fields_by_every_objective(objective, there, tmp_path, edit_options, trained):
    options = [*edit_options, f"objective={objective}", "video_frames=0", f"output={tmp_path}/edit"]
    assert run_command("edit", options) == 0


SHAPE = ["edit=shape", "edit.width=48"]
FIELDS = {
    "default": [],
    "published": ["edit=published", "edit.width=48", "edit.iterations=2"],
    "shape": [*SHAPE, "edit.iterations=4", "edit.volume.agreement=0.01", "edit.region.mask_threshold=0.01"],
    "redraw": [
        "edit=redraw",
        *SHAPE[1:],
        "edit.iterations=4",
        "edit.volume.agreement=0.01",
        "edit.region.mask_threshold=0.01",
        "edit.redraw.views=2",
        "edit.redraw.steps=5",
    ],
    "pictures": [
        "edit=pictures",
        "edit.width=48",
        "edit.iterations=2",
        "edit.fit.iterations=3",
        "edit.fit.agreement=0.01",
        "edit.region.mask_threshold=0.01",
    ],
    "click": ["at=0.4,0.5,view001", "radius=0.3", "region=both"],
    "box": [*SHAPE, "box=-9,-9,0,0,9,99", "edit.iterations=2"],
    "words": ["--where", "the flower", "edit.region.mask_threshold=0.05", "carve.agreement=0.01"],
}


@pytest.mark.parametrize("more", FIELDS.values(), ids=FIELDS)
def test_fields_come_out_as_on_the_cpu(more, tmp_path, edit_options, trained, moved):
    def figures(name):
        assert run_command("edit", [*edit_options, *more, "video_frames=2", f"output={tmp_path}/{name}"]) == 0
        table = json.loads((tmp_path / name / "metrics.json").read_text())
        return {k: v for k, v in table.items() if k.endswith(("_db", "ssim", "depth_error"))}

    here = figures("here")
    with moved():
        assert figures("there") == pytest.approx(here, rel=1e-3, abs=5e-3)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["field=cp", "field.resolution=16", "field.iterations=8", "field.batch=64"],
        ["field.exposure=0.02", "field.view_noise=0.15"],
    ],
)
def test_training_and_rendering(more, there, tmp_path, train_options):
    assert run_command("train", [*train_options, *more, f"output={tmp_path}/source"]) == 0
    assert run_command("render", [f"{tmp_path}/source", "frames=2", "depth=true", "width=32"]) == 0


def test_an_imported_field_comes_out_as_on_the_cpu(tmp_path, edit_options, capture_folder, moved):
    model = random_model("vm", ndc=True, masked=True, fea2denseAct="relu", gain=0.5).save(tmp_path / "model.th")
    source, tiny = tmp_path / "outputs" / "daisies" / "source", ["scene.width=32", "threads=1", "video_frames=0"]

    def figures(name):
        assert run_command("import", [str(model), str(capture_folder), *tiny, "overwrite=true"]) == 0
        assert run_command("edit", [*edit_options, *tiny, f"output={tmp_path}/{name}"]) == 0
        tables = [json.loads((run / "metrics.json").read_text()) for run in (source, tmp_path / name)]
        return {f"{i}{k}": v for i, t in enumerate(tables) for k, v in t.items() if k.endswith(("_db", "ssim"))}

    here = figures("here")
    with moved():
        assert figures("there") == pytest.approx(here, rel=1e-3, abs=5e-3)


def test_an_edit_is_resumed_and_edited_on(there, tmp_path, edit_options, trained):
    options = [*edit_options, "video_frames=0", f"output={tmp_path}/edit"]
    assert run_command("edit", options) == 0
    assert run_command("edit", [*options, "resume=true", "edit.iterations=3"]) == 0
    own = [o for o in options if "=" in o and not o.startswith(("output=", "scene."))]
    assert (
        run_command("edit", ["--run", f"{tmp_path}/edit", "--tgt", "a red tulip", *own, f"output={tmp_path}/on"]) == 0
    )


def figures_of(run):
    table = json.loads((run / "metrics.json").read_text())
    return {k: v for k, v in table.items() if k.endswith(("_db", "ssim", "depth_error"))}


def test_a_field_fitted_to_pictures_comes_out_as_on_the_cpu(tmp_path, trained, train_options, capture_folder, moved):
    world, folder = WorldCapture.read(capture_folder), tmp_path / "red"
    folder.mkdir()
    for name in world.cameras:
        iio.imwrite(folder / f"{name}.png", world.view(name, world.attributes.edited(color="red"), 56, 42).image)
    options = ["--src", "a yellow flower", "--tgt", "a red flower", *train_options, "video_frames=0", "edit.width=48"]
    options += ["--views", str(folder), "refit.iterations=4"]

    def figures(name):
        assert run_command("edit", [*options, f"output={tmp_path}/{name}"]) == 0
        return figures_of(tmp_path / name)

    here = figures("here")
    with moved():
        assert figures("there") == pytest.approx(here, rel=1e-3, abs=5e-3)


def test_masks_that_are_given(there, tmp_path, edit_options, trained):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 16:56] = 255
    for i in range(6):
        iio.imwrite(tmp_path / "masks" / f"view{i:03d}.png", mask)
    given = [f"mask={tmp_path}/masks", "carve.agreement=0.01", "video_frames=0", f"output={tmp_path}/edit"]
    assert run_command("edit", [*edit_options, *given]) == 0
    edited = load_field(tmp_path / "edit" / "field.safetensors")
    assert 0 < edited.region.sum() < edited.region.numel()


def test_what_an_edit_has_changed_is_pasted_as_on_the_cpu(tmp_path, image_options, moved):
    def pasted(name):
        assert run_command("edit", [*image_options, "paste=true", f"output={tmp_path}/{name}"]) == 0
        return iio.imread(tmp_path / name / "edited_full.png").astype(float)

    here = pasted("here")
    with moved():
        assert np.abs(pasted("there") - here).max() <= 1


@pytest.mark.parametrize("kind", ["dataset", "points", "splats"])
def test_exports_are_those_of_the_cpu(kind, tmp_path, source_run, moved):
    """The tables and points are as large, and pictures have the same mean."""

    def made(name):
        output = tmp_path / name if kind == "dataset" else tmp_path / f"{name}.ply"
        few = [] if kind == "dataset" else ["points=50"]
        assert run_command("export", [str(source_run), kind, f"output={output}", *few]) == 0
        files = sorted(output.rglob("*.*")) if output.is_dir() else [output]
        return [iio.imread(p).mean() if p.suffix == ".png" else p.stat().st_size for p in files if p.is_file()]

    here = made("here")
    with moved():
        assert made("there") == pytest.approx(here, rel=0.01)


@pytest.mark.parametrize("space", ["box", "unbounded"])
def test_objects_seen_from_all_sides(space, there, tmp_path, edit_options, train_options):
    write_orbit(tmp_path / "chair", Attributes(2_000_102, "object", "chair", "red", "sky", "wooden"),
                views=6, held_out=2, size=48)  # fmt: skip
    scene = ["--capture", str(tmp_path / "chair"), *train_options[2:], "video_frames=0", f"scene.space={space}"]
    rest = [o for o in edit_options if o.startswith(("guidance.", "edit."))]
    assert run_command("train", scene) == 0
    assert run_command("edit", [*scene, "--src", "a red chair", "--tgt", "a blue chair", *rest]) == 0
    source = tmp_path / "outputs" / "chair" / "source"
    assert run_command("render", [str(source), "frames=2", "depth=true", "width=32"]) == 0
    assert load_field(source / "field.safetensors").space.kind == space


@pytest.mark.parametrize("kind", ["v", "xl"])
def test_other_priors(kind, monkeypatch, moved, tmp_path, edit_options, trained, tiny_v_folder, image_options):
    folder = tiny_v_folder
    if kind == "xl":
        folder = tmp_path / "xl"
        build_xl(tmp_path / "tokenizer").save_pretrained(folder, safe_serialization=True)
    with mock.patch.multiple("cds3d.guidance.loading", Prior=dict, _try=lambda *_: None):
        parts = load_prior(str(folder), device=torch.device("cpu"))  # before: as in `moved`
    made = []

    def load(*_, dtype="fp32", device=DEVICE, **__):
        made.append(Prior(**copy.deepcopy(parts) | {"device": device, "dtype": DTYPES[dtype]}))
        return made[-1]

    with moved():
        monkeypatch.setattr(preparing, "load_prior", load)
        assert run_command("edit", [*edit_options, "video_frames=0", f"output={tmp_path}/field"]) == 0
        assert run_command("edit", [*image_options, f"output={tmp_path}/image"]) == 0
    assert len(made) == 2 and {prior.device for prior in made} == {DEVICE}


def test_places_and_views_of_a_field(there, source_run, capture_folder):
    """What says where an edit may go, what is exported, and what a window sees."""
    capture = load_capture(capture_folder, width=64, check=False)
    field = load_field(source_run / "field.safetensors", DEVICE)
    views = [camera.resized(32, 24) for camera in capture.cameras[:2]]
    point = point_at(field, views[0], 16, 12)
    region = in_ball(field, torch.tensor([0.2, 0.0, 1.15]), 0.3) | in_box(
        field, torch.ones(3) * 1.1, torch.ones(3) * 1.2
    )
    assert isinstance(region, Elsewhere) and (point is None or point.device.type == "cpu")
    assert 0 < len(zoomed(views, field, region, 1.6)) <= 2
    made = [field.view(camera) for camera in views]
    assert seen_share(field, made[0], region).shape == (24, 32)
    masks = [torch.ones(24, 32).to(DEVICE) for _ in views]
    carved = edited_volume(field, zip(made, masks), 0.5, 0.1)
    edited = LocalField(field, carved)
    edited.settle()
    rendered_views = rendered(edited, views, "views")
    for view in rendered_views:
        view["opacity"][:] = 1
    assert len(surface_points(edited, capture, views, rendered_views, 50)[0]) > 10
    request = ViewRequest(capture.cameras[0].pose, 0.7, 4 / 3, "split")
    assert picture(request, 32, field, edited).shape == (24, 32, 3)
    assert picture(replace(request, shown="depth"), 32, field, edited).shape == (24, 32, 3)
    point_seen(request, 0.5, 0.5, edited)
    axial_depth(edited, views[0], rendered_views[0]["depth"])
