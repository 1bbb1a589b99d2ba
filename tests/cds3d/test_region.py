"""Where an edit is at work."""

import pytest
import torch

from cds3d.subjects.region import CELL, VISITS, EditedRegion


def square(height=37, width=50, size=1.0):
    gradient = torch.zeros(height, width, 3)
    gradient[8:24, 12:36] = size
    return gradient


def test_a_square_of_gradient_is_found_at_odd_sizes():
    region = EditedRegion(0.6)
    region.add(5, square())
    weight = region.weight(5, 37, 50)
    assert weight.shape == (37, 50)
    assert (weight[12:20, 16:32] == 1).all()
    assert weight[:, :4].max() == weight[32:].max() == weight[:, 44:].max() == 0
    assert ((weight > 0) & (weight < 1)).any()  # no hard edge


def test_noise_averages_out_while_what_lasts_is_kept():
    torch.manual_seed(0)
    region, first = EditedRegion(0.6), None
    for visit in range(VISITS):
        noise = 0.5 * torch.randn(10, 13, 3).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:37, :50]
        region.add(0, square() + noise)
        wrong = (region.weight(0, 37, 50) - square()[..., 0]).abs().mean()
        first = wrong if visit == 0 else first
    assert wrong < first


def test_a_camera_is_settled_after_its_first_visits_and_others_are_not():
    region = EditedRegion(0.5)
    for _ in range(VISITS):
        region.add(0, square())
    settled, usual = region.weight(0, 37, 50), region.usual
    region.add(0, torch.ones(37, 50, 3))
    assert torch.equal(region.weight(0, 37, 50), settled) and region.usual == usual
    region.add(1, square(size=3.0))
    assert region.usual == pytest.approx(2 * usual)


def test_state_goes_through_a_file(tmp_path):
    region = EditedRegion(0.6)
    region.add(0, square())
    region.add(3, square(size=2.0))
    torch.save(region.state(), tmp_path / "state.pt")
    again = EditedRegion(0.6)
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for r in (region, again):
        r.add(3, torch.ones(37, 50, 3))
    assert again.usual == region.usual
    assert all(torch.equal(again.weight(k, 37, 50), region.weight(k, 37, 50)) for k in (0, 3))
