"""Models of TensoRF's authors: reading, placing among a capture's cameras, and renders against `authors.py`."""

import copy
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from authors import blender_rays, llff_rays, random_model
from PIL import Image

from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.official.field import OfficialField
from tensorf.official.placing import official_field, unseen_by
from tensorf.official.reading import read_official
from tensorf.renderable import load_field
from tensorf.visibility import LocalView

SIZE = 28  # pixels of Blender's views, along either side
SOFT = dict(density_shift=-3.0, gain=0.5)  # fog, all of which is seen
HARD = dict(fea2denseAct="relu", gain=0.5)  # and surfaces
CP = dict(kind="cp", gain=0.8)


@pytest.fixture(scope="session")
def blender_capture(tmp_path_factory):
    """Six views of an object cut out of its background, as Blender's synthetic scenes."""
    folder = tmp_path_factory.mktemp("blender") / "toy"
    (folder / "train").mkdir(parents=True)
    frames = []
    for i in range(6):
        angle, height = 2 * np.pi * i / 6, 0.31 + 0.11 * i
        back = np.array([np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)])
        right = np.cross([0, 0, 1], back) / np.cos(height)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, 4.03 * back + [0.11, -0.23, 0.07]], 1)
        photo = np.zeros((SIZE, SIZE, 4), np.uint8)
        photo[8:20, 8:20] = (200, 30 * i, 90, 255)
        Image.fromarray(photo).save(folder / "train" / f"r_{i}.png")
        frames.append({"file_path": f"./train/r_{i}", "transform_matrix": pose.tolist()})
    (folder / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": frames}))
    return load_capture(folder, check=False)


@pytest.fixture(autouse=True)
def _single_threaded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nsvf_capture(blender_capture, tmp_path_factory):
    """The same in NSVF's layout."""
    folder = tmp_path_factory.mktemp("nsvf") / "toy"
    (folder / "pose").mkdir(parents=True)
    (folder / "rgb").mkdir()
    meta = json.loads((blender_capture.root / "transforms_train.json").read_text())
    for i, frame in enumerate(meta["frames"]):
        name = f"{0 if i < 4 else 2}_{i:04d}"
        pose = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        np.savetxt(folder / "pose" / f"{name}.txt", pose)
        shutil.copy(blender_capture.root / f"{frame['file_path']}.png", folder / "rgb" / f"{name}.png")
    focal = 0.5 * SIZE / np.tan(0.5 * meta["camera_angle_x"])
    (folder / "intrinsics.txt").write_text(f"{focal} {SIZE / 2} {SIZE / 2} 0.\n0. 0. 0.\n0.\n1.\n{SIZE} {SIZE}\n")
    return load_capture(folder, check=False)


def imported(model, capture, tmp_path, **options) -> OfficialField:
    return official_field(read_official(model.save(tmp_path / "model.th")), capture, **options)


def theirs(model, capture, view, white=None, mirrored=True):
    """The authors' render of a view (H, W, 3), from the pose file."""
    camera = capture.cameras[view]
    if model.k["near_far"] == [0.0, 1.0]:
        rays = llff_rays(capture.root, view, camera.width, camera.height, mirrored)
    else:
        rays = blender_rays(capture.root / "transforms_train.json", view, camera.width, camera.height)
    white = float(model.k["near_far"] != [0.0, 1.0]) if white is None else white
    return model.render(*rays, white=white).view(camera.height, camera.width, 3)


def assert_same(field, model, capture, view, least_contrast=0.02, **options):
    ours, expected = field.render(capture.cameras[view])["color"], theirs(model, capture, view, **options)
    assert expected.std() > least_contrast
    assert (ours - expected).abs().max() < 1e-3
    assert (ours - expected).square().mean() < 1e-8  # 80 dB


# --- renders


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [SOFT, HARD, {"kind": "whole", **SOFT}, {**CP, **SOFT}, {**CP, **HARD}])
@pytest.mark.parametrize("ndc", [False, True], ids=["box", "ndc"])
def test_renders_are_the_authors(ndc, options, masked, ndc_capture, blender_capture, tmp_path):
    capture = ndc_capture if ndc else blender_capture
    model = random_model(ndc=ndc, masked=masked, **options)
    assert_same(imported(model, capture, tmp_path), model, capture, 3, least_contrast=0.01)


