"""Camera paths from files."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny_captures import ring, write_transforms

from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.captures.views import turned_pose
from tensorf.captures.writing import capture_poses
from tensorf.errors import UserError
from tensorf.path_files import read_camera_path

LIKE = Camera(torch.eye(3, 4), 50.0, 50.0, 32.0, 24.0, 64, 48)
# OpenGL: at (1, 2, 3), looking along -z of the capture.
POSE = np.eye(4)
POSE[:3, 3] = 1, 2, 3


def write(folder, table, name="path.json"):
    (folder / name).write_text(json.dumps(table))
    return folder / name


def similarity(scale=2.0, shift=(0.0, 1.0, 0.0)):
    matrix = torch.eye(4)
    matrix[:3] *= scale
    matrix[:3, 3] = torch.tensor(shift)
    return matrix


def test_a_transforms_file(tmp_path):
    frames = [
        {"transform_matrix": POSE.tolist()},
        {"transform_matrix": POSE[:3].tolist(), "fl_x": 80, "w": 100, "h": 60},
    ]
    first, second = read_camera_path(write(tmp_path, {"frames": frames}), similarity(), LIKE)
    assert first.position.tolist() == [2, 5, 6] and first.forward.tolist() == [0, 0, -1]
    assert first.pose[:, 1].tolist() == [0, -1, 0]  # OpenCV's axes: down
    assert (first.fx, first.width, first.height) == (50, 64, 48)
    assert (second.fx, second.fy, second.cx, second.cy, second.width, second.height) == (80, 80, 50, 30, 100, 60)
    table = {"camera_angle_x": 1.0, "frames": frames[:1]}
    (third,) = read_camera_path(write(tmp_path, table), similarity(), LIKE)
    assert third.fx == pytest.approx(32 / math.tan(0.5))


def test_focal_lengths_of_pictures_of_unknown_size_are_left_out(tmp_path):
    table = {"fl_x": 5000, "cx": 2000, "frames": [{"transform_matrix": POSE.tolist()}]}
    (camera,) = read_camera_path(write(tmp_path, table), similarity(), LIKE)
    assert (camera.fx, camera.cx, camera.width) == (50, 32, 64)
    (camera,) = read_camera_path(write(tmp_path, {**table, "camera_angle_x": 1.0}), similarity(), LIKE)
    assert (camera.fx, camera.cx) == (pytest.approx(32 / math.tan(0.5)), 32)


def test_a_path_of_nerfstudios_viewer(tmp_path, caplog):
    frame = {"camera_to_world": POSE.flatten().tolist(), "fov": 60, "aspect": 1.0}
    table = {"render_height": 90, "render_width": 120, "camera_path": [frame]}
    (camera,) = read_camera_path(write(tmp_path, table), torch.eye(4), LIKE)
    assert camera.position.tolist() == [1, 2, 3] and (camera.width, camera.height) == (120, 90)
    assert camera.fy == pytest.approx(45 / math.tan(math.radians(30)))
    # nerfstudio: x' = scale (R x + t); what is beside the path undoes it
    turn = np.array([[0, -1, 0, 0.5], [1, 0, 0, 0], [0, 0, 1, -1]], float)
    normalised = POSE.copy()
    normalised[:3] = turn[:, :3] @ POSE[:3]
    normalised[:3, 3] = 0.1 * (turn[:, :3] @ POSE[:3, 3] + turn[:, 3])
    table["camera_path"][0]["camera_to_world"] = normalised.tolist()
    write(tmp_path, {"transform": turn.tolist(), "scale": 0.1}, "dataparser_transforms.json")
    caplog.clear()
    (again,) = read_camera_path(write(tmp_path, table), torch.eye(4), LIKE)
    torch.testing.assert_close(again.pose, camera.pose)
    assert not caplog.records


def test_without_what_nerfstudio_tells_of_its_world_there_is_a_warning(tmp_path, caplog):
    frame = {"camera_to_world": POSE.flatten().tolist()}
    read_camera_path(write(tmp_path, {"camera_path": [frame]}), torch.eye(4), LIKE)
    (line,) = caplog.messages
    assert all(word in line for word in ("path.json", "nerfstudio", "copy dataparser_transforms.json"))
    caplog.clear()
    read_camera_path(write(tmp_path, {"frames": [{"transform_matrix": POSE.tolist()}]}), torch.eye(4), LIKE)
    assert not caplog.records


@pytest.mark.parametrize("where", ["in the file", "assumed by nerfstudio", "nowhere"])
def test_what_the_capture_has_applied_already_is_no_part_of_the_normalisation(tmp_path, where):
    """nerfstudio writes normalisation @ applied_transform, and scale times applied_scale."""
    applied = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    capture = tmp_path / "capture"
    capture.mkdir()
    table = {"applied_transform": applied[:3].tolist(), "applied_scale": 4.0} if where == "in the file" else {}
    write(capture, table | {"frames": []}, "transforms.json")
    if where == "assumed by nerfstudio":
        (capture / "colmap" / "sparse" / "0").mkdir(parents=True)
    turn = np.array([[0, -1, 0, 0.5], [1, 0, 0, 0], [0, 0, 1, -1], [0, 0, 0, 1]], float)
    shown = turn @ POSE  # in nerfstudio's world
    shown[:3, 3] *= 0.1
    told = turn @ applied if where != "nowhere" else turn
    scale = 0.1 * table.get("applied_scale", 1.0)
    write(tmp_path, {"transform": told[:3].tolist(), "scale": scale}, "dataparser_transforms.json")
    path = {"render_height": 90, "render_width": 120, "camera_path": [{"camera_to_world": shown.flatten().tolist()}]}
    (camera,) = read_camera_path(write(tmp_path, path), torch.eye(4), LIKE, capture)
    torch.testing.assert_close(camera.position, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(camera.forward, torch.tensor([0.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    "table, told",
    [
        ({}, "neither frames nor camera_path"),
        ([], "JSON object"),
        ({"frames": []}, "no cameras"),
        ({"frames": 3}, "list of cameras"),
        ({"frames": [{"transform_matrix": [1, 2]}]}, "camera 0 is not a 4x4"),
        ({"frames": [{"transform_matrix": [[math.nan] * 4] * 4}]}, "camera 0 is not a 4x4"),
        ({"frames": [{"transform_matrix": np.diag([1.0, 2, 3, 1]).tolist()}]}, "camera 0"),
        ({"frames": [{"transform_matrix": POSE.tolist(), "fl_x": "x", "w": 9, "h": 9}]}, "fl_x"),
        ({"frames": [{"transform_matrix": POSE.tolist(), "fl_x": -5, "w": 9, "h": 9}]}, "no usable lens"),
        ({"camera_path": [{"camera_to_world": POSE.tolist()}], "camera_type": "fisheye"}, "camera_type is fisheye"),
        ({"camera_path": [{"camera_to_world": POSE.tolist(), "fov": None}]}, "fov"),
        ({"camera_path": [{"camera_to_world": POSE.tolist(), "fov": 1e999}]}, "between 0 and 180"),
        ({"camera_path": [{"camera_to_world": POSE.tolist(), "fov": 0}]}, "between 0 and 180"),
    ],
)
def test_what_is_no_path_is_told(table, told, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        read_camera_path(write(tmp_path, table), torch.eye(4), LIKE)
    assert "path.json" in str(error.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_camera_path(tmp_path / "none.json", torch.eye(4), LIKE)
    (tmp_path / "path.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_camera_path(tmp_path / "path.json", torch.eye(4), LIKE)


# --- captures whose photos were turned upright


def stored_poses(turn):
    """Of a camera that was held so that its photos have to be turned by this EXIF orientation."""
    poses = ring()
    for _ in range({1: 0, 8: 1, 3: 2, 6: 3}[turn]):  # quarter turns back
        poses = [turned_pose(pose) for pose in poses]
    return poses


def turned_capture(folder, turn):
    """Four photos of 12x8 pixels that EXIF turns."""
    write_transforms(folder, stored_poses(turn), fl_x=10.0, fl_y=11.0, cx=5.0, cy=4.5, w=12.0, h=8.0)
    for i in range(4):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turn
        Image.new("RGB", (12, 8)).save(folder / "images" / f"{i}.png", exif=exif)
    return load_capture(folder, check=False)


@pytest.mark.parametrize("lens", [True, False])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_poses_of_stored_photos_are_turned_as_the_photos_were(tmp_path, turn, lens):
    capture = turned_capture(tmp_path, turn)
    table = json.loads((tmp_path / "transforms.json").read_text())
    file = write(tmp_path, table if lens else {"frames": table["frames"]})
    cameras = read_camera_path(file, capture.world_from_capture, capture.cameras[0], tmp_path, capture.turns)
    assert len(cameras) == 4
    for camera, own in zip(cameras, capture.cameras, strict=True):
        assert vars(camera) | {"pose": 0} == vars(own) | {"pose": 0}
        torch.testing.assert_close(camera.pose, own.pose)


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_poses_that_are_upright_already_stay(tmp_path, turn):
    """As an export has them, or somebody who wrote them by hand."""
    capture = turned_capture(tmp_path, turn)
    poses = capture_poses(capture.cameras, capture) * np.array([1.0, -1, -1, 1])
    file = write(tmp_path, {"frames": [{"transform_matrix": pose.tolist()} for pose in poses]})
    cameras = read_camera_path(file, capture.world_from_capture, capture.cameras[0], tmp_path, capture.turns)
    for camera, own in zip(cameras, capture.cameras, strict=True):
        assert (camera.width, camera.height, camera.fx) == (own.width, own.height, own.fx)
        torch.testing.assert_close(camera.pose, own.pose)


def test_what_was_composed_in_a_viewer_stays_as_it_was_seen(tmp_path):
    capture = turned_capture(tmp_path, 6)
    pose = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]["transform_matrix"]
    table = {"render_height": 90, "render_width": 120, "camera_path": [{"camera_to_world": pose}], "frames": []}
    file = write(tmp_path, table)
    (camera,) = read_camera_path(file, capture.world_from_capture, capture.cameras[0], None, capture.turns)
    assert (camera.width, camera.height) == (120, 90)
    torch.testing.assert_close(camera.pose, capture.cameras[0].turned(-1).pose)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_pose_of_the_captures_own_coordinates_is_that_of_a_stored_photo(tmp_path, turn):
    capture = turned_capture(tmp_path, turn)
    camera, own = capture.camera_at(stored_poses(turn)[2]), capture.cameras[2]
    assert vars(camera) | {"pose": 0} == vars(own) | {"pose": 0}
    torch.testing.assert_close(camera.pose, own.pose)
