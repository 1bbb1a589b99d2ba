"""Where an edit is at work."""

import pytest
import torch
from defaults import region_config

from cds3d.subjects.region import EditedRegion, RegionConfig

CELL, VISITS = 4, 3  # pixels, as in edit=field at its own width; visits, likewise


def edited_region(threshold, width=50):
    return EditedRegion(region_config(threshold, width))


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
    region = edited_region(0.6)
    region.add(5, square(), picture())
    weight = region.weight(5, picture())
    assert weight.shape == (37, 50) and weight.min() == 0 and weight.max() == 1
    assert ((weight > 0.5) == square()[..., 0].bool()).float().mean() > 0.99


@pytest.mark.parametrize(("grown", "threshold"), [(-2, 0.5), (3, 0.75)])
def test_a_blob_is_drawn_to_the_edges_of_the_picture(grown, threshold):
    """Gradients reach beyond the subject, or not to its edge: the picture tells where it ends."""
    true, blob = square()[..., 0].bool(), square(grown=grown)[..., 0].bool()
    found = found_in(square(grown=grown), picture(), threshold)
    plain = found_in(square(grown=grown), torch.full((37, 50, 3), 0.5), threshold)
    wrong = [(mask != true).float().mean() for mask in (found, plain, blob)]
    assert wrong[0] < 0.6 * wrong[1] and wrong[0] < 0.6 * wrong[2]


def found_in(gradient, colors, threshold=0.6):
    region = edited_region(threshold, gradient.shape[1])
    region.add(0, gradient, colors)
    return region.weight(0, colors) > 0.5


def test_what_looks_alike_and_is_near_belongs_to_it_and_what_looks_else_does_not():
    near, far, inner, body = (torch.zeros(160, 192, dtype=torch.bool) for _ in range(4))
    body[20:100, 16:96] = True
    near[40:80, 100:106] = True  # beside the square, as a handle is, with little gradient
    far[130:160, 150:192] = True  # as red, but somewhere else
    inner[44:76, 40:72] = True  # in the middle of the square, of another colour, with little gradient
    gradient, colors = torch.zeros(160, 192, 3), torch.full((160, 192, 3), 0.4)
    gradient[body & ~inner], gradient[near | inner] = 1.0, 0.1
    colors[body | near | far] = torch.tensor([0.8, 0.1, 0.1])
    colors[inner] = torch.tensor([0.9, 0.8, 0.1])
    found = found_in(gradient, colors)
    assert found[near].float().mean() > 0.95 and found[body & ~inner].float().mean() > 0.95
    assert not found[far].any() and found[inner].float().mean() < 0.1
    outside = ~(body | near | far)
    assert found[outside].float().mean() < 0.02


def test_specks_are_left_out():
    gradient, red = torch.zeros(160, 192, 3), torch.zeros(160, 192, dtype=torch.bool)
    gradient[8:68, 12:72] = 1.0
    red[8:68, 12:72] = True
    red[74:76, 30:32] = True  # near, but two pixels wide
    red[74:82, 50:58] = True  # eight
    found = found_in(gradient, torch.where(red[..., None], torch.tensor([0.8, 0.1, 0.1]), torch.tensor(0.4)))
    assert not found[72:78, 28:34].any() and found[75:81, 51:57].all() and found[10:66, 14:70].all()


@pytest.mark.parametrize("size", [24, 60, 100])
def test_a_subject_of_the_backgrounds_colors_is_found_by_its_gradient(size):
    gradient = torch.full((189, 252, 3), 0.05)
    gradient[40 : 40 + size, 60 : 60 + size] = 1.0
    found = found_in(gradient, torch.full((189, 252, 3), 0.5), threshold=0.75)
    assert found[44 : 36 + size, 64 : 56 + size].float().mean() > 0.95
    assert found.float().mean() < 2.5 * size**2 / (189 * 252)


@pytest.mark.parametrize("size", [12, 16, 20, 24])
def test_a_small_subject_is_near_itself(size):
    gradient = torch.full((189, 252, 3), 0.05)
    colors = torch.full((189, 252, 3), 0.4)
    gradient[40 : 40 + size, 60 : 60 + size] = 1.0
    colors[40 : 40 + size, 60 : 60 + size] = torch.tensor([0.8, 0.1, 0.1])
    found = found_in(gradient, colors, threshold=0.75)
    assert found[42 : 38 + size, 62 : 58 + size].float().mean() > 0.9


