"""`cds3d export` and `render.py`: what other programs read."""

import errno
import json
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from cds3d.cli import main, run_command
from cds3d.commands import export as export_module
from cds3d.commands import render as render_module
from cds3d.commands.render import _colors, axial_depth, write_depths
from cds3d.commands.videos import cameras_along
from cds3d.export.surface import surface_points
from cds3d.pictures import write_video
from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.captures.colmap_files import load_model
from tensorf.captures.writing import Points, capture_poses, write_colmap
from tensorf.renderable import load_field


def export(run, *options):
    return main(["export", str(run), *options])


def test_a_dataset_is_a_capture_of_the_fields_views(opaque, tmp_path, capture_folder):
    assert export(opaque, "dataset", "output=set", "points=500", "path=spiral", "frames=2") == 0
    folder = tmp_path / "set"
    original = load_capture(capture_folder, width=64, check=False)
    again = load_capture(folder, width=64, check=False)
    names = [f"view{i:03d}" for i in range(6)] + ["path_0000", "path_0001"]
    assert {n.removeprefix("images/").removesuffix(".png") for n in again.image_names} == set(names)
    held = {again.image_names[i] for i in again.test}
    assert held == {f"images/view{i:03d}.png" for i in original.test}
    field = load_field(opaque / "field.safetensors")
    for i in range(6):  # poses and pictures belong together, in the capture's own coordinates
        j = again.image_names.index(f"images/view{i:03d}.png")
        expected = field.render(original.cameras[i])["color"].clamp(0, 1) * 255
        assert (again.images[j].float() - expected).abs().max() <= 0.51
        mine = capture_poses([original.cameras[i]], original)[0]
        theirs = capture_poses([again.cameras[j]], again)[0]
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        assert original.cameras[i].fx == pytest.approx(again.cameras[j].fx)
    table = json.loads((folder / "transforms.json").read_text())
    assert table["ply_file_path"] == "points.ply" and table["orientation_override"] == "none"
    assert set(table["train_filenames"]) | set(table["test_filenames"]) == {f["file_path"] for f in table["frames"]}


def test_its_colmap_model_says_the_same(opaque, tmp_path, capture_folder):
    assert export(opaque, "dataset", "output=set", "points=500") == 0
    (tmp_path / "set" / "transforms.json").unlink()
    original = load_capture(capture_folder, width=64, check=False)
    again = load_capture(tmp_path / "set", width=64, check=False)
    for i, name in enumerate(again.image_names):
        mine, theirs = capture_poses([original.cameras[i]], original), capture_poses([again.cameras[i]], again)
        assert name == f"view{i:03d}.png"
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    model = load_model(tmp_path / "set" / "sparse" / "0")
    assert 350 < len(model.points) < 650
    for image in model.images:  # every point lies where its view has it
        pose = capture_poses([original.cameras[int(image.name[4:7])]], original)[0]
        rows = np.searchsorted(model.point_ids, image.point_ids)
        local = (model.points[rows] - pose[:, 3]) @ pose[:, :3]
        camera = original.cameras[0]
        u, v = (local[:, k] / local[:, 2] * camera.fx + (camera.width, camera.height)[k] / 2 for k in (0, 1))
        assert (local[:, 2] > 0).all() and np.abs(u % 1 - 0.5).max() < 1e-2 and np.abs(v % 1 - 0.5).max() < 1e-2


