"""Captures described by JSON: Blender's, instant-ngp's and nerfstudio's."""

import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_captures import (
    edit_json,
    expect_error,
    moved,
    project,
    ring,
    write_colmap,
    write_image,
    write_transforms,
)

from tensorf.captures import load_capture
from tensorf.errors import UserError


def test_blender_rgba_with_splits(tmp_path):
    for split, colour in (("train", (200, 0, 0, 0)), ("test", (200, 0, 0, 255)), ("val", (0, 0, 0, 0))):
        keys = {"camera_angle_x": 2 * np.arctan(0.5)}
        write_transforms(tmp_path, ring(), f"transforms_{split}.json", split, colour, size=(10, 10), **keys)
        edit_json(
            tmp_path / f"transforms_{split}.json",
            lambda table: [f.update(file_path="./" + f["file_path"].removesuffix(".png")) for f in table["frames"]],
        )
    capture = load_capture(tmp_path)
    assert (capture.train, capture.test) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert capture.image_names[0] == "train/0.png" and capture.image_names[4] == "test/0.png"
    assert capture.images[0, 0, 0].tolist() == [255, 255, 255] and capture.images[4, 0, 0].tolist() == [200, 0, 0]
    assert capture.background == "white" and not capture.forward_facing
    assert (capture.cameras[0].fx, capture.cameras[0].cy) == pytest.approx((10, 5))
    dark = load_capture(tmp_path, white_background=False)
    assert dark.background == "black" and dark.images[0].max() == 0


def test_box_world_is_centred_with_cameras_at_distance_one(tmp_path):
    poses = ring(6)
    for pose in poses:
        pose[:, 3] += (5.0, -2.0, 7.0)
    write_transforms(tmp_path, poses)
    capture = load_capture(tmp_path, space="box")
    torch.testing.assert_close(moved(capture, (5.0, -2.0, 7.0)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    assert [c.position.norm().item() for c in capture.cameras] == pytest.approx([1] * 6)
    torch.testing.assert_close(capture.cameras[2].pose[:, :3], torch.from_numpy(poses[2][:, :3]).float())
    assert capture.box.tolist() == [[-1.5] * 3, [1.5] * 3] and capture.near == pytest.approx(0.05)
    assert load_capture(tmp_path, bound=0.5).box.tolist() == [[-0.5] * 3, [0.5] * 3]
    small = load_capture(tmp_path, bound=0.3, space="box")
    assert 0 < small.near < 1 < small.far < 2
    around = load_capture(tmp_path)  # opaque, all around: unbounded, in the same world
    assert around.space == "unbounded" and around.box.tolist() == [[-1.0] * 3, [1.0] * 3]
    torch.testing.assert_close(around.world_from_capture, capture.world_from_capture)


def test_opengl_axes_project_a_known_point(tmp_path):
    write_transforms(tmp_path, ring(), fl_x=10.0, fl_y=20.0, cx=5.0, cy=3.0, w=12.0, h=8.0)
    capture = load_capture(tmp_path)
    # Camera 0 at (4, 0, 1) sees the origin at its principal point and what lies at +y on its right, +z upwards.
    u, v = project(capture.cameras[0], moved(capture, (0.0, 0.0, 0.0)))
    assert (u, v) == pytest.approx((5, 3), abs=1e-4)
    assert project(capture.cameras[0], moved(capture, (0.0, 1.0, 0.0))) == pytest.approx(
        (5 + 10 / 17**0.5, 3), abs=1e-4
    )
    assert project(capture.cameras[0], moved(capture, (0.0, 0.0, 1.0)))[1] < 3


def test_a_frames_own_intrinsics_come_first(tmp_path):
    write_transforms(tmp_path, ring(), fl_x=10.0, w=24.0, h=16.0, camera_model="PINHOLE", applied_transform=[])
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"][2].update(fl_x=40.0, fl_y=44.0, cx=10.0))
    cameras = load_capture(tmp_path).cameras
    assert (cameras[0].fx, cameras[0].fy, cameras[0].cx) == (5, 5, 6)
    assert (cameras[2].fx, cameras[2].fy, cameras[2].cx) == (20, 22, 5)


def test_missing_photos_are_counted_once(tmp_path, caplog):
    write_transforms(tmp_path, ring(6))
    for name in ("1.png", "4.png"):
        (tmp_path / "images" / name).unlink()
    capture = load_capture(tmp_path)
    assert capture.image_names == ["images/0.png", "images/2.png", "images/3.png", "images/5.png"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "2 of 6" in warnings[0] and "images/1.png" in warnings[0]
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(UserError, match="transforms.json: 2 of 6"):
        load_capture(tmp_path)


def test_named_and_unnamed_splits(tmp_path):
    write_transforms(tmp_path, ring(10))
    capture = load_capture(tmp_path)
    assert (capture.train, capture.test) == ([1, 2, 3, 4, 5, 6, 7, 9], [0, 8])
    assert load_capture(tmp_path, test_every=0).test == []
    assert load_capture(tmp_path, test_every=1).train == [8, 9]
    names = {"train_filenames": ["images/0.png", "./images/3.png"], "test_filenames": ["images/7.png"]}
    edit_json(tmp_path / "transforms.json", lambda table: table.update(names))
    capture = load_capture(tmp_path)
    assert capture.image_names == ["images/0.png", "images/3.png", "images/7.png"]
    assert (capture.train, capture.test) == ([0, 1], [2])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".JPG", ".jpeg", ".TIF"])
def test_names_without_a_suffix(tmp_path, suffix):
    write_transforms(tmp_path, ring())
    for path in sorted((tmp_path / "images").iterdir()):
        path.unlink()
        write_image(path.with_suffix(suffix))
    edit_json(
        tmp_path / "transforms.json",
        lambda table: [f.update(file_path=f["file_path"].removesuffix(".png")) for f in table["frames"]],
    )
    assert load_capture(tmp_path).image_names == [f"images/{i}{suffix}" for i in range(4)]


@pytest.mark.parametrize("name", ["/", "", ".", "./", "images", "images/", "..", "no\0name"])
def test_names_that_are_no_files_are_missing_photos(tmp_path, name, caplog):
    write_transforms(tmp_path, ring())
    write_image(tmp_path.parent / f"{tmp_path.name}.png")
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"][0].update(file_path=name))
    assert len(load_capture(tmp_path).cameras) == 3
    assert "1 of 4 photos are missing" in caplog.text


def test_a_byte_order_mark(tmp_path):
    write_transforms(tmp_path / "json", ring())
    write_colmap(tmp_path / "colmap" / "sparse", ".txt")
    for i in range(3):
        write_image(tmp_path / "colmap" / "images" / f"view{i + 1}.png")
    texts = [tmp_path / "json" / "transforms.json", *(tmp_path / "colmap" / "sparse").iterdir()]
    assert len(texts) == 4
    for path in texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_capture(tmp_path / "json").cameras) == 4
    assert len(load_capture(tmp_path / "colmap").cameras) == 3