SHADINGS = [
    dict(shadingMode="MLP_Fea", fea_pe=0, view_pe=0),
    dict(shadingMode="MLP_Fea", fea_pe=3, view_pe=1),
    dict(shadingMode="MLP", view_pe=3),
    dict(shadingMode="MLP_PE", view_pe=1, pos_pe=2),
    dict(shadingMode="SH"),
    dict(shadingMode="RGB", app_dim=3),
]


@pytest.mark.parametrize("shading", SHADINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("ndc", [False, True], ids=["box", "ndc"])
def test_all_ways_of_shading(ndc, shading, ndc_capture, blender_capture, tmp_path):
    capture = ndc_capture if ndc else blender_capture
    model = random_model(ndc=ndc, **SOFT, **shading)
    assert_same(imported(model, capture, tmp_path), model, capture, 1)


def test_a_box_of_nsvf(nsvf_capture, blender_capture, tmp_path):
    model = random_model(**SOFT, near_far=[0.5, 5.0])
    field = imported(model, nsvf_capture, tmp_path)
    ours = field.render(nsvf_capture.cameras[1])["color"]
    assert (ours - theirs(model, blender_capture, 1)).abs().max() < 1e-3


def test_settings_of_the_renderer(blender_capture, tmp_path):
    model = random_model(
        **SOFT, near_far=[3.0, 5.0], step_ratio=0.3, distance_scale=7, rayMarch_weight_thres=0.02, grid=(9, 6, 12)
    )
    field = imported(model, blender_capture, tmp_path)
    assert_same(field, model, blender_capture, 0)
    assert_same(field, model, blender_capture, 4)
    black = imported(model, blender_capture, tmp_path, background=0.0)
    assert_same(black, model, blender_capture, 0, white=0.0)


def test_a_world_that_is_not_mirrored(ndc_capture, tmp_path):
    model = random_model(ndc=True, **SOFT)
    field = imported(model, ndc_capture, tmp_path, mirrored=False)
    assert_same(field, model, ndc_capture, 2, mirrored=False)
    assert (theirs(model, ndc_capture, 2) - theirs(model, ndc_capture, 2, mirrored=False)).abs().max() > 0.1


@pytest.mark.parametrize("space", ["box", "unbounded"])
def test_the_world_of_the_capture_has_no_say(space, world_folder, ndc_capture, blender_capture, tmp_path):
    """A capture's world depends on `space`, the model does not: neither NDC in a box's world nor the reverse."""
    ndc, box = random_model(ndc=True, **SOFT), random_model(**SOFT)
    assert_same(imported(ndc, c := load_capture(world_folder, space=space, check=False), tmp_path), ndc, c, 2)
    turned = load_capture(blender_capture.root, space=space, check=False)
    assert_same(imported(box, turned, tmp_path), box, turned, 2)


@pytest.mark.parametrize(
    "low, high", [((2, 1, 3), (7, 6, 9)), ((0, 0, 0), (9, 8, 11)), ((2.4, 1.7, 3.3), (7.2, 6, 8.9))]
)
def test_a_mask_of_another_box_is_cut(low, high, blender_capture, tmp_path):
    """As after one update of the mask, which shrinks the model's box. low, high: in the mask's grid (x, y, z)."""
    model = random_model(**HARD, masked=True, near_far=[3.6, 6.0])
    model.mask = (torch.rand(12, 9, 10, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    whole = model.aabb[0] + torch.tensor([low, high]) / torch.tensor([9, 8, 11]) * (model.aabb[1] - model.aabb[0])
    model.k["aabb"], exact = whole, all(isinstance(n, int) for n in low)
    model = type(model)(model.k, model.state, model.mask, model.mask_box)
    field = imported(model, blender_capture, tmp_path)
    assert tuple(field.occupancy.shape) == tuple(int(np.ceil(b - a)) for a, b in zip(low[::-1], high[::-1]))
    x = 2 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) - 1
    points = (x + 1) / 2 * (whole[1] - whole[0]) + whole[0]
    at = (points - model.mask_box[0]) * 2 / (model.mask_box[1] - model.mask_box[0]) - 1
    alpha = torch.nn.functional.grid_sample(model.mask[None, None], at.view(1, -1, 1, 1, 3), align_corners=True)
    expected = alpha.flatten() > 0
    cell = ((x + 1) / 2 * torch.tensor(field.occupancy.shape[::-1])).long().unbind(1)
    found = field.occupancy[cell[::-1]]
    assert found[expected].all() and 0.2 < expected.float().mean() < 0.8
    assert exact == bool((found == expected).all())


def test_depths_and_places_are_in_the_world(blender_capture, ndc_capture, tmp_path):
    for capture, ndc in ((blender_capture, False), (ndc_capture, True)):
        field = imported(random_model(ndc=ndc, **HARD), capture, tmp_path)
        camera, generator = capture.cameras[2], torch.Generator().manual_seed(0)
        rays = field.space.rays(camera)
        t = rays.t_near + (0.2 + 0.5 * torch.rand(len(rays), generator=generator)) * (rays.t_far - rays.t_near)
        x = field.space.normalise(rays.origins + t[:, None] * rays.directions)
        world, depth = field.space.world(x), field.space.depth(t, rays)
        torch.testing.assert_close(field.space.parameter(world, rays), t, atol=1e-4, rtol=1e-4)
        shape = (camera.height, camera.width)
        torch.testing.assert_close(field.space.depth_of(camera, world), depth, atol=1e-4, rtol=1e-4)
        points = field.space.points(camera, depth.view(shape)).view(-1, 3)
        torch.testing.assert_close(points, world, atol=1e-3, rtol=1e-3)
        origins, directions = camera.pixel_rays()
        along = (world - origins) / (world - origins).norm(dim=1, keepdim=True)
        torch.testing.assert_close(along, directions / directions.norm(dim=1, keepdim=True), atol=1e-4, rtol=1e-3)


# --- as a field to edit


@pytest.mark.parametrize("ndc", [False, True], ids=["box", "ndc"])
def test_saved_and_loaded_it_is_the_same(ndc, ndc_capture, blender_capture, tmp_path):
    capture = ndc_capture if ndc else blender_capture
    field = imported(random_model(ndc=ndc, masked=True, **SOFT, shadingMode="SH"), capture, tmp_path)
    field.save(tmp_path / "field.safetensors")
    loaded = load_field(tmp_path / "field.safetensors")
    assert isinstance(loaded, OfficialField)
    camera = capture.cameras[1]
    assert torch.equal(loaded.render(camera)["color"], field.render(camera)["color"])
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "field.safetensors").read_bytes()
    local = LocalField(field, field.occupancy & (torch.rand(field.occupancy.shape) < 0.5))
    local.save(tmp_path / "local.safetensors")
    again = load_field(tmp_path / "local.safetensors")
    assert isinstance(again.source, OfficialField) and torch.equal(again.region, local.region)
    assert torch.equal(again.render(camera)["color"], local.render(camera)["color"])


@pytest.mark.parametrize("ndc", [False, True], ids=["box", "ndc"])
def test_fast_views_show_what_renders_show(ndc, ndc_capture, blender_capture, tmp_path):
    capture = ndc_capture if ndc else blender_capture
    model = random_model(ndc=ndc, **HARD)
    field, camera = imported(model, capture, tmp_path), capture.cameras[2]
    view = field.view(camera)
    torch.testing.assert_close(view.full.clamp(0, 1), field.render(camera)["color"], atol=1e-5, rtol=0)
    torch.testing.assert_close(view.render(field), view.full, atol=1e-5, rtol=0)
    assert view.residue.abs().mean() < 0.02  # few samples stand for all
    target = copy.deepcopy(field)
    (view.color(target) * torch.linspace(0, 1, 3)).sum().backward()
    for name, parameters in target.parameter_groups().items():
        assert all(p.grad.abs().sum() > 0 for p in parameters), name
    local = LocalField(field, torch.rand(field.occupancy.shape) < 0.5)
    seen = LocalView(local, camera)
    torch.testing.assert_close(seen.color(local), view.full.view(-1, 3)[seen.index], atol=1e-4, rtol=0)


def test_colours_in_parts_are_the_same(blender_capture, tmp_path, monkeypatch):
    field, camera = imported(random_model(**SOFT), blender_capture, tmp_path), blender_capture.cameras[2]
    whole = field.render(camera)["color"]
    monkeypatch.setattr("tensorf.official.field._AT_ONCE", 700)
    torch.testing.assert_close(field.render(camera)["color"], whole, atol=1e-6, rtol=0)


def test_the_cameras_that_do_not_see_it(blender_capture, ndc_capture, tmp_path):
    field = imported(random_model(**HARD), blender_capture, tmp_path)
    assert unseen_by(field, blender_capture) == []
    away = random_model(**HARD, aabb=torch.tensor([[40.0, 40, 40], [41, 41, 41]]))
    assert unseen_by(imported(away, blender_capture, tmp_path), blender_capture) == [0, 1, 2, 3, 4, 5]
    turned = copy.deepcopy(ndc_capture)
    turned.cameras[3] = turned.cameras[3].with_pose(turned.cameras[3].pose * torch.tensor([-1.0, 1, -1, 1]))
    assert unseen_by(imported(random_model(ndc=True, **HARD), ndc_capture, tmp_path), turned) == [3]


# --- files


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_nothing_but_the_allowlist_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model(masked=True)
    for key, value in (("kwargs", {**model.k, "aabb": Evil()}), ("extra", Evil()), ("path", Path("x"))):
        path = tmp_path / "evil.th"
        torch.save({"kwargs": model.k, "state_dict": model.state, key: value}, path)
        with pytest.raises(UserError, match=r"evil\.th is refused: it asks for (posix|nt|os|pathlib)[\w.]*") as told:
            read_official(path)
        assert "\n" not in str(told.value)
    with open(path, "wb") as file:
        pickle.dump(Evil(), file, protocol=2)
    with pytest.raises(UserError, match="evil.th is (refused|damaged)"):
        read_official(path)
    objects = {"kwargs": model.k, "state_dict": model.state, "alphaMask.mask": np.array([Evil()], dtype=object)}
    torch.save(objects, path)
    with pytest.raises(UserError, match="evil.th is (refused|damaged)"):
        read_official(path)
    assert not (tmp_path / "evil").exists()


def test_masks_of_either_numpy_are_read(tmp_path):
    """The files of NumPy 1 and 2 name the function that makes an array by different modules."""
    model = random_model(masked=True)
    path = model.save(tmp_path / "model.th")
    torch.testing.assert_close(read_official(path).mask.float(), model.mask)
    here = b"numpy._core.multiarray" if b"numpy._core.multiarray" in path.read_bytes() else b"numpy.core.multiarray"
    other = {b"numpy._core.multiarray": b"numpy.core.multiarray", b"numpy.core.multiarray": b"numpy._core.multiarray"}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "other.th", "w") as new:
        for item in old.infolist():
            body = old.read(item)
            if item.filename.endswith("data.pkl"):  # a name in a pickle of protocol 2 ends with its line
                assert here in body
                body = body.replace(b"c" + here + b"\n", b"c" + other[here] + b"\n")
                assert here + b"\n" not in body
            new.writestr(item, body)
    torch.testing.assert_close(read_official(tmp_path / "other.th").mask.float(), model.mask)