def test_pycolmap_reads_it(opaque, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    assert export(opaque, "dataset", "output=set", "points=300") == 0
    model = pycolmap.Reconstruction(str(tmp_path / "set" / "sparse" / "0"))
    assert model.num_reg_images() == 6
    for point in model.points3D.values():
        (element,) = point.track.elements
        image = model.images[element.image_id]
        seen = image.points2D[element.point2D_idx]
        assert seen.has_point3D() and np.linalg.norm(image.project_point(point.xyz) - seen.xy) < 0.01


def read_ply(path):
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().split("\n")
    kinds = {"float": "<f4", "uchar": "u1"}
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    count = int(next(line for line in lines if "element vertex" in line).split()[-1])
    table = np.frombuffer(body, [(name, kinds[kind]) for kind, name in properties])
    assert len(table) == count
    return table


def test_points_and_splats(opaque, tmp_path, capture_folder):
    assert export(opaque, "points", "output=p.ply", "points=400") == 0
    assert export(opaque, "splats", "output=s.ply", "points=400") == 0
    points, splats = read_ply(tmp_path / "p.ply"), read_ply(tmp_path / "s.ply")
    assert len(points) == len(splats) > 200
    assert points.dtype.names == ("x", "y", "z", "red", "green", "blue")
    expected = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    expected += [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
    assert list(splats.dtype.names) == expected
    np.testing.assert_array_equal(points["x"], splats["x"])
    shown = 0.5 + 0.28209479 * splats["f_dc_0"]
    np.testing.assert_allclose(shown * 255, points["red"], atol=0.01)
    assert (splats["rot_0"] == 1).all() and np.allclose(splats["scale_0"], splats["scale_2"])
    capture = load_capture(capture_folder, width=64, check=False)
    eyes = capture_poses(capture.cameras, capture)[:, :, 3]
    away = np.linalg.norm(np.stack([splats[k] for k in "xyz"], 1)[:, None] - eyes, axis=2)
    pixel = away / capture.cameras[0].fx  # the width of a pixel out there, from one of the cameras
    assert np.abs(np.exp(splats["scale_0"])[:, None] / pixel - 1).min(1).max() < 1e-3
    assert 1 / (1 + np.exp(-splats["opacity"][0])) == pytest.approx(0.95)


def test_views_of_a_path_are_named_apart_from_those_of_an_export_before(opaque, tmp_path, capture_folder):
    assert export(opaque, "dataset", "output=first", "points=300", "path=spiral", "frames=2") == 0
    config = (opaque / "config.yaml").read_text()
    assert f"capture: {capture_folder}" in config
    first = tmp_path / "first"
    (opaque / "config.yaml").write_text(config.replace(f"capture: {capture_folder}", f"capture: {first}"))
    (opaque / "state" / "capture.txt").unlink()  # another capture than the one that it was trained on would be told
    assert export(opaque, "dataset", "output=second", "points=300", "path=spiral", "frames=2") == 0
    frames = json.loads((tmp_path / "second" / "transforms.json").read_text())["frames"]
    names = [frame["file_path"] for frame in frames]
    assert len(names) == len({*names}) == 10 == len(list((tmp_path / "second" / "images").iterdir()))
    assert "images/path_0000.png" in names and "images/path_more_0001.png" in names


@pytest.mark.parametrize(
    "options, told",
    [
        ([], "as what?"),
        (["mesh"], "format=mesh is unknown; use one of: dataset, splats, points"),
        (["splats", "path=spiral"], "adds views to a dataset"),
        (["splats", "output=x"], "has to end in .ply"),
        (["dataset", "points=0"], "points=0"),
        (["dataset", "path=round"], "path=round"),
        (["dataset", "output=there"], "there exists: pass overwrite=true"),
        (["dataset", "output=there", "overwrite=true"], "no export of this format"),
        (["dataset", "output=capture", "overwrite=true"], "no export of this format"),
    ],
)
def test_what_is_wrong_is_one_line(options, told, opaque, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "transforms.json").write_text("{}")  # as nerfstudio's have it, beside the photos
    (tmp_path / "capture" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "capture" / "sparse" / "0" / "cameras.bin").touch()
    assert export(opaque, *options) == 1
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "there" / "mine.txt").exists() and (tmp_path / "capture" / "transforms.json").exists()
    assert not (opaque / "export").exists()


def test_an_export_is_replaced_if_asked(opaque, tmp_path):
    assert export(opaque, "points", "points=300") == 0
    before = (opaque / "export" / "points.ply").read_bytes()
    assert export(opaque, "points", "points=100") == 1
    assert (opaque / "export" / "points.ply").read_bytes() == before
    assert export(opaque, "points", "points=100", "overwrite=true") == 0
    assert len((opaque / "export" / "points.ply").read_bytes()) < len(before)


def test_an_empty_field_has_no_points(trained, capsys):
    field = load_field(trained / "field.safetensors")
    field.occupancy = torch.zeros_like(field.occupancy)
    field.save(trained / "field.safetensors")
    assert export(trained, "points") == 1
    assert "no surface" in capsys.readouterr().err


# --- render.py


def render(run, *options):
    return run_command("render", [str(run), *options])


def test_videos_of_any_width_are_named_by_their_path(opaque, caplog):
    assert render(opaque, "frames=2", "width=90") == 0  # wider than the photos, and 67.5 pixels high
    assert (opaque / "spiral.mp4").exists() and "2 frames of 90x68" in caplog.text
    assert iio.imread(opaque / "spiral.mp4").shape == (2, 68, 90, 3)
    assert render(opaque, "frames=2", "path=interpolate", "depth=true") == 0
    assert (opaque / "interpolate_depth.mp4").exists() and "interpolate_depth.mp4: 2 frames" in caplog.text


def test_pictures_and_depths_that_can_be_measured(opaque, capture_folder):
    assert render(opaque, "frames=3", "format=png", "depth=true", "width=32") == 0
    colors, depths = opaque / "spiral_frames", opaque / "spiral_frames_depth"
    assert sorted(p.name for p in colors.iterdir()) == ["0000.png", "0001.png", "0002.png", "frames.json"]
    assert iio.imread(colors / "0001.png").shape == (24, 32, 3)
    levels = np.asarray(Image.open(depths / "0000.png"))
    assert levels.dtype == np.uint16 and levels.max() > 30000
    unit = json.loads((depths / "depth.json").read_text())["capture_units_per_level"]
    field, capture = load_field(opaque / "field.safetensors"), load_capture(capture_folder, width=64, check=False)
    camera = cameras_along(capture, "spiral", 3)[0].resized(32, 24)
    expected = axial_depth(field, camera, field.render(camera)["depth"].cpu())
    scale = float(capture.world_from_capture[:3, 0].norm())
    np.testing.assert_allclose(levels * unit, expected / scale, rtol=1e-3)
    (colors / ".DS_Store").touch()  # a Mac's Finder has looked at them
    assert render(opaque, "frames=1", "format=png", "width=32") == 0
    assert sorted(p.name for p in colors.iterdir()) == ["0000.png", "frames.json"]  # older pictures are gone
    assert render(opaque, "frames=1", "format=png", "width=32", "output=a.folder") == 0
    assert sorted(p.name for p in Path("a.folder").iterdir()) == ["0000.png", "frames.json"]


def test_a_pixel_that_looks_far_does_not_take_the_levels_from_all_others(tmp_path):
    depth = torch.linspace(1, 2, 4800).view(60, 80).clone()
    depth[0, :3] = torch.tensor([1500.0, torch.inf, 3.0])
    write_depths(tmp_path / "depths", [depth, depth], scale=0.5)
    told = json.loads((tmp_path / "depths" / "depth.json").read_text())
    levels = np.asarray(Image.open(tmp_path / "depths" / "0001.png"))
    assert levels[0, 0] == told["this_or_farther"] == 65535 and levels[0, 1] == told["nothing_seen"] == 0
    expected = depth.numpy() / 0.5
    np.testing.assert_allclose((levels * told["capture_units_per_level"])[1:], expected[1:], rtol=1e-4)
    assert pytest.approx(levels[0, 2] * told["capture_units_per_level"], rel=1e-4) == 3.0 / 0.5


def test_where_little_is_seen_there_is_no_depth():
    seen = {
        "color": torch.zeros(2, 3, 3),
        "depth": torch.full((2, 3), 2.0),
        "opacity": torch.tensor([[0.4, 0.6, 1.0]] * 2),
    }
    field, depths = SimpleNamespace(render=lambda camera: seen), []
    assert len(list(_colors(field, [None, None], depths))) == len(depths) == 2
    assert depths[0][0].tolist() == [torch.inf, 2.0, 2.0]


def test_a_path_is_placed_by_what_the_capture_says_it_has_applied(tmp_path):
    """`applied_transform` of the capture's transforms.json reaches the reader of the path."""
    flip = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    (tmp_path / "transforms.json").write_text(json.dumps({"applied_transform": flip}))
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({"transform": flip, "scale": 1.0}))
    path = {"camera_path": [{"camera_to_world": [1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1]}]}
    (tmp_path / "path.json").write_text(json.dumps(path | {"render_height": 48, "render_width": 64}))
    like = Camera(torch.eye(3, 4), 50.0, 50.0, 32.0, 24.0, 64, 48)
    capture = SimpleNamespace(root=tmp_path, world_from_capture=torch.eye(4), cameras=[like], turns=0)
    (camera,) = cameras_along(capture, str(tmp_path / "path.json"), 1)
    assert camera.position.tolist() == [1, 2, 3]


