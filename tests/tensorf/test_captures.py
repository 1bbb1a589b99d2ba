"""Readers, held to hand-worked values on tiny captures, and (with CDS3D_CAPTURES set) to the real fox and can."""

import logging
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_captures import (
    POINTS,
    edit_json,
    expect_error,
    moved,
    project,
    ring,
    row_of_cameras,
    write_colmap,
    write_image,
    write_llff,
    write_transforms,
)

from tensorf.captures import load_capture
from tensorf.captures.colmap import read_colmap
from tensorf.captures.geometry import mean_pose
from tensorf.captures.llff import opencv_from_llff
from tensorf.captures.matching import _undistorted
from tensorf.captures.undistortion import undistort
from tensorf.captures.views import Lens, natural_key
from tensorf.errors import UserError

REAL = os.environ.get("CDS3D_CAPTURES")
real = pytest.mark.skipif(not REAL, reason="CDS3D_CAPTURES names no folder of real captures")


# --- LLFF


def test_llff_axes_become_opencv():
    # A camera at (1, 2, 3) looking along world +x with world -z as down: right = down x forward = -y.
    llff = np.array([[0.0, 0, -1, 1], [0, -1, 0, 2], [-1, 0, 0, 3]])  # columns down, right, back, position
    expected = np.array([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3]])
    np.testing.assert_array_equal(opencv_from_llff(llff), expected)
    assert np.linalg.det(expected[:, :3]) == pytest.approx(1)


def test_llff_projects_a_known_point(tmp_path):
    write_llff(tmp_path, row_of_cameras())
    capture = load_capture(tmp_path)
    # From camera 1 at (0.2, 0, 0), the point (0.7, -1, 5): u = 10 * 0.5 / 5 + 6 = 7, v = 10 * -1 / 5 + 4 = 2.
    assert project(capture.cameras[1], moved(capture, (0.7, -1.0, 5.0))) == pytest.approx((7, 2), abs=1e-4)
    assert capture.image_names == ["image1.png", "image2.png", "image3.png", "image4.png"]
    assert capture.forward_facing and capture.background == "black" and capture.name == tmp_path.name
    assert load_capture(tmp_path.rename(tmp_path.parent / "images")).name == tmp_path.parent.name


def test_forward_facing_world_has_ndc_near_plane_at_one(tmp_path):
    write_llff(tmp_path, row_of_cameras())
    capture = load_capture(tmp_path)
    assert capture.near == pytest.approx(4 / 3) and capture.far == pytest.approx(40 / 3)
    torch.testing.assert_close(capture.reference, torch.eye(3, 4))
    # Camera 0 stands 0.3 left of the mean one; 1 / (0.75 * 2) is the scale. Left stays left.
    torch.testing.assert_close(capture.cameras[0].position, torch.tensor([-0.2, 0, 0]))


def test_mean_pose_is_no_mirror_image():
    poses = np.stack(ring(5))[:3]
    mean = mean_pose(poses)
    assert np.linalg.det(mean[:, :3]) == pytest.approx(1)
    np.testing.assert_allclose(mean[:, :3].T @ mean[:, :3], np.eye(3), atol=1e-12)
    left = mean[:, 3] + 3 * mean[:, 2] - mean[:, 0]  # ahead, to the left
    assert mean[:, 0] @ (left - mean[:, 3]) < 0
    np.testing.assert_allclose(mean_pose(np.stack(row_of_cameras(3)))[:, :3], np.eye(3), atol=1e-12)


def test_names_sort_naturally(tmp_path):
    names = ["image10.png", "image2.png", "image1.png", "b/3.png", "12.png"]
    assert sorted(names, key=natural_key) == ["12.png", "b/3.png", "image1.png", "image2.png", "image10.png"]
    write_llff(tmp_path, row_of_cameras(11))
    capture = load_capture(tmp_path)
    assert capture.image_names[9:] == ["image10.png", "image11.png"]
    assert capture.images[:, 0, 0, 0].tolist() == list(range(11))
    assert (capture.test, len(capture.train)) == ([0, 8], 9)