def test_colors_are_those_of_all_views():
    # A view in which the gradient is weak on the right half of the square: other views tell that it belongs to it.
    half = square()
    half[:, 24:] *= 0.1
    region = edited_region(0.6)
    region.add(0, half, picture())
    assert (region.weight(0, picture()) > 0.5)[10:22, 26:34].float().mean() < 0.2
    for camera in range(1, 6):
        region.add(camera, square(), picture())
    assert (region.weight(0, picture()) > 0.5)[10:22, 26:34].float().mean() > 0.9


def test_without_a_threshold_and_before_a_visit_everything_is_inside():
    region = edited_region(0.0)
    region.add(0, square(), picture())
    assert (region.weight(0, picture()) == 1).all() and region.state() == edited_region(0.6).state()
    assert (edited_region(0.6).weight(0, picture()) == 1).all()


def test_noise_averages_out_while_what_lasts_is_kept():
    torch.manual_seed(0)
    region, first = edited_region(0.6), None
    for visit in range(VISITS):
        noise = 0.8 * torch.randn(10, 13, 3).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:37, :50]
        region.add(0, square() + noise, picture())
        wrong = (region.weight(0, picture()) - square()[..., 0]).abs().mean()
        first = wrong if visit == 0 else first
    assert wrong < first


def test_every_visit_counts_alike():
    region, plain = edited_region(0.6), torch.full((37, 50, 3), 0.5)
    visits = [square(size=size) for size in (3.0, 6.0, 0.0)]
    for gradient in visits:
        region.add(0, gradient, plain)
    once = edited_region(0.6)
    once.add(0, square(size=3.0), plain)  # their mean
    found, expected = ([float(r.strong_gradient), float(r.gradient_rms)] for r in (region, once))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_camera_is_settled_after_its_first_visits_and_others_are_not():
    region = edited_region(0.5)
    for _ in range(VISITS):
        region.add(0, square(), picture())
    settled, usual = region.weight(0, picture()), region.gradient_rms
    region.add(0, torch.ones(37, 50, 3), picture())
    assert torch.equal(region.weight(0, picture()), settled) and region.gradient_rms == usual
    region.add(1, square(size=3.0), picture())
    assert region.gradient_rms == pytest.approx(2 * usual)


def test_state_goes_through_a_file(tmp_path):
    region = edited_region(0.6)
    region.add(0, square(), picture())
    region.add(3, square(size=2.0), picture())
    torch.save(region.state(), tmp_path / "state.pt")
    again = edited_region(0.6)
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    for r in (region, again):
        r.add(3, torch.ones(37, 50, 3), picture())
    assert again.gradient_rms == region.gradient_rms
    assert all(torch.equal(again.weight(k, picture()), region.weight(k, picture())) for k in (0, 3))


def test_a_state_with_numbers_that_are_not_finite_is_refused():
    region = edited_region(0.6)
    region.add(0, square(), picture())
    for part in (0, 2):  # the gradient, the picture
        state = {0: [value.clone() if torch.is_tensor(value) else value for value in region.state()[0]]}
        state[0][part].view(-1)[5] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            edited_region(0.6).load_state(state, torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lengths_are_shares_of_the_width(size):
    """The same picture at another size gets the same mask."""
    large = [t.repeat_interleave(size, 0).repeat_interleave(size, 1) for t in (square(40, 60), square(40, 60))]
    region = EditedRegion(region_config(0.6, 60))
    colors = torch.where(large[0].bool(), torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.5, 0.4, 0.2]))
    region.add(0, large[0], colors)
    found = region.weight(0, colors)[size // 2 :: size, size // 2 :: size] > 0.5
    assert (found == square(40, 60)[..., 0].bool()).float().mean() > 0.98


@pytest.mark.parametrize(
    "wrong",
    [
        dict(mask_threshold=-0.1),
        dict(visits=0),
        dict(filter_epsilon=0.0),
        dict(color_bins=1),
        dict(color_bins=65),
        dict(color_weight=1.5),
        dict(low=0.7),
        dict(color_prior=0.0),
        dict(speck=-1.0),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RegionConfig(**{**vars(region_config(0.6)), **wrong})