def test_frames_of_a_video_are_not_kept(tmp_path):
    alive, most = weakref.WeakSet(), 0

    def frames():
        nonlocal most
        for i in range(8):
            frame = torch.full((17, 30, 3), i / 8)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    write_video(tmp_path / "video.mp4", frames(), fps=5)
    assert most <= 2 and iio.imread(tmp_path / "video.mp4").shape == (8, 18, 30, 3)


def test_a_dataset_may_be_wider_than_the_photos(opaque, tmp_path):
    assert export(opaque, "dataset", "output=set", "points=50", "width=80") == 0
    assert iio.imread(tmp_path / "set" / "images" / "view001.png").shape == (60, 80, 3)


def test_axial_depth_is_along_the_cameras_axis(opaque, capture_folder):
    field, capture = load_field(opaque / "field.safetensors"), load_capture(capture_folder, width=64, check=False)
    camera = capture.cameras[3]
    depth = torch.full((48, 64), 2.5)
    depth[0, 0] = torch.inf
    along = axial_depth(field, camera, depth)
    points = field.space.points(camera, torch.full((48, 64), 2.5))
    assert along[0, 0] == torch.inf
    local = (points - camera.position) @ camera.pose[:, :3]
    torch.testing.assert_close(along[5], local[5, :, 2])


