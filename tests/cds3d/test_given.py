"""Regions that a user gives: boxes, balls, masks, words; what views see of them; crops around them."""

import logging
from dataclasses import replace

import pytest
import torch
from defaults import edit_config, region_config, run
from fakes import PROMPTS, FixedGradient, LinearPrior

from cds3d.editor import Editor
from cds3d.guidance.prior import Prediction
from cds3d.options import build, load_config
from cds3d.subjects.field import FieldRates, FieldViews, Preservation
from cds3d.subjects.given import _crop, in_ball, in_box, point_at, seen_share, zoomed
from cds3d.subjects.local import LocalPair, LocalViews, LookPair
from cds3d.subjects.region import EditedRegion
from cds3d.subjects.volume import VolumeConfig, edited_volume
from cds3d.where import _over_picture, as_caption, word_masks
from tensorf.errors import UserError
from tensorf.local import LocalField, cell_centers


def world(field):
    return field.space.world(cell_centers(field.occupancy.shape, field.device))


def test_a_box_holds_the_cells_between_its_corners(field):
    low, high = torch.tensor([-0.3, -0.4, 1.5]), torch.tensor([0.2, 0.5, 3.0])
    region = in_box(field, low, high)
    expected = [all(a < x < b for x, a, b in zip(p, low, high)) for p in world(field)]
    assert region.shape == field.occupancy.shape and 0 < region.sum() < region.numel()
    assert region.flatten().tolist() == expected


def test_a_ball_holds_the_cells_within_its_radius(field):
    middle = torch.tensor([0.1, -0.1, 2.0])
    region = in_ball(field, middle, 0.5)
    expected = [(p - middle).square().sum() <= 0.25 for p in world(field)]
    assert region.flatten().tolist() == expected and region.any()


def test_a_click_finds_the_surface_under_it(field, cameras):
    camera = cameras[0]
    rendered = field.render(camera)
    rendered["opacity"][:] = 1.0
    point = point_at(_Rendering(field, rendered, camera), camera, 20.6, 5.2)
    local = (point - camera.position) @ camera.pose[:, :3]
    assert local[0] / local[2] * camera.fx + camera.cx == pytest.approx(20.5, abs=1e-3)  # the middle of the pixel
    assert local[1] / local[2] * camera.fy + camera.cy == pytest.approx(5.5, abs=1e-3)
    depth = (point - field.space.reference[:, 3]) @ field.space.reference[:, 2]
    assert depth == pytest.approx(float(rendered["depth"][5, 20]), rel=1e-4)
    rendered["opacity"][5, 20] = 0.4
    assert point_at(_Rendering(field, rendered, camera), camera, 20.6, 5.2) is None


class _Rendering:
    """A field that shows what it is told to, to the pixel that a camera of one pixel asks for."""

    def __init__(self, field, rendered, camera):
        self.space, self._rendered, self._camera = field.space, rendered, camera

    def render(self, pixel):
        assert (pixel.width, pixel.height) == (1, 1) and torch.equal(pixel.pose, self._camera.pose)
        column, row = (round(a - b) for a, b in ((self._camera.cx, pixel.cx), (self._camera.cy, pixel.cy)))
        return {key: picture[row : row + 1, column : column + 1] for key, picture in self._rendered.items()}