@pytest.mark.parametrize("before", ["{root}", "/home/somebody/data/flower", "D:\\captures\\flower"])
def test_absolute_names_of_a_capture_that_was_moved(tmp_path, before):
    """As nerfstudio's tools write them for some captures, here or on another machine."""
    write_transforms(tmp_path, ring(4))
    for i in range(4):
        Image.new("L", (12, 8), 255).save(tmp_path / f"mask{i}.png")
    place = before.format(root=tmp_path)

    def to_absolute(table):
        for i, frame in enumerate(table["frames"]):
            frame.update(file_path=f"{place}/{frame['file_path']}", mask_path=f"{place}/mask{i}.png")
        names = [frame["file_path"] for frame in table["frames"]]
        table.update(train_filenames=names[:2], test_filenames=names[2:3])

    edit_json(tmp_path / "transforms.json", to_absolute)
    capture = load_capture(tmp_path)
    assert capture.image_names == ["images/0.png", "images/1.png", "images/2.png"]
    assert (capture.train, capture.test) == ([0, 1], [2]) and capture.masks is not None


def test_frames_that_come_twice_are_left_out(tmp_path, caplog):
    write_transforms(tmp_path, ring(10))
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"].append(dict(table["frames"][0])))
    capture = load_capture(tmp_path)
    assert len(capture.image_names) == 10 and "1 frames name a photo that an earlier frame names" in caplog.text


def test_photos_in_both_files_of_a_split_are_trained_on(tmp_path):
    for split in ("train", "test"):
        write_transforms(tmp_path, ring(6), f"transforms_{split}.json")
    write_image(tmp_path / "images" / "7.png")
    edit_json(
        tmp_path / "transforms_test.json",
        lambda table: [
            f.update(file_path=f"images/../images/{7 if i == 5 else i}.png") for i, f in enumerate(table["frames"])
        ],
    )
    capture = load_capture(tmp_path)
    assert len(capture.image_names) == 7 and (len(capture.train), len(capture.test)) == (6, 1)


def test_photos_that_are_listed_to_train_on_and_held_out(tmp_path):
    write_transforms(tmp_path, ring(10))
    names = [f"images/{i}.png" for i in range(10)]
    edit_json(
        tmp_path / "transforms.json", lambda table: table.update(train_filenames=names[:8], val_filenames=names[6:])
    )
    capture = load_capture(tmp_path)
    assert (capture.train, capture.test) == (list(range(8)), [8, 9])
    edit_json(tmp_path / "transforms.json", lambda table: table.update(train_filenames=names, val_filenames=names))
    assert load_capture(tmp_path).test == [0, 8]  # nothing is held out by name