def broken(change):
    model = random_model(masked=True)
    table = {"kwargs": dict(model.k), "state_dict": dict(model.state)}
    table |= {
        "alphaMask.shape": (1, 1, 12, 9, 10),
        "alphaMask.mask": np.packbits(model.mask.bool().numpy().reshape(-1)),
    }
    table["alphaMask.aabb"] = model.mask_box
    change(table)
    return table


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.pop("state_dict"), "lacks kwargs and state_dict"),
        (lambda t: t["kwargs"].pop("aabb"), "it lacks aabb"),
        (lambda t: t["kwargs"].pop("gridSize"), "it lacks gridSize"),
        (lambda t: t["state_dict"].pop("app_line.2"), "it lacks app_line.2"),
        (lambda t: t["state_dict"].pop("basis_mat.weight"), "it lacks basis_mat.weight"),
        (lambda t: t.pop("alphaMask.shape"), "it lacks alphaMask.shape"),
        (lambda t: t.update({"alphaMask.shape": (1, 1, 99, 9, 9)}), "alphaMask.mask has 1080 bits"),
        (lambda t: t["state_dict"]["app_line.2"].fill_(float("nan")), "app_line.2 holds NaN"),
        (lambda t: t["kwargs"].update(aabb=torch.zeros(2, 3)), "aabb .* low and a high corner"),
        (lambda t: t["kwargs"].update(gridSize=[9, 1, 9]), "gridSize"),
        (lambda t: t["kwargs"].update(step_ratio=1e-9), "step_ratio 1e-09"),
        (lambda t: t["kwargs"].update(near_far=[3.0]), "cannot be read"),
        (lambda t: t["kwargs"].update(gridSize=[9, float("inf"), 9]), "cannot be read"),
        (lambda t: t["kwargs"].update(fea2denseAct="exp"), "fea2denseAct 'exp' is unknown: softplus and relu"),
        (lambda t: t["kwargs"].update(shadingMode="MLP_Glow"), "'MLP_Glow' is unknown: MLP_Fea, MLP_PE, MLP, SH, RGB"),
        (lambda t: t["kwargs"].update(shadingMode="SH", app_dim=9), "SH needs 27 features, not 9"),
        (lambda t: t["kwargs"].update(view_pe=5), "size mismatch for decoder.mlp.0.weight"),
        (lambda t: t["state_dict"].pop("renderModule.mlp.4.bias"), "Missing key.*decoder.mlp.4.bias"),
        (lambda t: t["state_dict"].update({"density_plane.1": torch.zeros(1, 2, 3, 3)}), "size mismatch"),
    ],
)
def test_files_that_are_not_whole_are_told_in_one_line(change, told, blender_capture, tmp_path):
    path = tmp_path / "model.th"
    torch.save(broken(change), path)
    with pytest.raises(UserError, match=told) as error:
        official_field(read_official(path), blender_capture)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_told_in_one_line(tmp_path, blender_capture, ndc_capture):
    whole = random_model().save(tmp_path / "whole.th").read_bytes()
    for name, content in (("half.th", whole[: len(whole) // 2]), ("text.th", b"hello"), ("empty.th", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged, or no checkpoint") as told:
            read_official(tmp_path / name)
        assert "weights_only" not in str(told.value)  # PyTorch advises to read such files without a guard
    with pytest.raises(UserError, match="no such file"):
        read_official(tmp_path / "none.th")
    torch.save([1, 2], tmp_path / "list.th")
    with pytest.raises(UserError, match="list.th is no checkpoint of TensoRF's authors"):
        read_official(tmp_path / "list.th")
    ndc = read_official(random_model(ndc=True).save(tmp_path / "ndc.th"))
    with pytest.raises(UserError, match=r"ndc.th is a model of an LLFF capture .* has no poses_bounds.npy"):
        official_field(ndc, blender_capture)


def test_what_older_files_do_not_say(tmp_path, blender_capture):
    """The constructor's own values hold."""
    model = random_model(**SOFT, step_ratio=2.0)
    for key in ("fea2denseAct", "rayMarch_weight_thres", "near_far", "distance_scale", "app_dim", "step_ratio"):
        model.k.pop(key)
    field = imported(model, blender_capture, tmp_path)
    model.k |= dict(fea2denseAct="softplus", rayMarch_weight_thres=1e-4, near_far=[2.0, 6.0], distance_scale=25)
    model.k |= dict(app_dim=27, step_ratio=2.0)
    assert_same(field, model, blender_capture, 0)


@pytest.mark.parametrize(("orientation", "quarters"), [(3, 2), (6, 1), (8, 3)])
def test_photos_that_were_turned_upright_are_the_authors_turned(orientation, quarters, world_folder, tmp_path):
    """The authors' loader takes pixels as they are stored: its mean camera and its stretch are of those."""
    folder = tmp_path / "turned"
    shutil.copytree(world_folder, folder)
    exif = Image.Exif()
    exif[274] = orientation
    for path in (folder / "images").iterdir():
        Image.open(path).save(path, exif=exif)
    capture, model = load_capture(folder, check=False), random_model(ndc=True, **SOFT)
    assert capture.turns == quarters
    ours = imported(model, capture, tmp_path).render(capture.cameras[3])["color"]
    expected = model.render(*llff_rays(folder, 3, 48, 36), white=0.0).view(36, 48, 3).rot90(-quarters, (0, 1))
    assert expected.std() > 0.02 and (ours - expected).abs().max() < 1e-3