def test_a_path_from_a_file(opaque, tmp_path, capture_folder):
    capture = load_capture(capture_folder, width=64, check=False)
    pose = np.eye(4)
    pose[:3] = capture_poses([capture.cameras[2]], capture)[0] * [1, -1, -1, 1]
    table = {"frames": [{"transform_matrix": pose.tolist()}]}
    (tmp_path / "mine.json").write_text(json.dumps(table))
    assert render(opaque, "path=mine.json", "format=png") == 0
    shown = iio.imread(opaque / "mine_frames" / "0000.png").astype(float)
    expected = load_field(opaque / "field.safetensors").render(capture.cameras[2])["color"].numpy() * 255
    assert np.abs(shown - expected).max() < 1.5
    for told, given, fps in ((None, [], 15), (24, [], 24), (24, ["fps=10"], 10), ("fast", [], 15)):
        (tmp_path / "mine.json").write_text(json.dumps(table | {"fps": told}))
        assert render(opaque, "path=mine.json", *given) == 0
        assert iio.immeta(opaque / "mine.mp4")["fps"] == fps


@pytest.mark.parametrize(
    "options, told",
    [
        (["format=gif"], "format=gif"),
        (["format=png", "output=x.mp4"], "folder"),
        (["output=x"], "has to end in .mp4, or give format=png"),
        (["path=none.json"], "no such file"),
        (["path=round"], "path=round is unknown"),
        (["depth=maybe"], "depth=maybe"),
        (["width=3"], "width=3"),
        (["format=png", "output=there"], "holds other files"),
        (["format=png", "output=photos"], "holds other files"),
        (["format=png", "output=capture"], "holds other files"),
        (["format=png", "output=numbered"], "holds other files"),  # pictures of one's own, named by number
    ],
)
def test_what_cannot_be_rendered_is_told(options, told, opaque, tmp_path, capsys):
    kept = [
        tmp_path / name for name in ("there/mine.txt", "photos/000.png", "capture/transforms.json", "numbered/0001.png")
    ]
    for path in kept:
        path.parent.mkdir()
        path.write_text("mine")
    assert render(opaque, "frames=1", *options) == 1
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert all(path.read_text() == "mine" for path in kept)


def test_a_folder_of_runs_says_which_there_are(opaque, capsys):
    assert render(opaque.parent) == 1
    assert f"holds some: {opaque}" in capsys.readouterr().err


