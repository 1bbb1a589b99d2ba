"""Camera paths from files."""

import json
import math

import numpy as np
import pytest
import torch

from tensorf.cameras import Camera
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
