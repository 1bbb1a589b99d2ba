"""Lenses whose distortion turns back within the picture: what no photo shows does not count."""

import numpy as np
import pytest
import torch
from tiny_captures import expect_error, ring, write_image, write_transforms

from tensorf.captures import load_capture
from tensorf.captures.matching import _undistorted
from tensorf.captures.undistortion import folds, shown
from tensorf.captures.views import Lens

# r (1 + k r^2) turns back at r = 1 / sqrt(-3 k), 1.054 here; the corners of 160x120 pixels lie 100 pixels off.
FOLDING = Lens(80.0, 80.0, 80.0, 60.0, 160, 120, (-0.3, 0, 0, 0, 0))


def distance(lens):
    """(height, width): of each pixel's centre from the optical axis at depth 1."""
    v, u = np.mgrid[: lens.height, : lens.width] + 0.5
    return np.hypot((u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy)


def test_beyond_the_place_where_a_lens_turns_back_no_photo_shows_anything():
    assert folds(FOLDING)
    seen, away = shown(FOLDING), distance(FOLDING)
    assert not seen[away > 1 / np.sqrt(0.9)].any()
    # What is left out before it is where a pixel of the photo becomes ten: 1 + 3 k r^2 < 0.1.
    assert seen[away < 0.998].all() and 0.02 < 1 - seen.mean() < 0.15


@pytest.mark.parametrize(
    ("distortion", "fisheye", "turns"),
    [
        ((-0.2, 0, 0, 0, 0), False, False),  # at 1.29, beyond the corners' 1.25
        ((-0.3, 0.1, 0, 0, 0), False, False),  # the second term bends it back in time
        ((0.1, -0.2, 0, 0, 0), False, True),
        ((0, 0, 0, 0, 0, 0.5, 0, 0), False, False),  # r / (1 + 0.5 r^2) turns at 1.41
        ((0, 0, 0, 0, 0, 1.5, 0, 0), False, True),  # at 0.82
        ((0, 0, 0, 0, 0, -0.8, 0, 0), False, True),  # a pole at 1.12
        ((0, 0, 0, 0), True, False),
        ((-0.3, 0, 0, 0), True, False),  # at 1.05 radians, and the corners' are 0.9
        ((-0.6, 0, 0, 0), True, True),  # at 0.75
        ((), False, False),
    ],
)
def test_which_lenses_turn_back(distortion, fisheye, turns):
    assert folds(Lens(80.0, 80.0, 80.0, 60.0, 160, 120, distortion, fisheye)) == turns


@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize("masked", [False, True])
def test_such_pixels_are_hidden_and_told(tmp_path, caplog, width, masked):
    write_transforms(tmp_path, ring(4), fl_x=80.0, w=160.0, h=120.0, k1=-0.3, size=(160, 120))
    if masked:
        table = (tmp_path / "transforms.json").read_text()
        table = table.replace('"file_path": "images/0.png"', '"file_path": "images/0.png", "mask_path": "mask.png"')
        (tmp_path / "transforms.json").write_text(table)
        write_image(tmp_path / "mask.png", (160, 120), (255, 255, 255))
    capture = load_capture(tmp_path, width=width)
    hidden = ~capture.masks
    assert 0.05 < hidden.float().mean() < 0.15 and hidden[:, 0, 0].all() and capture.masks[:, 60 // 2, 80 // 2].all()
    assert torch.equal(capture.masks[0], capture.masks[1])
    (line,) = [r.getMessage() for r in caplog.records if "turns back" in r.getMessage()]
    share = float(line.split("%")[0].rsplit(" ", 1)[1])
    assert str(tmp_path) in line and share == pytest.approx(100 * hidden.float().mean(), abs=1)


def test_other_lenses_hide_nothing(tmp_path, caplog):
    write_transforms(tmp_path, ring(4), fl_x=80.0, w=160.0, h=120.0, k1=-0.2, size=(160, 120))
    assert load_capture(tmp_path).masks is None and "turns back" not in caplog.text


def test_a_photo_of_which_nothing_is_left_is_told(tmp_path):
    write_transforms(tmp_path, ring(4), fl_x=8.0, w=12.0, h=8.0, cx=-30.0, k1=-0.3)
    expect_error(tmp_path, "0.png", "turns back", "calibrate again")


@pytest.mark.parametrize("fisheye", [False, True])
def test_points_of_wide_lenses_are_undistorted_to_the_end(fisheye):
    """OpenCV's usual five steps leave this one's rim several pixels off."""
    lens = Lens(264.0, 264.0, 240.0, 135.0, 480, 270, (-0.2, 0, 0, 0) if fisheye else (-0.2, 0, 0, 0, 0), fisheye)
    x = np.linspace(0, 1.05 if not fisheye else 1.0, 50)
    along = np.arctan(x) if fisheye else x
    places = np.stack([(264 * along * (1 - 0.2 * along**2) + 240) / 480, np.full(50, 0.5)], 1)
    np.testing.assert_allclose(_undistorted(places, lens)[:, 0], x, atol=1e-3)


def test_points_that_no_direction_leads_to_are_none():
    # The curve's highest value is 0.703: pixel 80 + 56.
    places = np.array([[(80 + 50) / 160, 0.5], [(80 + 60) / 160, 0.5]])
    found = _undistorted(places, FOLDING)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
