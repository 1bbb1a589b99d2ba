"""Where captures are placed: their space, its centre, size and near plane."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_captures import edit_json, expect_error, moved, ring, row_of_cameras, write_llff, write_transforms

from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.captures.capture import _sightings
from tensorf.captures.geometry import astray, focus_point, place, seen_depths
from tensorf.captures.views import Lens, Listing, View
from tensorf.captures.writing import capture_poses
from tensorf.errors import UserError


def test_the_box_is_where_the_pictures_look_not_the_lenses(tmp_path):
    """Pictures cut out of the lower part of larger ones: their optical axes pass above what they show."""
    centre = np.array([1.0, 2.0, 3.0])
    low = []  # cameras that look too high by a quarter of the picture's height
    for pose in ring(8):
        turn = np.arctan(0.25 * 8 / 10.0)
        up = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
        low.append(np.concatenate([pose[:, :3] @ up, pose[:, 3:] + centre[:, None]], 1))
    sign = 1 if (low[0][:, 2] @ ring(8)[0][:, 1]) < 0 else -1  # whether the turn was upwards
    write_transforms(tmp_path, low, colour=(9, 9, 9, 0), fl_x=10.0, w=12.0, h=8.0, cx=6.0, cy=4.0 - sign * 0.25 * 8)
    capture = load_capture(tmp_path, space="box")
    assert (moved(capture, centre) - capture.box.mean(0)).norm() < 0.02
    assert moved(capture, centre).norm() > 0.15  # the origin is where the axes meet, as it always was
    assert (capture.box[1] - capture.box[0]).tolist() == pytest.approx([0.8 * 1.5] * 3, rel=0.3)


def test_scenes_far_from_the_origin_and_tiny_ones(tmp_path):
    for name, scale, shift in (("map", 0.5, (4.4e5, 5.4e6, 300.0)), ("tiny", 1e-7, (0.0, 0.0, 0.0))):
        poses = ring(8)
        for pose in poses:
            pose[:, 3] = scale * pose[:, 3] + shift
        write_transforms(tmp_path / name, poses)
        capture = load_capture(tmp_path / name)
        back = capture_poses(capture.cameras, capture)[:, :, 3]
        assert np.abs(back - [pose[:, 3] for pose in poses]).max() < 1e-5 * scale
    for pose in poses:
        pose[:, 3] = (4.4e5, 5.4e6, 300.0)
    write_transforms(tmp_path / "still", poses)
    expect_error(tmp_path / "still", "all cameras are at the same place")
    for i, pose in enumerate(poses):  # rounded to float32
        pose[:, 3] = np.float32(3.7) + np.array([0, 0, 2.4e-7 * (i % 2)])
    write_transforms(tmp_path / "rounded", poses)
    expect_error(tmp_path / "rounded", "all cameras are at the same place")


def test_of_many_points_some_tell_the_depths():
    lens, pose = Lens(10.0, 10.0, 6.0, 4.0, 12, 8), np.eye(3, 4)
    points = np.random.default_rng(0).uniform((-0.1, -0.1, 1), (0.1, 0.1, 3), (50_000, 3))
    depths = seen_depths(pose[None], [lens], points)
    assert len(depths) == 20_000 and np.array_equal(depths, seen_depths(pose[None], [lens], points))
    assert abs(np.median(depths) - 2) < 0.05


def test_space_is_decided_by_where_cameras_look(tmp_path, caplog):
    write_llff(tmp_path, ring(8))
    with caplog.at_level(logging.INFO, "tensorf"):
        assert not load_capture(tmp_path).forward_facing
    assert "unbounded: cameras look up to" in caplog.text
    with pytest.raises(UserError, match="poses_bounds.npy.*space=unbounded"):
        load_capture(tmp_path, space="ndc")


@pytest.mark.parametrize(("focal", "space"), [(20.0, "ndc"), (1.5, "unbounded")])
def test_pictures_with_corners_far_off_the_axis_are_not_forward_facing(tmp_path, focal, space):
    # 12x8 pixels: corners are atan(7.2 / focal) off the axis, 20 and 78 degrees; the limit is 75.
    write_llff(tmp_path, row_of_cameras(5), hwf=(8, 12, focal), depths=(4.0, 20.0))
    assert load_capture(tmp_path).space == space


def test_options_that_are_not_used_are_told(tmp_path, caplog):
    write_llff(tmp_path / "llff", row_of_cameras(5))
    write_transforms(tmp_path / "json", ring(5))
    for name, options in (
        ("llff", {"order": "number"}),
        ("json", {"bound": 2}),
        ("llff", {"bound": 2, "space": "box"}),
    ):
        load_capture(tmp_path / name, **options)
    assert "is not used" not in caplog.text
    write_transforms(tmp_path / "split", ring(5))
    names = [f"images/{i}.png" for i in range(5)]
    edit_json(
        tmp_path / "split" / "transforms.json", lambda t: t.update(train_filenames=names[:4], test_filenames=names[4:])
    )
    load_capture(tmp_path / "split")
    assert "is not used" not in caplog.text
    for name, options, words in (
        ("llff", {"bound": 2}, "bound=2 is"),
        ("json", {"order": "text"}, "order=text is"),
        ("split", {"test_every": 3}, "test_every=3 is"),
    ):
        caplog.clear()
        load_capture(tmp_path / name, **options)
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1 and f"{name}" in caplog.text and f": {words} not used" in caplog.text


def test_a_camera_ahead_of_the_near_plane_needs_the_box(tmp_path):
    poses = row_of_cameras(5)
    poses[4][2, 3] = 2.0  # 1.6 ahead of the mean camera, beyond 0.75 of the nearest depth
    write_llff(tmp_path, poses, depths=(2.0, 20.0))
    assert not load_capture(tmp_path).forward_facing
    assert load_capture(tmp_path, space="ndc").forward_facing


def test_forward_facing_without_depths_keeps_cameras_behind_the_near_plane(tmp_path):
    write_transforms(tmp_path, row_of_cameras(5))
    capture = load_capture(tmp_path)
    assert capture.forward_facing and capture.near == pytest.approx(4 / 3)
    assert max(camera.position[2] for camera in capture.cameras) < 1
    box = load_capture(tmp_path, space="box")  # parallel axes: a point ahead of the cameras is the centre
    assert not box.forward_facing and all(camera.position[2] < -0.9 for camera in box.cameras)


def test_the_near_plane_leaves_room_for_plain_things_before_the_points():
    """What has no texture has no points: it may stand before all of them."""
    poses, lens = ring(8, radius=4.0), Lens(10.0, 10.0, 6.0, 4.0, 12, 8)
    listing = Listing(Path("capture"), [View(f"{i}", Path(f"{i}.png"), pose, lens) for i, pose in enumerate(poses)])
    middle = np.random.default_rng(0).uniform(-0.3, 0.3, (500, 3))
    assert place(listing, "auto", None, False, middle).near == 0.45  # not 0.75 of the 0.9 of the first points
    close = middle[:300] / 10 + (poses[0][:, 3] + poses[0][:, 2])  # 1 before the first camera, of 4.12
    near = place(listing, "auto", None, False, np.concatenate([middle, close])).near
    assert near == pytest.approx(0.75 / np.hypot(4, 1), rel=0.05)


def test_few_points_do_not_tell_the_near_plane():
    poses, lens = ring(8, radius=4.0), Lens(10.0, 10.0, 6.0, 4.0, 12, 8)
    listing = Listing(Path("capture"), [View(f"{i}", Path(f"{i}.png"), pose, lens) for i, pose in enumerate(poses)])
    middle = np.random.default_rng(0).uniform(-0.3, 0.3, (50, 3))
    assert place(listing, "auto", None, False, middle).near == 0.45
    assert place(listing, "auto", None, False, middle[:49]).near == 0.1


def test_cameras_that_are_few_and_far_off_stand_astray():
    ten = np.array(ring(10))[:, :, 3]
    assert not astray(ten, None).any()
    for depth, factor, said in ((None, 9.0, False), (None, 12.0, True), (1.0, 12.0, True), (5.0, 12.0, False)):
        moved_off = np.concatenate([ten, [[factor * 4, 0, 1]]])
        assert astray(moved_off, depth).tolist() == [False] * 10 + [said]
    two_more = np.concatenate([ten, [[80, 0, 0], [90, 0, 0]]])
    assert not astray(two_more, None).any()  # of twelve, two are a part of the capture
    resting = np.array([[1e-7 * i, 0, 0] for i in range(12)] + [[1.0, 0, 0]])  # a tripod, and one step aside
    assert not astray(resting, None).any() and not astray(resting, 2.0).any()
    close = np.array([[0.0, 0, 0], [0.001, 0, 0], [1, 0, 0]])  # of three, two at nearly the same place
    assert not astray(close, None).any() and not astray(close, 1.0).any()


@pytest.mark.parametrize("make", [ring, row_of_cameras])
def test_a_camera_astray_leaves_the_world_where_it_is_and_is_named(tmp_path, caplog, make):
    poses = make(12)
    far = poses[5].copy()
    far[:, 3] += (400.0, 0.0, -400.0)
    write_transforms(tmp_path / "good", poses)
    write_transforms(tmp_path / "bad", [*poses, far])
    good = load_capture(tmp_path / "good")
    assert "stands" not in caplog.text
    bad = load_capture(tmp_path / "bad")
    assert bad.space == good.space and bad.near == good.near
    torch.testing.assert_close(bad.world_from_capture, good.world_from_capture)
    torch.testing.assert_close(bad.box, good.box)
    torch.testing.assert_close(bad.reference, good.reference, atol=1e-6, rtol=0)
    line = caplog.records[-1].getMessage()
    assert "transforms.json: the camera of images/12.png stands" in line and "Estimate its pose again" in line
    away = np.linalg.norm(np.array([*poses, far])[:, :, 3] - np.median([*poses, far], axis=0)[:, 3], axis=1)
    assert f" {away[12] / np.median(away):.3g} times" in line


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_cameras_that_look_both_ways_along_a_line_have_their_middle_as_centre(noise):
    turned = np.diag([-1.0, 1.0, -1.0])
    poses = np.stack([np.c_[turned if i % 2 else np.eye(3), [0.5 * i, 0.0, 0.0]] for i in range(8)])
    poses[:, :, 2] += noise * np.random.default_rng(0).standard_normal((8, 3))
    poses[:, :, 2] /= np.linalg.norm(poses[:, :, 2], axis=1, keepdims=True)
    assert focus_point(poses, poses[:, :, 2], (1.0, 9.0)).tolist() == pytest.approx([1.75, 0, 0], abs=1e-9)


def test_the_box_holds_what_the_farther_views_see_whole(tmp_path):
    """Close-ups of an object: at the mean distance a lens sees less of it than from afar."""
    poses = [*ring(8, radius=4.0), *ring(8, radius=2.0)]
    write_transforms(tmp_path, poses, colour=(9, 9, 9, 0), fl_x=10.0, w=12.0, h=8.0)
    capture = load_capture(tmp_path)
    scale = np.cbrt(np.linalg.det(capture.world_from_capture[:3, :3]))
    seen = scale * np.hypot(4.0, 1.0) * 6 / 10
    assert capture.space == "box" and (capture.box[1] - capture.box[0]).max() / 2 == pytest.approx(seen, rel=0.05)


def test_points_that_undistorting_cut_off_are_no_sightings():
    views = [Camera(torch.eye(3, 4), 10.0, 10.0, 6.0, 4.0, 12, 8) for _ in range(2)]
    points = np.array([[0.1, 0.0, 1.0], [0.9, 0.0, 1.0], [0.1, 0.0, -1.0]])  # in the picture, beside it, behind it
    cameras, shown = _sightings(points, np.array([[0, 1]] * 3), views, np.eye(4))
    assert cameras.tolist() == [0, 1] and torch.allclose(shown, torch.tensor([[0.1, 0.0, 1.0]] * 2))
    assert _sightings(points[1:], np.array([[0, 1]] * 2), views, np.eye(4)) is None


def forward(count=20, aside=0.05):
    """Poses of somebody who walks ahead, a little unsteadily, looking along +z."""
    sway = aside * np.random.default_rng(0).standard_normal((count, 2))
    return [np.c_[np.eye(3), [sway[i, 0], sway[i, 1], 0.2 * i]] for i in range(count)]


@pytest.mark.parametrize(("aside", "space"), [(0.05, "unbounded"), (4.0, "ndc")])
def test_who_walks_forward_where_nothing_tells_depths_gets_unbounded_space(tmp_path, caplog, aside, space):
    write_transforms(tmp_path, forward(aside=aside), fl_x=20.0, w=12.0, h=8.0)
    with caplog.at_level(logging.INFO, "tensorf"):
        assert load_capture(tmp_path, check=False).space == space
    assert ("neither file nor photos tell how near" in caplog.text) == (space == "unbounded")
    assert load_capture(tmp_path, check=False, space="ndc").space == "ndc"


def test_depths_that_are_told_decide_whether_walking_forward_is_far():
    """The 3.8 that they walk ahead are nothing where all is 100 away."""
    lens = Lens(20.0, 20.0, 6.0, 4.0, 12, 8)
    views = [View(f"{i}", Path(f"{i}.png"), pose, lens) for i, pose in enumerate(forward())]
    assert place(Listing(Path("capture"), views, depths=(100.0, 300.0)), "auto", None, False).space == "ndc"
