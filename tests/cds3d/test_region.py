"""Where an edit is at work."""

import pytest
import torch

from cds3d.subjects.region import CELL, VISITS, EditedRegion


def square(height=37, width=50, size=1.0, grown=0):
    gradient = torch.zeros(height, width, 3)
    gradient[8 - grown : 24 + grown, 12 - grown : 36 + grown] = size
    return gradient


def picture():
    """A red square on brown, with a little texture."""
    torch.manual_seed(1)
    colors = torch.where(square().bool(), torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.5, 0.4, 0.2]))
    return colors + 0.02 * torch.randn(37, 50, 3)


def test_a_square_of_gradient_is_found_at_odd_sizes():
    region = EditedRegion(0.6)
    region.add(5, square())
    weight = region.weight(5, picture())
    assert weight.shape == (37, 50) and weight.min() == 0 and weight.max() == 1
    assert ((weight > 0.5) == square()[..., 0].bool()).float().mean() > 0.99


@pytest.mark.parametrize("grown", [-3, 3])
def test_a_blob_is_drawn_to_the_edges_of_the_picture(grown):
    """Gradients reach beyond the subject, or not to its edge: the picture tells where it ends."""
    region, true = EditedRegion(0.6), square()[..., 0].bool()
    region.add(0, square(grown=grown))
    blob = square(grown=grown)[..., 0].bool()
    found, plain = (region.weight(0, p) > 0.5 for p in (picture(), torch.full((37, 50, 3), 0.5)))
    wrong = [(mask != true).float().mean() for mask in (found, plain, blob)]
    assert wrong[0] < 0.6 * wrong[1] and wrong[0] < 0.6 * wrong[2]


def test_without_a_gate_and_before_a_visit_everything_is_inside():
    region = EditedRegion(0.0)
    region.add(0, square())
    assert (region.weight(0, picture()) == 1).all() and region.state() == {"usual": 0.0, "means": {}}
    assert (EditedRegion(0.6).weight(0, picture()) == 1).all()


def test_noise_averages_out_while_what_lasts_is_kept():
    torch.manual_seed(0)
    region, first = EditedRegion(0.6), None
    for visit in range(VISITS):
        noise = 0.5 * torch.randn(10, 13, 3).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:37, :50]
        region.add(0, square() + noise)
        wrong = (region.weight(0, picture()) - square()[..., 0]).abs().mean()
        first = wrong if visit == 0 else first
    assert wrong < first


def test_a_camera_is_settled_after_its_first_visits_and_others_are_not():
    region = EditedRegion(0.5)
    for _ in range(VISITS):
        region.add(0, square())
    settled, usual = region.weight(0, picture()), region.usual
    region.add(0, torch.ones(37, 50, 3))
    assert torch.equal(region.weight(0, picture()), settled) and region.usual == usual
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
    assert all(torch.equal(again.weight(k, picture()), region.weight(k, picture())) for k in (0, 3))