def test_what_a_view_sees_of_a_region(field, cameras):
    view = field.view(cameras[0])
    x, weight, ray = view.surfaces(field)
    everywhere = torch.ones_like(field.occupancy)
    total = torch.zeros(24 * 32).index_add(0, ray, weight).clamp(0, 1)
    torch.testing.assert_close(seen_share(field, view, everywhere).flatten(), total)
    assert not seen_share(field, view, ~everywhere).any()
    left = torch.zeros_like(everywhere)
    left[:, :, : everywhere.shape[2] // 2] = True
    share = seen_share(field, view, left)
    assert share[:, :10].mean() > 0.8 * total.view(24, 32)[:, :10].mean() and share[:, -10:].mean() < 0.1


def test_crops_show_the_region_as_large_as_asked(field, cameras):
    middle = point_at(_solid(field, cameras[0]), cameras[0], 18, 12)
    region = in_ball(field, middle, 0.12 * float((middle - cameras[0].position).norm()))
    field.occupancy = torch.ones_like(field.occupancy)
    crops = zoomed(cameras, field, region, 2.0)
    assert len(crops) == 3
    points = world(field)[region.flatten()]
    for crop, camera in zip(crops, cameras, strict=True):
        assert (crop.width, crop.height) == (32, 24) and torch.equal(crop.pose, camera.pose)
        assert crop.fx / camera.fx == pytest.approx(crop.fy / camera.fy) and crop.fx > 1.2 * camera.fx
        local = (points - crop.position) @ crop.pose[:, :3]
        u, v = local[:, 0] / local[:, 2] * crop.fx + crop.cx, local[:, 1] / local[:, 2] * crop.fy + crop.cy
        q = torch.tensor([0.02, 0.98])
        spans = (u.quantile(q).diff() / 32).item(), (v.quantile(q).diff() / 24).item()
        assert max(spans) == pytest.approx(0.5, abs=0.02)
        assert u.quantile(0.02) >= 0 and u.quantile(0.98) <= 32 and v.quantile(0.02) >= 0 and v.quantile(0.98) <= 24
        a, b = crop.pixel_rays()[1], camera.pixel_rays()[1]  # it looks at a part of the picture
        assert (a.amin(0) >= b.amin(0) - 0.01).all() and (a.amax(0) <= b.amax(0) + 0.01).all()
    assert zoomed(cameras, field, torch.ones_like(region), 2.0) == cameras  # as large as the picture already
    aside = replace(cameras[0], cx=cameras[0].cx + 100)
    assert len(zoomed([aside, cameras[1]], field, region, 2.0)) == 1  # one that does not see it is left out


def test_crops_of_next_to_nothing_still_show_a_tenth_of_the_picture(cameras):
    camera = cameras[0]
    one = camera.position + 3 * camera.forward[None]  # a region of one cell has no size
    crop = _crop(camera, one, 1.6)
    assert crop.fx == pytest.approx(10 * camera.fx) and crop.width == camera.width


@pytest.mark.parametrize(("u", "v"), [(0.02, 0.03), (0.97, 0.02), (0.5, 0.98), (0.5, 0.5)])
def test_crops_stay_in_the_picture(cameras, u, v):
    camera = cameras[0]
    torch.manual_seed(0)
    pixels = torch.tensor([u * camera.width, v * camera.height]) + torch.randn(200, 2)
    local = torch.cat([(pixels - torch.tensor([camera.cx, camera.cy])) / camera.fx, torch.ones(200, 1)], 1)
    crop = _crop(camera, camera.position + 3 * local @ camera.pose[:, :3].T, 2.0)
    share = camera.fx / crop.fx
    left, top = camera.cx - share * crop.cx, camera.cy - share * crop.cy
    assert 0 < share < 0.5 and left >= -1e-4 and top >= -1e-4
    assert left + share * camera.width <= camera.width + 1e-3 and top + share * camera.height <= camera.height + 1e-3


def _solid(field, camera):
    rendered = field.render(camera)
    rendered["opacity"][:] = 1.0
    return _Rendering(field, rendered, camera)


# --- the subject


def views(field, cameras, given, find):
    rates = FieldRates(color_lr=1.0, network_lr=0.1, density_lr=1.0, line_lr=1.0)
    kept = build(Preservation, load_config("edit", []).edit)
    return FieldViews(field, cameras, LinearPrior(), rates, region_config(0.5, 32), kept, given=given, find=find)


def half(field):
    region = torch.zeros_like(field.occupancy)
    region[:, :, : region.shape[2] // 2] = True
    return region


def test_nothing_changes_outside_of_a_given_region(field, cameras):
    subject = views(field, cameras, half(field), find=False)
    editor = Editor(subject, subject.prior, FixedGradient(), PROMPTS, edit_config(4, 0.1))
    run(editor)
    edited = subject.edited()
    assert isinstance(edited, LocalField)
    x = torch.rand(500, 3) * 2 - 1
    inside = edited.inside(x)
    same = torch.isclose(edited.density(x), field.density(x), rtol=1e-6)  # the last bit depends on the batch's size
    same &= torch.isclose(edited.color(x, x), field.color(x, x), rtol=1e-6).all(1)
    assert not same[inside].all() and same[~inside].all()


def test_a_given_region_is_where_the_gradient_counts(field, cameras):
    region = half(field)
    alone = views(field, cameras, region, find=False)
    made = alone.views[0]
    torch.testing.assert_close(alone._weight(0, made), seen_share(field, made.view, region))


def test_both_is_what_is_given_and_found(field, cameras, monkeypatch):
    subject = views(field, cameras, half(field), find=True)
    made = subject.views[0]
    given = seen_share(field, made.view, half(field))
    found = torch.rand(24, 32)
    monkeypatch.setattr(subject.region, "weight", lambda camera, picture: found)
    torch.testing.assert_close(subject._weight(0, made), given * found)
    subject.find = False
    torch.testing.assert_close(subject._weight(0, made), given)


def test_gradients_outside_of_the_given_region_teach_nothing(field, cameras, monkeypatch):
    subject = views(field, cameras, half(field), find=True)
    pair = subject.pair(0)
    learnt = []
    monkeypatch.setattr(subject.region, "add", lambda camera, gradient, picture: learnt.append(gradient))
    gradient = torch.rand(24, 32, 3) + 0.5
    subject.observe(pair, gradient)
    share = subject._given_share(pair.camera, subject.views[pair.camera])
    torch.testing.assert_close(learnt[0], gradient * share[..., None])
    assert share.min() < 0.1 and share.max() > 0.9


def local(field, cameras, given, looks):
    rates = FieldRates(color_lr=1.0, network_lr=0.1, density_lr=1.0, line_lr=1.0)
    volume = build(VolumeConfig, load_config("edit", ["edit=shape"]).edit.volume)
    return LocalViews(field, cameras, LinearPrior(), rates, region_config(0.5, 32), volume, looks, 9, given=given)


def test_a_shape_is_edited_in_the_given_region_without_a_look(field, cameras):
    subject = local(field, cameras, half(field), looks=0)
    assert isinstance(subject.pair(0), LocalPair) and torch.equal(subject.target.region, half(field))


def test_both_is_what_a_look_finds_in_the_given_region(field, cameras, monkeypatch):
    found = torch.zeros_like(field.occupancy)
    found[:, : found.shape[1] // 2] = True
    monkeypatch.setattr("cds3d.subjects.volume.edited_volume", lambda *_: found.clone())
    subject = local(field, cameras, half(field), looks=1)
    pair = subject.pair(0)
    assert isinstance(pair, LookPair)
    subject.observe(pair, pair.backward(torch.ones(1, 3, 3, 4)))
    subject.pair(1)
    assert torch.equal(subject.target.region, found & half(field))
    monkeypatch.setattr("cds3d.subjects.volume.edited_volume", lambda *_: ~half(field))
    subject = local(field, cameras, half(field), looks=1)
    subject.observe(pair, torch.ones(24, 32, 3))
    with pytest.raises(UserError, match="do not overlap"):
        subject.pair(1)


# --- words


class Left(LinearPrior):
    """Its predictions are off by 1; with words by less in the picture's left half, and by more in its right half."""

    helps, harms = 0.5, 0.5

    def noised(self, z, t, noise):
        self.true = noise
        self.calls.append(("noised", t))
        return super().noised(z, t, noise)

    def ask(self, *queries):
        off = torch.ones_like(self.true)
        half = off.shape[-1] // 2
        worded = off.clone()
        worded[..., :half] -= self.helps
        worded[..., half:] += self.harms
        return [Prediction(self.true + (worded if float(q.prompt.tokens) else off)) for q in queries]


def test_cells_of_a_latent_lie_over_the_pixels_that_they_see():
    cells = torch.zeros(1, 1, 23, 31)
    cells[0, 0, 10, 20] = 1.0
    shown = _over_picture(cells, 189, 252)[..., 0]
    v, u = torch.meshgrid(torch.arange(189) + 0.5, torch.arange(252) + 0.5, indexing="ij")
    middle = [float((shown * x).sum() / shown.sum()) for x in (v, u)]
    assert shown.shape == (189, 252) and middle == pytest.approx([10.5 * 8, 20.5 * 8], abs=1e-3)
    cells = torch.rand(1, 1, 23, 31)
    assert torch.equal(_over_picture(cells, 189, 252)[188], _over_picture(cells, 189, 252)[183])  # beyond the last cell


def test_words_are_where_they_tell_noise_from_picture(field, cameras, caplog):
    prior, before = Left(), torch.get_rng_state()
    seen = word_masks(field, cameras, prior, "the flower", region_config(0.5, 32), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(seen) == 3 and all(mask.shape == (24, 32) for _, mask in seen)
    assert all(mask[:, :12].mean() > 0.9 and mask[:, 20:].mean() < 0.2 for _, mask in seen)
    steps = [call[1] for call in prior.calls if call[0] == "noised"]
    assert len(steps) == 3 * 8 and len(set(steps)) > 12 and all(200 <= t <= 800 for t in steps)
    again = word_masks(field, cameras, Left(), "the flower", region_config(0.5, 32), seed=3)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen, again))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_mask_is_drawn_from_lengths_not_from_squares(field, cameras, monkeypatch):
    """Squared errors of what is seen differ by so much that only the strongest part of a thing would count."""
    given, add = [], EditedRegion.add
    monkeypatch.setattr(EditedRegion, "add", lambda self, *a: given.append(a[1]) or add(self, *a))
    word_masks(field, cameras, Left(), "the flower", region_config(0.5, 32), seed=3)
    assert len(given) == 3
    for gradient in given:  # 1 - 0.5^2 in each of three channels on the left, negative on the right
        assert gradient[:, 0].norm(dim=1).sub(1.5).abs().max() < 1e-5
        assert gradient[:, -1].abs().max() == 0


def test_words_that_fit_nothing_are_told(field, cameras, caplog):
    prior = Left()
    prior.helps, prior.harms = 0.02, 1.0
    word_masks(field, cameras, prior, "the zeppelin", region_config(0.5, 32), seed=3)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and '--where "the zeppelin"' in warnings[0] and "(1% of what they change)" in warnings[0]


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        ("the red flower", "a red flower"),
        (" The orange cat", "an orange cat"),
        ("a mug", "a mug"),
        ("theatre", "theatre"),
    ],
)
def test_words_become_captions(words, caption):
    assert as_caption(words) == caption


def test_separate_parts_of_masks_are_all_taken(field, cameras):
    """Masks that a user has drawn may show two things; estimated ones have stray spots."""
    mask = torch.zeros(24, 32)
    mask[8:16, :6] = 1
    mask[10:13, 28:] = 1
    seen = [(field.view(camera), mask) for camera in cameras]
    every = edited_volume(field, seen, 0.5, 0.0, one_subject=False)
    one = edited_volume(field, seen, 0.5, 0.0)
    assert (one <= every).all() and every.sum() > one.sum()