def test_angles_of_view_in_degrees(tmp_path):
    write_transforms(tmp_path, ring(), x_fov=90.0, y_fov=60.0, w=12.0, h=8.0)
    camera = load_capture(tmp_path).cameras[0]
    assert (camera.fx, camera.fy) == pytest.approx((6.0, 4.0 * np.sqrt(3)))
    edit_json(tmp_path / "transforms.json", lambda table: table.pop("y_fov"))
    assert load_capture(tmp_path).cameras[0].fy == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("frames"), ("frames",)),
        (lambda table: table.update(x_fov=180.0) or table.pop("fl_x"), ("x_fov", "180 degrees")),
        (lambda table: table.pop("fl_x"), ("fl_x", "camera_angle_x")),
        (lambda table: table.update(fl_x="wide"), ("fl_x", "wide")),
        (lambda table: table.update(camera_model="EQUIRECTANGULAR"), ("EQUIRECTANGULAR",)),
        (lambda table: table.update(camera_model=["OPENCV"]), ("camera_model ['OPENCV'] is not read",)),
        (lambda table: table["frames"][1].pop("transform_matrix"), ("images/1.png", "transform_matrix")),
        (lambda table: table["frames"][1].pop("file_path"), ("frame 1", "file_path")),
        (lambda table: table["frames"][1].update(transform_matrix=[[1, 2], [3]]), ("images/1.png", "4x4")),
        (lambda table: table["frames"][3]["transform_matrix"][0].__setitem__(3, float("nan")), ("images/3.png", "NaN")),
    ],
)
def test_transforms_errors(tmp_path, change, words):
    write_transforms(tmp_path, ring())
    edit_json(tmp_path / "transforms.json", change)
    expect_error(tmp_path, "transforms.json", *words)


def test_malformed_json(tmp_path):
    (tmp_path / "transforms.json").write_text('{"frames": [')
    expect_error(tmp_path, "transforms.json", "not valid JSON")
    (tmp_path / "transforms.json").write_text("[]")
    expect_error(tmp_path, "transforms.json", "object")


def test_lists_that_name_no_frame_are_told(tmp_path):
    write_transforms(tmp_path, ring(10))
    names = {"train_filenames": ["0.png", "1.png"], "test_filenames": ["2.png"]}
    edit_json(tmp_path / "transforms.json", lambda table: table.update(names))
    expect_error(tmp_path, "train_filenames and test_filenames name no frame", "0.png", "images/0.png")


def test_frames_in_no_list_are_counted(tmp_path, caplog):
    write_transforms(tmp_path, ring(10))
    names = [f"images/{i}.png" for i in range(6)]
    lists = {"train_filenames": names[:4], "test_filenames": names[4:]}
    edit_json(tmp_path / "transforms.json", lambda table: table.update(lists))
    caplog.set_level("INFO", "tensorf")
    assert len(load_capture(tmp_path).cameras) == 6
    assert "4 of 10 frames are in none of its lists" in caplog.text


def test_photos_of_another_suffix_or_only_smaller_ones(tmp_path):
    write_transforms(tmp_path / "a", ring())
    for path in sorted((tmp_path / "a" / "images").iterdir()):
        path.rename(path.with_suffix(".JPG"))
    assert load_capture(tmp_path / "a").image_names[0] == "images/0.JPG"
    write_transforms(tmp_path / "b", ring(), fl_x=40.0, w=48.0, h=32.0)  # its photos are 12x8
    (tmp_path / "b" / "images").rename(tmp_path / "b" / "images_4")
    capture = load_capture(tmp_path / "b")
    assert capture.images.shape == (4, 8, 12, 3) and capture.cameras[0].fx == pytest.approx(10)


def test_a_principal_point_of_larger_photos_is_told(tmp_path):
    write_transforms(tmp_path, ring(), fl_x=40.0, cx=24.0, cy=16.0)
    expect_error(tmp_path, "cx=24", "12x8", "about 48x32", "add w and h")
    write_transforms(tmp_path, ring(), fl_x=10.0, cx=8.0, cy=5.0)
    assert load_capture(tmp_path).cameras[0].cx == 8


def split_capture(root, **missing):
    """train, test and val of 4 photos each; of some splits no photo was brought along."""
    for split in ("train", "test", "val"):
        write_transforms(root, ring(), f"transforms_{split}.json", split)
        if missing.get(split):
            shutil.rmtree(root / split)


def test_the_validations_photos_are_held_out_where_the_tests_are_not_there(tmp_path, caplog):
    split_capture(tmp_path, test=True)
    capture = load_capture(tmp_path, check=False)
    assert [capture.image_names[i] for i in capture.test] == [f"val/{i}.png" for i in range(4)]
    assert capture.train == [0, 1, 2, 3]
    assert "transforms_test.json: none of its 4 photos exists" in caplog.text and "transforms_val.json" in caplog.text


def test_the_tests_photos_go_first_and_where_neither_is_there_the_training_is_split(tmp_path, caplog):
    split_capture(tmp_path)
    capture = load_capture(tmp_path, check=False)
    assert {capture.image_names[i].split("/")[0] for i in capture.test} == {"test"} and len(capture.cameras) == 8
    assert "none of" not in caplog.text
    shutil.rmtree(tmp_path / "test")
    shutil.rmtree(tmp_path / "val")
    capture = load_capture(tmp_path, check=False)
    assert (capture.train, capture.test) == ([1, 2, 3], [0]) and "4 of 8 photos are missing" in caplog.text