def test_intrinsics_follow_the_image_axis_by_axis(tmp_path):
    write_llff(tmp_path, row_of_cameras(), hwf=(301, 403, 300), size=(101, 75))
    camera = load_capture(tmp_path, width=50).cameras[0]
    assert (camera.width, camera.height) == (50, 37)
    assert (camera.fx, camera.fy) == pytest.approx((300 * 50 / 403, 300 * 37 / 301))
    assert (camera.cx, camera.cy) == pytest.approx((25, 18.5))


def test_width_beyond_the_photo_keeps_it(tmp_path, caplog):
    write_llff(tmp_path, row_of_cameras())
    with caplog.at_level(logging.INFO, "tensorf"):
        assert load_capture(tmp_path, width=99).images.shape == (4, 8, 12, 3)
    assert "12 pixels wide" in caplog.text


@pytest.mark.parametrize(("width", "taken"), [(None, 24), (13, 13), (12, 12), (6, 6), (500, 24)])
def test_llff_takes_the_smallest_folder_that_is_wide_enough(tmp_path, width, taken):
    for folder, size in (("images_4", (6, 4)), ("images_2", (12, 8)), ("images", (24, 16))):
        write_llff(tmp_path, row_of_cameras(), hwf=(16, 24, 20), images=folder, size=size)
    assert load_capture(tmp_path, width=width).cameras[0].width == taken


# --- EXIF orientation: the pixels as stored, unless only the turned ones have the aspect of the intrinsics


