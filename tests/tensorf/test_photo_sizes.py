"""Photos of one capture that differ in size: all become images of one size, and each camera sees what it saw."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_captures import edit_json, ring, row_of_cameras, write_colmap, write_llff, write_transforms

from tensorf.captures import load_capture
from tensorf.captures.images import common_size
from tensorf.captures.pictures import read_picture
from tensorf.captures.views import Lens
from tensorf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def write_gradient(path, size):
    """Red grows from left to right and green from top to bottom, in shares of the picture."""
    u, v = np.meshgrid((np.arange(size[0]) + 0.5) / size[0], (np.arange(size[1]) + 0.5) / size[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([255 * u, 255 * v, 0 * u], -1).round().astype(np.uint8)
    Image.fromarray(pixels).save(path)


def seen(image, column, row):
    """Red and green of an image at a place, as shares."""
    return (image[row, column, :2] / 255).tolist()


# Each writes a capture of seven photos, 120x80 pixels, focal length 100, and returns the paths of the photos.


def as_llff(root):
    write_llff(root, row_of_cameras(7), hwf=(80, 120, 100), size=(120, 80))
    return [root / "images" / f"image{i + 1}.png" for i in range(7)]


def as_transforms(root, **keys):
    write_transforms(root, ring(7), size=(120, 80), **(keys or {"fl_x": 100.0, "w": 120, "h": 80}))
    return [root / "images" / f"{i}.png" for i in range(7)]


def without_sizes(root):
    return as_transforms(root, fl_x=100.0)


def by_angle(root):
    return as_transforms(root, camera_angle_x=2 * np.arctan(0.6))


def as_colmap(root):
    write_colmap(root / "sparse" / "0", ".txt", count=7)
    (root / "sparse" / "0" / "cameras.txt").write_text("7 PINHOLE 120 80 100 100 60 40\n")
    return [root / "images" / f"view{i + 1}.png" for i in range(7)]


def as_nsvf(root):
    (root / "pose").mkdir()
    for i, pose in enumerate(row_of_cameras(7)):
        np.savetxt(root / "pose" / f"{i}.txt", np.concatenate([pose, [[0, 0, 0, 1]]]))
    (root / "intrinsics.txt").write_text("100 60 40 0\n0 0 0\n0\n1\n80 120\n")
    return [root / "rgb" / f"{i}.png" for i in range(7)]


LAYOUTS = [as_llff, as_transforms, without_sizes, by_angle, as_colmap, as_nsvf]
layouts = pytest.mark.parametrize("write", LAYOUTS, ids=lambda f: f.__name__)


@layouts
@pytest.mark.parametrize("odd", [(120, 81), (119, 80), (240, 160), (60, 40)])
def test_photos_of_another_size_are_resized(tmp_path, write, odd):
    for i, path in enumerate(write(tmp_path)):
        write_gradient(path, odd if i in (0, 3) else (120, 80))
    capture = load_capture(tmp_path)
    assert capture.images.shape == (7, 80, 120, 3)
    for image, camera in zip(capture.images.numpy(), capture.cameras, strict=True):
        assert seen(image, 29, 19) == pytest.approx((29.5 / 120, 19.5 / 80), abs=0.006)
        assert (camera.width, camera.height) == (120, 80)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((100, 100, 60, 40), rel=0.014)
    assert load_capture(tmp_path, width=60).images.shape == (7, 40, 60, 3)


def write_mixed(root, **odd):
    """Photos of 120x80 pixels but the fourth, whose frame says `odd`."""
    paths = as_transforms(root)
    edit_json(root / "transforms.json", lambda table: table["frames"][3].update(odd))
    for i, path in enumerate(paths):
        write_gradient(path, (odd["w"], odd["h"]) if i == 3 else (120, 80))


@pytest.mark.parametrize(
    ("size", "lens", "expected", "left_top"),
    [
        ((120, 120), (90, 95, 62, 50), (90, 95, 62, 30), (0, 20)),  # 20 rows are cut off above and below
        ((240, 200), (200, 200, 120, 100), (100, 100, 60, 40), (0, 10)),  # the same at half the size
        ((200, 80), (100, 100, 110, 41), (100, 100, 70, 41), (40, 0)),
    ],
)
def test_the_middle_of_photos_with_another_aspect_is_taken(tmp_path, size, lens, expected, left_top):
    fl_x, fl_y, cx, cy = lens
    write_mixed(tmp_path, w=size[0], h=size[1], fl_x=fl_x, fl_y=fl_y, cx=cx, cy=cy)
    capture = load_capture(tmp_path)
    camera, image = capture.cameras[3], capture.images[3].numpy()
    assert capture.images.shape == (7, 80, 120, 3)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(expected)
    # A pixel of the image and the ray through it, in the photo that was taken.
    u, v = 30.5, 20.5
    x, y = (u - camera.cx) / camera.fx * fl_x + cx, (v - camera.cy) / camera.fy * fl_y + cy
    assert seen(image, 30, 20) == pytest.approx((x / size[0], y / size[1]), abs=0.006)
    assert capture.cameras[2].cx == 60


@layouts
def test_portraits_among_landscapes_are_left_out(tmp_path, write, caplog):
    paths = write(tmp_path)
    for i, path in enumerate(paths):
        write_gradient(path, (80, 120) if i in (2, 5) else (120, 80))
    capture = load_capture(tmp_path)
    kept = [path.name for i, path in enumerate(paths) if i not in (2, 5)]
    assert [name.rpartition("/")[2] for name in capture.image_names] == kept
    assert (len(capture.cameras), capture.images.shape) == (5, (5, 80, 120, 3))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "2 of 7 photos are portraits among landscapes" in warnings[0]
    assert paths[2].name in warnings[0] and paths[5].name not in warnings[0]


def test_poses_of_photos_that_are_left_out_go_with_them(tmp_path):
    for i, path in enumerate(as_llff(tmp_path)):
        write_gradient(path, (80, 120) if i == 2 else (120, 80))
    x = [camera.position[0].item() for camera in load_capture(tmp_path).cameras]
    steps = np.diff(x) / (x[1] - x[0])
    assert steps == pytest.approx([1, 2, 1, 1, 1], rel=1e-4)  # two steps where the third photo stood


def test_the_orientation_that_most_have_stays(tmp_path, caplog):
    for i, path in enumerate(as_transforms(tmp_path, camera_angle_x=1.0)):
        write_gradient(path, (120, 80) if i < 2 else (80, 120 + i))  # of which no size is as common
    assert load_capture(tmp_path).images.shape == (5, 126, 80, 3)
    assert "2 of 7 photos are landscapes among portraits" in caplog.text


def test_too_few_of_one_orientation(tmp_path):
    paths = as_transforms(tmp_path, camera_angle_x=1.0)
    edit_json(tmp_path / "transforms.json", lambda table: table.update(frames=table["frames"][:4]))
    for i, path in enumerate(paths):
        write_gradient(path, (120, 80) if i % 2 else (80, 120))
    with pytest.raises(UserError, match="2 of 4 photos are .* among .* at least 3 of one orientation"):
        load_capture(tmp_path)


def test_photos_that_do_not_fit_their_intrinsics_are_refused(tmp_path):
    write_mixed(tmp_path, w=120, h=80)
    write_gradient(tmp_path / "images" / "3.png", (120, 100))
    with pytest.raises(UserError, match=r"3\.png is 120x100 but its intrinsics are for 120x80, another aspect"):
        load_capture(tmp_path)


def test_the_size_that_most_have():
    assert common_size([(4, 3), (8, 6), (8, 6)]) == (8, 6)
    assert common_size([(3, 4), (3, 4), (8, 6), (9, 6), (7, 6)]) == (9, 6)  # most are landscapes
    assert common_size([(5, 5)]) == (5, 5)


def test_a_part_of_an_image_has_the_same_rays():
    lens = Lens(10, 11, 6, 4, 12, 8).cropped(2, 1, 8, 6)
    assert lens == Lens(10, 11, 4, 3, 8, 6)


# --- large JPEGs


def blobs(size, seed=0):
    """Smooth colours, in which a shift of a pixel tells."""
    cells = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.BICUBIC)


@pytest.mark.parametrize(("size", "reduction", "stored"), [
    ((320, 240), 1, (320, 240)), ((320, 240), 3, (160, 120)), ((320, 240), 9, (40, 30)),
    ((321, 240), 9, (321, 240)), ((322, 240), 9, (161, 120)),
])  # fmt: skip
def test_jpegs_are_decoded_smaller_where_that_is_exact(tmp_path, size, reduction, stored):
    blobs(size).save(tmp_path / "a.jpg", quality=95)
    blobs(size).save(tmp_path / "a.png")
    small = read_picture(tmp_path / "a.jpg", white=True, upright=True, reduction=reduction)
    assert small.shape == (stored[1], stored[0], 3)
    truth = np.asarray(blobs(size).resize(stored, Image.BOX)).astype(int)
    assert np.abs(small - truth).mean() < 2
    whole = read_picture(tmp_path / "a.png", white=True, upright=True, reduction=reduction)
    np.testing.assert_array_equal(whole, np.asarray(blobs(size)))


def as_jpegs(root, **keys):
    paths = as_transforms(root, **{"fl_x": 400.0, "w": 480, "h": 320, **keys})
    edit_json(
        root / "transforms.json",
        lambda table: [f.update(file_path=f["file_path"].replace(".png", ".jpg")) for f in table["frames"]],
    )
    for i, path in enumerate(paths):
        blobs((480, 320), i).save(path.with_suffix(".jpg"), quality=95)


@pytest.mark.parametrize(
    ("width", "large", "decoded"),
    [
        (480, 480 * 320, 480),
        (300, 480 * 320, 480),
        (121, 480 * 320, 480),
        (120, 480 * 320, 240),
        (60, 480 * 320, 120),
        (60, 480 * 320 + 1, 480),
    ],
)
def test_large_photos_are_decoded_at_twice_the_size_that_is_asked(tmp_path, monkeypatch, width, large, decoded):
    monkeypatch.setattr("tensorf.captures.images._LARGE", large)
    as_jpegs(tmp_path)
    sizes = set()

    def reading(*args, **options):
        pixels = read_picture(*args, **options)
        sizes.add(pixels.shape[1])
        return pixels

    monkeypatch.setattr("tensorf.captures.images.read_picture", reading)
    capture = load_capture(tmp_path, width=width, check=False)
    assert sizes == {decoded} and capture.cameras[0].fx == pytest.approx(400 * width / 480)
    truth = np.stack(
        [np.asarray(blobs((480, 320), i).resize(capture.images.shape[2:0:-1], Image.BOX)) for i in range(7)]
    )
    assert np.abs(capture.images.numpy() - truth.astype(int)).mean() < 2


def test_lenses_are_undone_in_full_detail(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorf.captures.images._LARGE", 1)
    as_jpegs(tmp_path, k1=0.01)
    reductions = []
    monkeypatch.setattr(
        "tensorf.captures.images.read_picture",
        lambda *args, reduction, **options: reductions.append(reduction) or read_picture(*args, **options),
    )
    load_capture(tmp_path, width=60, check=False)
    assert set(reductions) == {1}


# --- progress


@pytest.mark.parametrize(("count", "show", "bars"), [(21, True, 1), (20, True, 0), (21, False, 0)])
def test_one_bar_counts_many_photos(tmp_path, capsys, count, show, bars):
    write_llff(tmp_path, row_of_cameras(count))
    load_capture(tmp_path, check=False, show_progress=show)
    out, err = capsys.readouterr()
    assert out == "" and err.count(f"{count}/{count}") == bars
    assert ("photos:" in err) if bars else err == ""


@pytest.mark.parametrize("silenced", [False, True])
def test_bars_can_be_silenced_by_the_environment(tmp_path, silenced):
    write_llff(tmp_path, row_of_cameras(21))
    code = f"from tensorf import load_capture; load_capture({str(tmp_path)!r}, check=False, show_progress=True)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TQDM_")}
    environment |= {"TQDM_DISABLE": "1"} if silenced else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    assert ("photos:" in done.stderr) != silenced
