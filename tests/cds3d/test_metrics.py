"""Figures by hand."""

import math

import pytest
import torch

from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim
from cds3d.metrics.truth import TrueEdit, edit_figures


def grey(value, height=4, width=6):
    return torch.full((height, width, 3), float(value))


def test_psnr_by_hand():
    assert psnr(grey(0.5), grey(0.6)) == pytest.approx(20, abs=1e-4)  # MSE 0.01: -10 log10(0.01) = 20
    half = grey(0.5)
    half[:2] = 0.7  # half of the pixels differ by 0.2: MSE 0.02 -> 16.9897
    assert psnr(half, grey(0.5)) == pytest.approx(-10 * math.log10(0.02), abs=1e-4)


def test_psnr_within_a_mask():
    image, mask = grey(0.5), torch.zeros(4, 6, dtype=torch.bool)
    image[:2], mask[:2] = 0.6, True
    assert psnr(image, grey(0.5), mask) == pytest.approx(20, abs=1e-4)
    assert psnr(image, grey(0.5), ~mask) == 100
    assert psnr(image, grey(0.5)) == pytest.approx(-10 * math.log10(0.005), abs=1e-4)


def test_psnr_of_equal_images_and_of_no_pixels():
    assert psnr(grey(0.3), grey(0.3)) == pytest.approx(100)
    assert math.isnan(psnr(grey(0.3), grey(0.4), torch.zeros(4, 6, dtype=torch.bool)))


def test_ssim_of_equal_images_is_one_and_falls_with_noise():
    torch.manual_seed(0)
    image = torch.rand(24, 20, 3)
    noise = torch.randn_like(image)
    values = [ssim(image, image + s * noise) for s in (0.0, 0.05, 0.5)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[0] > values[1] > values[2]
    assert ssim(image, image + 0.5 * noise) == pytest.approx(ssim(image + 0.5 * noise, image), abs=1e-5)


def test_ssim_of_constant_images_by_hand():
    # No variance: only the luminance term is left, (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2.
    expected = (2 * 0.5 * 0.8 + 1e-4) / (0.25 + 0.64 + 1e-4)
    assert ssim(grey(0.5, 16, 16), grey(0.8, 16, 16)) == pytest.approx(expected, abs=1e-3)


def test_edit_figures_by_hand():
    # Camera 1: the true edit changes the upper half from 0.5 to 0.6. The source is 0.1 away there (20 dB), the edit
    # 0.01 (40 dB): a gain of 20. Below, the edit strays 0.1 from the source: 20 dB kept.
    changed = torch.zeros(4, 6, dtype=torch.bool)
    changed[:2] = True
    truth, edit = grey(0.5), grey(0.6)
    truth[:2], edit[:2] = 0.6, 0.61
    # Camera 2 does not see the change: it counts for what is kept only, 0.01 away everywhere (40 dB).
    unseen = TrueEdit(grey(0.5), torch.zeros(4, 6, dtype=torch.bool))
    figures = edit_figures([grey(0.5)] * 2, [edit, grey(0.51)], [TrueEdit(truth, changed), unseen])
    assert figures.keys() == {"edit_truth_psnr_db", "edit_gain_db", "kept_psnr_db"}
    assert figures["edit_truth_psnr_db"] == pytest.approx(40, abs=1e-2)
    assert figures["edit_gain_db"] == pytest.approx(20, abs=1e-2)
    assert figures["kept_psnr_db"] == pytest.approx(30, abs=1e-2)


def test_edit_figures_where_no_camera_sees_the_change():
    unseen = TrueEdit(grey(0.5), torch.zeros(4, 6, dtype=torch.bool))
    figures = edit_figures([grey(0.5)], [grey(0.6)], [unseen])
    assert figures.keys() == {"kept_psnr_db"}  # nan is left out: JSON has none
    assert figures["kept_psnr_db"] == pytest.approx(20, abs=1e-4)


def test_edit_figures_of_an_edit_that_does_nothing():
    changed = torch.ones(4, 6, dtype=torch.bool)
    changed[3] = False
    figures = edit_figures([grey(0.5)], [grey(0.5)], [TrueEdit(grey(0.7), changed)])
    assert figures["edit_gain_db"] == 0
    assert figures["kept_psnr_db"] == pytest.approx(100)