def write_turned_photo(path, turn, size=(12, 8)):
    """A photo stored with its left half red and its right half blue, and an EXIF orientation (6: turn clockwise)."""
    exif = Image.Exif()
    exif[274] = turn
    photo = Image.new("RGB", size, (255, 0, 0))
    photo.paste((0, 0, 255), (size[0] // 2, 0, *size))
    photo.save(path, exif=exif)


def where_red_is(images):
    """Which half of all `images` (n, h, w, 3) is red."""
    halves = {"left": images[:, :, 0], "top": images[:, 0], "bottom": images[:, -1], "right": images[:, :, -1]}
    halves = {name: half for name, half in halves.items() if (half[..., 0] == 255).all()}
    assert len(halves) == 1
    return next(iter(halves))


@pytest.mark.parametrize(
    ("turn", "stored", "calibrated", "red"),
    [
        (6, (12, 8), (8, 12), "top"),
        (8, (12, 8), (8, 12), "bottom"),
        (6, (12, 8), (16, 24), "top"),  # calibrated at another size
        (6, (12, 8), (12, 8), "top"),  # once they are loaded, with their cameras
        (6, (8, 8), (8, 8), "top"),
        (8, (12, 8), (12, 8), "bottom"),
        (3, (12, 8), (12, 8), "right"),
        (2, (12, 8), (12, 8), "left"),  # a mirror image
    ],
)
def test_photos_are_turned_upright(tmp_path, turn, stored, calibrated, red):
    write_llff(tmp_path, row_of_cameras(), hwf=(calibrated[1], calibrated[0], 10))
    for i in range(4):
        write_turned_photo(tmp_path / "images" / f"image{i + 1}.png", turn, stored)
    capture = load_capture(tmp_path)
    width, height = stored if red in ("left", "right") else stored[::-1]
    assert capture.images.shape == (4, height, width, 3) and where_red_is(capture.images) == red
    camera = capture.cameras[0]
    assert (camera.width, camera.height, camera.cx, camera.cy) == (width, height, width / 2, height / 2)
    scale = max(stored) / max(calibrated)
    assert camera.fx == pytest.approx(10 * scale) and camera.fy == pytest.approx(10 * scale)


@pytest.mark.parametrize(
    ("turn", "place"), [(6, lambda u, v: (8 - v, u)), (8, lambda u, v: (v, 12 - u)), (3, lambda u, v: (12 - u, 8 - v))]
)
def test_cameras_turn_with_their_photos(tmp_path, turn, place):
    captures = []
    for name, stored in (("stored", 1), ("turned", turn)):
        root = tmp_path / name
        write_transforms(root, ring(), fl_x=10.0, fl_y=11.0, cx=5.0, cy=4.5, w=12.0, h=8.0)
        for i in range(4):
            write_turned_photo(root / "images" / f"{i}.png", stored)
        mask = np.full((8, 12), 255, np.uint8)
        mask[:2] = 0
        Image.fromarray(mask).save(root / "mask.png")
        edit_json(root / "transforms.json", lambda table: table["frames"][1].update(mask_path="mask.png"))
        captures.append(load_capture(root, space="unbounded"))
    stored, turned = captures
    for point in ([0.2, -0.3, 0.4], [-0.5, 0.1, 0.0]):
        for i in range(4):
            u, v = project(stored.cameras[i], moved(stored, point))
            assert project(turned.cameras[i], moved(turned, point)) == pytest.approx(place(u, v), abs=1e-3)
    quarters = {6: 3, 3: 2, 8: 1}[turn]  # of torch's, which are counter-clockwise
    assert torch.equal(turned.images, stored.images.rot90(quarters, (1, 2)))
    assert torch.equal(turned.masks, stored.masks.rot90(quarters, (1, 2)))
    assert (turned.cameras[0].width, turned.cameras[0].height) == tuple(turned.images.shape[2:0:-1])
    assert load_capture(tmp_path / "turned", width=6).images.shape[2] == 6


def test_a_few_photos_on_their_side_turn_nothing(tmp_path):
    write_llff(tmp_path, row_of_cameras(), hwf=(8, 12, 10))
    for i, turn in enumerate([6, 6, 1, 1]):
        write_turned_photo(tmp_path / "images" / f"image{i + 1}.png", turn)
    assert load_capture(tmp_path).images.shape == (4, 8, 12, 3)


@pytest.mark.parametrize(("turn", "calibrated"), [(1, "8x12"), (3, "8x12"), (6, "8x8")])
def test_photos_that_no_turn_makes_fit_are_refused(tmp_path, turn, calibrated):
    width, height = map(int, calibrated.split("x"))
    write_llff(tmp_path, row_of_cameras(), hwf=(height, width, 10))
    for i in range(4):
        write_turned_photo(tmp_path / "images" / f"image{i + 1}.png", turn)
    expect_error(tmp_path, "image1.png is 12x8", calibrated, "not rotated")


def test_turned_and_upright_photos_mix(tmp_path):
    write_llff(tmp_path, row_of_cameras(), hwf=(12, 8, 10), size=(8, 12))
    write_turned_photo(tmp_path / "images" / "image3.png", 6)
    capture = load_capture(tmp_path)
    assert capture.images.shape == (4, 12, 8, 3) and where_red_is(capture.images[2:3]) == "top"


def write_turned_folders(root, names):
    for folder, size in (("images", (24, 16)), ("images_2", (12, 8))):
        (root / folder).mkdir(exist_ok=True)
        for name in names:
            write_turned_photo(root / folder / name, 6, size)


@pytest.mark.parametrize("layout", ["llff", "colmap"])
def test_a_folder_is_chosen_by_the_width_after_turning(tmp_path, layout):
    if layout == "llff":
        write_llff(tmp_path, row_of_cameras(), hwf=(24, 16, 20))
        write_turned_folders(tmp_path, [f"image{i + 1}.png" for i in range(4)])
    else:
        write_colmap(tmp_path / "sparse", ".txt")
        path = tmp_path / "sparse" / "cameras.txt"
        path.write_text("7 PINHOLE 16 24 20 20 8 12\n")
        write_turned_folders(tmp_path, [f"view{i + 1}.png" for i in range(3)])
    # images_2 is stored 12 wide, but taken 8 wide.
    assert [load_capture(tmp_path, width=w).cameras[0].width for w in (8, 10, 16)] == [8, 10, 16]
    assert where_red_is(load_capture(tmp_path, width=8).images) == "top"


def test_transforms_may_be_for_the_turned_photos(tmp_path):
    write_transforms(tmp_path, ring(), fl_x=10.0, w=8.0, h=12.0)
    for i in range(4):
        write_turned_photo(tmp_path / "images" / f"{i}.png", 6)
    assert where_red_is(load_capture(tmp_path).images) == "top"
    edit_json(tmp_path / "transforms.json", lambda table: [table.pop(key) for key in ("w", "h")])
    capture = load_capture(tmp_path)  # no size: the intrinsics are for what is stored, which is then turned
    camera = capture.cameras[0]
    assert where_red_is(capture.images) == "top" and (camera.width, camera.cx, camera.cy) == (8, 4, 6)


def test_sixteen_bit_grey_photos(tmp_path):
    write_llff(tmp_path, row_of_cameras())
    for i in range(4):
        Image.fromarray(np.full((8, 12), 257 * 90, np.uint16)).save(tmp_path / "images" / f"image{i + 1}.png")
    assert load_capture(tmp_path).images.unique().tolist() == [90]


# --- distortion


@pytest.mark.parametrize("fisheye", [False, True])
def test_distortion_is_undone(fisheye):
    # A dot drawn where the distorted lens sees the direction (0.3, -0.2, 1) must move to where a pinhole sees it.
    lens = Lens(100, 110, 80, 60, 160, 120, (0.2, -0.05, 0.01, 0.02) + (() if fisheye else (0.03,)), fisheye)
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    if fisheye:
        theta = np.arctan(np.sqrt(r2))
        k1, k2, k3, k4 = lens.distortion
        ratio = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8) / np.sqrt(r2)
        seen = x * ratio, y * ratio
    else:
        k1, k2, p1, p2, k3 = lens.distortion
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        seen = (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    v, u = np.mgrid[:120, :160] + 0.5
    bump = np.exp(-((u - 100 * seen[0] - 80) ** 2 + (v - 110 * seen[1] - 60) ** 2) / 8)
    photo = np.repeat((255 * bump).astype(np.uint8)[..., None], 3, axis=2)
    weight = undistort(photo, lens)[..., 0].astype(float)
    found = (weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()
    assert found == pytest.approx((100 * x + 80, 110 * y + 60), abs=0.1)
    assert abs(100 * (seen[0] - x)) > 0.5  # the test would see distortion left alone


@pytest.mark.parametrize("fisheye", [False, True])
def test_a_fisheye_without_coefficients_is_no_pinhole(fisheye):
    lens = Lens(100.0, 110.0, 80.0, 60.0, 160, 120, (0.0,) * 4, fisheye)
    v, u = np.mgrid[:120, :160] + 0.5
    x, y = 0.3, -0.2
    ratio = np.arctan(np.hypot(x, y)) / np.hypot(x, y) if fisheye else 1.0
    bump = np.exp(-((u - 100 * x * ratio - 80) ** 2 + (v - 110 * y * ratio - 60) ** 2) / 8)
    weight = undistort(np.repeat((255 * bump).astype(np.uint8)[..., None], 3, axis=2), lens)[..., 0].astype(float)
    found = (weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()
    assert found == pytest.approx((100 * x + 80, 110 * y + 60), abs=0.1)
    share = np.array([[(100 * x * ratio + 80) / 160, (110 * y * ratio + 60) / 120]])
    assert _undistorted(share, lens)[0] == pytest.approx((x, y), abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_undistorting_a_symmetric_photo_about_its_centre_keeps_it_symmetric(axis):
    # Half a pixel's error of the centre moves what lies far out by 3 k1 (r / f)^2 / 2, at the corners half a pixel.
    v, u = np.mgrid[:100, :100] + 0.5 - 50
    rings = 127 + 100 * np.cos(np.hypot(u, v) / 3)  # at most 33 levels a pixel
    photo = np.repeat(rings.astype(np.uint8)[..., None], 3, axis=2)
    pixels = undistort(photo, Lens(60, 60, 50, 50, 100, 100, (-0.2, 0, 0, 0, 0))).astype(int)
    assert np.abs(pixels - np.flip(pixels, axis)).max() <= 4  # OpenCV's maps are in steps of 1/32 pixel


def test_undistorting_repeats_the_rim():
    white = np.full((120, 160, 3), 255, dtype=np.uint8)
    assert undistort(white, Lens(100, 100, 80, 60, 160, 120, (0.2, 0, 0, 0, 0))).min() == 255


@pytest.mark.parametrize(("k1", "told"), [(0.5, 1), (0.01, 0)])
def test_repeated_rims_are_told_once_however_many_lenses(tmp_path, caplog, k1, told):
    write_transforms(tmp_path, ring(4), fl_x=8.0, w=12.0, h=8.0)
    edit_json(
        tmp_path / "transforms.json", lambda t: [f.update(k1=k1, fl_x=8.0 + i / 9) for i, f in enumerate(t["frames"])]
    )
    load_capture(tmp_path)
    assert caplog.text.count("undistorting repeats the photos' rim") == told


# --- COLMAP


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_colmap_projects_a_known_point(tmp_path, suffix):
    write_colmap(tmp_path / "sparse" / "0", suffix)
    for i in range(3):
        write_image(tmp_path / "images" / f"view{i + 1}.png")
    capture = load_capture(tmp_path, space="box")
    # Camera 1 stands at x = 0.5 and looks along +y; (1, 5, -1) is 0.5 right of it, 1 below, 5 ahead.
    assert project(capture.cameras[1], moved(capture, (1.0, 5.0, -1.0))) == pytest.approx((7, 6.2), abs=1e-4)
    forward = load_capture(tmp_path)
    near = np.percentile(np.repeat([y for _, y, _ in POINTS.values()], 3), 0.5)
    assert forward.forward_facing and forward.near == pytest.approx(4 / 3)
    assert torch.linalg.det(forward.world_from_capture[:3, :3]).item() == pytest.approx((1 / (0.75 * near)) ** 3)


def test_colmap_takes_the_largest_model(tmp_path, caplog):
    write_colmap(tmp_path / "sparse" / "0", ".bin", count=3)
    write_colmap(tmp_path / "sparse" / "1", ".txt", count=5)
    for i in range(5):
        write_image(tmp_path / "images" / f"view{i + 1}.png")
    with caplog.at_level(logging.INFO, "tensorf"):
        assert len(load_capture(tmp_path).cameras) == 5
    assert "2 COLMAP models" in caplog.text and "0: 3, 1: 5" in caplog.text


def test_colmap_distortion_parameters_are_in_opencv_order(tmp_path):
    write_colmap(tmp_path / "sparse", ".txt", model=("SIMPLE_RADIAL", 2), parameters=(10, 6, 4, 0.1))
    for i in range(3):
        write_image(tmp_path / "images_2" / f"view{i + 1}.png", (6, 4))
    lens = read_colmap(tmp_path, None).views[0].lens
    assert lens == Lens(10, 10, 6, 4, 12, 8, (0.1, 0, 0, 0, 0))
    assert load_capture(tmp_path).cameras[0].fx == 5


@pytest.mark.parametrize(("level", "name"), [(255, "white"), (0, "black"), (128, None)])
def test_objects_on_a_pure_background_are_cut_out(tmp_path, level, name):
    write_transforms(tmp_path, ring(4))
    for path in (tmp_path / "images").iterdir():
        photo = np.full((8, 12, 3), level, np.uint8)
        photo[3:6, 4:9] = (200, 30, 40)
        Image.fromarray(photo).save(path)
    capture = load_capture(tmp_path)
    assert capture.space == ("box" if name else "unbounded") and capture.background == (name or "black")
    photo[:, :2] = (10, 90, 10)  # and something stands at the rim
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(photo).save(path)
    assert load_capture(tmp_path).space == "unbounded"


def write_alpha(path, share, level=0):
    """Noise, of which the upper `share` has this alpha."""
    photo = np.random.default_rng(0).integers(0, 255, (80, 120, 4), dtype=np.uint8)
    photo[..., 3] = 255
    photo[: round(80 * share), :, 3] = level
    Image.fromarray(photo).save(path)


@pytest.mark.parametrize(
    ("shares", "level", "cut_out"),
    [
        ([0.06] * 8, 0, True),
        ([0.06] * 8, 127, True),
        ([1.0] * 8, 128, False),  # see-through, but there
        ([0.03] * 8, 0, False),
        ([0, 1, *[0] * 6], 0, False),  # one photo of many, the first to train on
        ([1, 0, *[1] * 6], 0, True),
    ],
)
def test_objects_are_cut_out_where_most_photos_hide_some(tmp_path, shares, level, cut_out):
    write_transforms(tmp_path, ring(8), size=(120, 80), fl_x=100.0)
    for i, share in enumerate(shares):
        write_alpha(tmp_path / "images" / f"{i}.png", share, level)
    assert (load_capture(tmp_path).space == "box") is cut_out


def test_a_stray_pixel_is_no_cut_out(tmp_path):
    write_transforms(tmp_path, ring(8), size=(120, 80), fl_x=100.0)
    for i in range(8):
        photo = np.random.default_rng(i).integers(0, 255, (80, 120, 4), dtype=np.uint8)
        photo[..., 3] = 255
        photo[0, 0, 3] = 254 if i < 2 else 0
        Image.fromarray(photo).save(tmp_path / "images" / f"{i}.png")
    capture = load_capture(tmp_path)
    assert (capture.space, capture.background) == ("unbounded", "black")


# --- errors: one line that names the file


def test_folder_errors(tmp_path):
    expect_error(tmp_path / "nowhere", "nowhere", "not a folder")
    expect_error(tmp_path, tmp_path.name, "poses_bounds.npy", "transforms.json", "sparse/0")
    expect_error(tmp_path, "space=sideways", space="sideways")
    expect_error(tmp_path, "width=0", width=0)


@pytest.mark.parametrize(("count", "photos"), [(1, "1 photo;"), (2, "2 photos;")])
def test_few_photos_are_not_said_to_be_missing(tmp_path, count, photos):
    write_transforms(tmp_path, row_of_cameras(count))
    expect_error(tmp_path, f"transforms.json lists {photos} at least 3 are needed", "take more")
    (tmp_path / "images" / "0.png").unlink()
    expect_error(tmp_path, f"{count - 1} of {count} listed photos exist (images/0.png", "where the file says")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.__setitem__((2, 3), np.nan), ("poses_bounds.npy", "row 2", "NaN")),
        (lambda rows: rows.__setitem__((2, 3), 1e300), ("poses_bounds.npy", "row 2", "1e+300 units from the origin")),
        (lambda rows: rows.__setitem__((1, slice(0, 15, 5)), 3 * rows[1, 0:15:5]), ("row 1", "not a rotation")),
        (lambda rows: rows.__setitem__((1, slice(0, 15, 5)), -rows[1, 0:15:5]), ("row 1", "mirror")),
        (lambda rows: rows.__setitem__((3, 14), 0), ("poses_bounds.npy", "row 3", "focal")),
        (lambda rows: rows.__setitem__((1, 15), -1), ("poses_bounds.npy", "row 1", "near < far")),
        (lambda rows: rows.__setitem__((1, 15), 99), ("poses_bounds.npy", "row 1", "near < far")),
        (lambda rows: rows.__setitem__((slice(None), 3), 0), ("poses_bounds.npy", "same place")),
        (lambda rows: rows.__setitem__((slice(None), 9), 700), ("image1.png", "12x8", "700x8")),
    ],
)
def test_llff_errors(tmp_path, change, words):
    write_llff(tmp_path, row_of_cameras())
    rows = np.load(tmp_path / "poses_bounds.npy")
    change(rows)
    np.save(tmp_path / "poses_bounds.npy", rows)
    expect_error(tmp_path, *words)


def test_llff_file_errors(tmp_path):
    write_llff(tmp_path, row_of_cameras())
    path = tmp_path / "poses_bounds.npy"
    rows = np.load(path)
    np.save(path, rows[:, :15])
    expect_error(tmp_path, "poses_bounds.npy", "(4, 15)")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    expect_error(tmp_path, "poses_bounds.npy")
    path.write_bytes(b"")
    expect_error(tmp_path, "poses_bounds.npy")
    np.save(path, rows[:3])
    expect_error(tmp_path, "3 rows", "4 photos", "images")
    np.save(path, rows)
    (tmp_path / "images" / "image2.png").write_bytes(b"no image")
    expect_error(tmp_path, "image2.png", "cannot be read")
    write_image(tmp_path / "images" / "image2.png")
    cut = (tmp_path / "images" / "image3.png").read_bytes()[:-30]
    (tmp_path / "images" / "image3.png").write_bytes(cut)
    expect_error(tmp_path, "image3.png", "cannot be read")


def test_colmap_errors(tmp_path):
    folder = tmp_path / "sparse" / "0"
    write_colmap(folder, ".bin", model=("FOV", 7), parameters=(10,) * 5)
    for i in range(3):
        write_image(tmp_path / "images" / f"view{i + 1}.png")
    expect_error(tmp_path, "cameras.bin", "camera model FOV", "image_undistorter")
    data = (folder / "images.bin").read_bytes()
    (folder / "images.bin").write_bytes(data[: len(data) // 2])
    expect_error(tmp_path, "images.bin", "cut off")
    (folder / "images.bin").unlink()
    expect_error(tmp_path, str(folder), "images.bin")


def test_colmap_points_with_a_track_of_absurd_length(tmp_path):
    folder = tmp_path / "sparse" / "0"
    write_colmap(folder, ".bin")
    for i in range(3):
        write_image(tmp_path / "images" / f"view{i + 1}.png")
    data = bytearray((folder / "points3D.bin").read_bytes())
    data[51:59] = struct.pack("<Q", 2**63 - 1)  # after the count: id, x, y, z, colour, error
    (folder / "points3D.bin").write_bytes(data)
    expect_error(tmp_path, "points3D.bin", "damaged")


@pytest.mark.parametrize("focal", [1e-300, 0.05, 1e9])
def test_focal_lengths_that_no_camera_has(tmp_path, focal):
    write_colmap(tmp_path / "sparse" / "0", ".txt", parameters=(10, focal, 6, 4, 0, 0, 0, 0))
    for i in range(3):
        write_image(tmp_path / "images" / f"view{i + 1}.png")
    expect_error(tmp_path, "cameras.txt", "view1.png", "12x8", "pixels")


# --- real captures


@real
def test_fox(caplog):
    capture = load_capture(Path(REAL) / "fox", width=54)
    assert capture.images.shape == (50, 96, 54, 3) and not capture.forward_facing
    assert (len(capture.train), len(capture.test)) == (43, 7)
    assert sum("17 of 67" in r.getMessage() for r in caplog.records) == 1


@real
def test_can_agrees_between_llff_and_colmap(tmp_path):
    for name in ("images", "sparse"):
        (tmp_path / name).symlink_to(Path(REAL).resolve() / "can" / name)
    one, other = load_capture(Path(REAL) / "can", width=45), load_capture(tmp_path, width=45, outside=True)
    assert len(one.cameras) == 71 and one.image_names == other.image_names
    assert not one.forward_facing and not other.forward_facing
    turn = one.cameras[0].pose[:, :3] @ other.cameras[0].pose[:, :3].T
    for a, b in zip(one.cameras, other.cameras, strict=True):
        torch.testing.assert_close(a.pose, turn @ b.pose, atol=1e-3, rtol=0)
        assert a.fx == pytest.approx(b.fx, rel=0.05)
    with pytest.raises(UserError, match="space=unbounded"):
        load_capture(Path(REAL) / "can", width=45, space="ndc")


def test_an_array_whose_header_is_cut_off(tmp_path):
    write_llff(tmp_path, row_of_cameras(4))
    file = tmp_path / "poses_bounds.npy"
    file.write_bytes(file.read_bytes().replace(b"(4, 17)", b"(4, 17 "))
    with pytest.raises(UserError, match="poses_bounds.npy is not a plain NumPy array"):
        load_capture(tmp_path)


# --- captures made by hand


@pytest.fixture
def given(tmp_path):
    write_llff(tmp_path, row_of_cameras(5))
    return load_capture(tmp_path, check=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: dict(images=c.images.float() / 255), "images of float32 of .* have to be uint8"),
        (lambda c: dict(images=c.images.permute(0, 3, 1, 2)), "images of uint8 of"),
        (lambda c: dict(images=c.images[:4]), "4 images need as many cameras"),
        (lambda c: dict(image_names=c.image_names[:4]), "5 images need as many cameras and image_names, not 5 and 4"),
        (lambda c: dict(images=c.images[:, :4]), "camera 0 is for 12x8 pixels, but the images have 12x4"),
        (lambda c: dict(cameras=[*c.cameras[:4], c.cameras[4].resized(6, 4)]), "camera 4 is for 6x4 pixels"),
        (lambda c: dict(masks=torch.ones(5, 4, 12, dtype=torch.bool)), "masks of bool of"),
        (lambda c: dict(masks=torch.ones(5, 8, 12)), "masks of float32 of"),
        (lambda c: dict(train=[1, 5]), "train names view 5, but the 5 views are 0 to 4"),
        (lambda c: dict(test=[-1]), "test names view -1"),
        (lambda c: dict(train=[]), "train=.* at least one view"),
    ],
)
def test_parts_of_a_capture_that_do_not_fit_are_told(given, change, words):
    with pytest.raises(ValueError, match=words):
        replace(given, **change(given))


def test_a_capture_made_by_hand_may_have_masks_and_hold_nothing_out(given):
    made = replace(given, masks=torch.ones(5, 8, 12, dtype=torch.bool), train=list(range(5)), test=[])
    assert made.mask(4).all() and made != given and made in [given, made]


@pytest.mark.parametrize("space", ["ndc", "unbounded"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, np.float64])
def test_a_pose_of_the_captures_own_coordinates_becomes_a_camera(tmp_path, space, kind):
    poses = row_of_cameras(5)
    write_llff(tmp_path, poses)
    capture = load_capture(tmp_path, space=space, check=False)
    assert abs(torch.det(capture.world_from_capture[:3, :3]) - 1) > 0.1  # it scales
    pose = np.array(poses[3], dtype=kind) if kind is np.float64 else torch.tensor(poses[3], dtype=kind)
    camera = capture.camera_at(pose)
    assert torch.allclose(camera.pose, capture.cameras[3].pose, atol=1e-6)
    assert (camera.fx, camera.width, camera.height) == (10, 12, 8)
    square = np.concatenate([pose, [[0, 0, 0, 1]]])  # (4, 4)
    assert torch.equal(capture.camera_at(square, capture.cameras[0].resized(6, 4)).pose, camera.pose)
    assert capture.camera_at(pose, capture.cameras[0].resized(6, 4)).width == 6
    with pytest.raises(ValueError, match=r"has to be \(3, 4\) or \(4, 4\)"):
        capture.camera_at(pose[:2])
    with pytest.raises(ValueError, match="R is no rotation"):
        capture.camera_at(2 * pose)
    with pytest.raises(ValueError, match="Capture.camera_at"):
        capture.cameras[0].with_pose((capture.world_from_capture @ torch.as_tensor(square))[:3])