def test_a_path_that_leaves_the_scene_is_told_before_work_is_done(opaque, tmp_path, capsys):
    back = np.diag([-1.0, 1, -1, 1])
    (tmp_path / "back.json").write_text(json.dumps({"frames": [{"transform_matrix": back.tolist()}]}))
    assert render(opaque, "path=back.json") == 1
    error = capsys.readouterr().err
    assert "camera 0 looks aside or back" in error and "render:" not in error


@pytest.mark.parametrize("options", [["path=round"], ["path=none.json"]])
def test_a_path_that_is_unknown_is_told_before_photos_are_read(options, opaque, monkeypatch, capsys):
    for module in (render_module, export_module):
        monkeypatch.setattr(module, "load_scene", lambda *_: pytest.fail("the capture was loaded"))
    assert render(opaque, *options) == 1 and export(opaque, "dataset", *options) == 1
    assert capsys.readouterr().err.count(options[0]) == 2


def test_float32_that_is_too_coarse_for_points_is_told(opaque, caplog, monkeypatch):
    def shifted(shift):
        def points(*given):
            found, half_widths = surface_points(*given)
            return replace(found, positions=found.positions + shift), half_widths

        monkeypatch.setattr("cds3d.export.field.surface_points", points)

    shifted(100.0)
    assert export(opaque, "points", "points=300") == 0 and "float32 coordinates" not in caplog.text
    shifted(5.5e6)
    assert export(opaque, "splats", "points=300") == 0
    assert "splats.ply: points lie 5.5e+06 from the origin" in caplog.text and "0.5 apart" in caplog.text
    assert "sparse/0/points3D.bin of a dataset are exact" in caplog.text


def test_an_export_that_holds_more_is_not_replaced(opaque, tmp_path, capsys):
    """The runs of a field that is trained on a dataset lie in it, if it lies in outputs/."""
    assert export(opaque, "dataset", "output=red") == 0
    assert export(opaque, "dataset", "output=red", "overwrite=true") == 0
    (tmp_path / "red" / "source").mkdir()
    (tmp_path / "red" / "source" / "field.safetensors").write_bytes(b"hours of work")
    capsys.readouterr()
    assert export(opaque, "dataset", "output=red", "overwrite=true") == 1
    assert "red holds more than an export (source), which overwrite=true would delete" in capsys.readouterr().err
    assert (tmp_path / "red" / "source" / "field.safetensors").read_bytes() == b"hours of work"


def test_a_colmap_model_far_from_the_origin_keeps_its_cameras(capture_folder, tmp_path):
    """A rotation rounded to float32 turns positions a thousand sizes away by as much as the scene."""
    capture = load_capture(capture_folder, width=64, check=False)
    away = torch.eye(4, dtype=torch.float64)
    away[:3, :3] *= 1000  # a capture in thousandths of its unit, which lies two units away
    away[:3, 3] = torch.tensor([-2000.0, 1000, 500])
    capture = replace(capture, world_from_capture=away @ capture.world_from_capture)
    poses, nothing = capture_poses(capture.cameras, capture), np.empty(0, np.int64)
    points = Points(np.empty((0, 3)), np.empty((0, 3), np.uint8), nothing, np.empty((0, 2)))
    write_colmap(tmp_path, capture.image_names, capture.cameras, poses, points)
    spread = np.linalg.norm(poses[:, :, 3] - poses[:, :, 3].mean(0), axis=1).max()
    for pose, image in zip(poses, load_model(tmp_path).images, strict=True):
        w, x, y, z = image.quaternion
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        position = -(np.eye(3) + 2 * w * cross + 2 * cross @ cross).T @ image.translation
        assert np.linalg.norm(position - pose[:, 3]) < 1e-7 * spread


def test_a_video_that_finds_no_room_for_its_file_is_told(tmp_path, monkeypatch):
    """ffmpeg would end without a word that reaches us, and the file would be missing in the end."""

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(OSError) as told:
        write_video(tmp_path / "video.mp4", [torch.rand(8, 8, 3)], fps=5)
    assert told.value.errno == errno.ENOSPC and not (tmp_path / "video.mp4").exists()
