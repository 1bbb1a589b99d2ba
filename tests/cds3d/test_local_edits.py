"""Edits inside a region of space: looking first, the region from the masks, and then the field inside it alone."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from defaults import edit_config, region_config, run
from fakes import PROMPTS, FixedGradient, LinearPrior

import cds3d.subjects.local as local_module
from cds3d.editor import Editor
from cds3d.options import build, load_config
from cds3d.subjects.field import FieldRates
from cds3d.subjects.given import seen_share
from cds3d.subjects.local import LocalPair, LocalViews, LookPair
from cds3d.subjects.region import EditedRegion
from cds3d.subjects.volume import VolumeConfig, _within, edited_volume
from tensorf.errors import UserError
from tensorf.local import cell_centers


def volume(**changes):
    return replace(build(VolumeConfig, load_config("edit", ["edit=shape"]).edit.volume), **changes)


def local_views(field, cameras, looks=3, clear_from=1000, **changes):
    rates = FieldRates(color_lr=1.0, network_lr=0.1, density_lr=1.0, line_lr=1.0)
    return LocalViews(
        field, cameras, LinearPrior(), rates, region_config(0.5, 32), volume(**changes), looks, clear_from
    )


def right_half(self, camera, picture):
    mask = torch.zeros(picture.shape[:2])
    mask[:, 16:] = 1
    return mask


def test_the_callers_field_stays_trainable(field, cameras):
    subject = local_views(field, cameras)
    assert all(p.requires_grad for p in field.parameters())
    assert not any(p.requires_grad for p in subject.target.source.parameters())


def test_cameras_that_nothing_can_be_edited_through(field, cameras):
    with pytest.raises(ValueError, match="32x4 pixels"):
        local_views(field, [cameras[0].resized(32, 4)])


@pytest.fixture
def masked(monkeypatch):
    """The masks of all views are their right halves."""
    monkeypatch.setattr(EditedRegion, "weight", right_half)


GRADIENT = torch.ones(1, 3, 3, 4)


def looked(subject):
    for step in range(subject.looks):
        pair = subject.pair(step)
        subject.observe(pair, pair.backward(GRADIENT))
    return subject


def clones(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- looking


def test_the_first_steps_only_look(field, cameras):
    subject = local_views(field, cameras)
    before = clones(subject.target)
    editor = Editor(subject, subject.prior, FixedGradient(), PROMPTS, edit_config(3, 0.1))
    for _ in range(3):
        assert isinstance(subject.pair(editor.iteration), LookPair)
        editor.step()
    assert all(torch.equal(v, before[k]) for k, v in subject.target.state_dict().items())
    assert subject.region.visited == [0, 1, 2]
    assert all(visited[1] == 1 for visited in subject.region.state().values())


def test_a_look_compares_the_source_with_itself(field, cameras):
    subject = local_views(field, cameras)
    pair = subject.pair(0)
    torch.testing.assert_close(pair.target(), pair.source)
    image_gradient = pair.backward(GRADIENT)
    assert image_gradient.shape == (24, 32, 3) and torch.allclose(image_gradient, torch.tensor(2 / 64))
    assert all(p.grad is None for p in subject.target.parameters())


def test_only_looks_at_a_given_region_count(field, cameras):
    given = torch.zeros_like(field.occupancy)
    given[..., given.shape[2] // 2 :] = True
    subject = local_views(field, cameras)
    subject.given = given
    looked(subject)
    for camera, (mean, _, _) in subject.region.state().items():
        share = seen_share(field, subject.sources[camera].view, given)
        full = torch.full((24, 32, 3), 2 / 64) * share[..., None]
        torch.testing.assert_close(mean.mean(), full.mean(), rtol=1e-4, atol=1e-6)
        assert 0 < share.mean() < 1


def test_without_a_threshold_the_region_is_everything_that_is_seen(field, cameras):
    subject = local_views(field, cameras)
    subject.region = EditedRegion(replace(subject.region.config, mask_threshold=0.0))
    looked(subject).pair(3)
    assert subject.target.region.sum() > 0.2 * field.occupancy.sum()


# --- the region


def test_the_region_is_what_most_views_mark(field, cameras, masked):
    views = [(field.view(c), right_half(None, 0, torch.zeros(24, 32, 3))) for c in cameras]
    region = edited_volume(field, views, 0.3, grow=0.0)
    assert region.shape == field.occupancy.shape and 0 < region.sum() < region.numel() / 2
    seen = cell_centers(region.shape, region.device)[region.flatten()]
    world = field.space.world(seen)
    marked = torch.zeros(len(world))
    for camera in cameras:  # where each view sees these places
        local = (world - camera.position) @ camera.pose[:, :3]
        u = camera.fx * local[:, 0] / local[:, 2] + camera.cx
        marked += (u > 15).float() / len(cameras)
    assert (marked > 0.4).float().mean() > 0.95


@pytest.mark.parametrize("reach", [0.02, 0.2, 1.0])
def test_what_lies_within_reach_is_found_without_asking_every_pair(reach):
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(2000, 3, generator=generator), dim=1)
    centers = 3 * torch.rand(5000, 3, generator=generator) - 1.5
    for few in (points, points[:1], points[:1].expand(9, 3)):
        expected = torch.cdist(centers, few).amin(1) <= reach
        assert torch.equal(_within(centers, few, reach, reach / 2), expected)


def test_without_growth_no_distances_are_taken(field, cameras, monkeypatch):
    """They take minutes where masks mark most of a large scene."""
    monkeypatch.setattr("cds3d.subjects.volume._within", lambda *_: 1 / 0)
    views = [(field.view(c), right_half(None, 0, torch.zeros(24, 32, 3))) for c in cameras]
    assert edited_volume(field, views, 0.3, grow=0.0, one_subject=False).any()


def test_the_region_grows_by_a_share_of_the_subject(field, cameras):
    views = [(field.view(c), right_half(None, 0, torch.zeros(24, 32, 3))) for c in cameras]
    small, large = (edited_volume(field, views, 0.3, grow=g) for g in (0.0, 0.2))
    assert (small <= large).all() and large.sum() > 1.3 * small.sum()
    centers = field.space.world(cell_centers(small.shape, small.device))
    points = centers[small.flatten()]
    added = centers[(large & ~small).flatten()]
    size = 2 * (points - points.mean(0)).square().sum(1).mean().sqrt()  # every point counts alike: nearly the size
    assert torch.cdist(added, points).amin(1).max() < 0.2 * size * 1.5


class Surfaces:
    """A view that sees one surface point on each of its rays."""

    def __init__(self, points):
        self.points = points

    def surfaces(self, field):
        return self.points, torch.ones(len(self.points)), torch.arange(len(self.points))


def test_far_spots_neither_belong_to_the_subject_nor_make_it_seem_large(field):
    field.occupancy = torch.ones(40, 40, 40, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    subject = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1) * 0.2 - 0.4
    spots = 0.7 + 0.25 * torch.rand(200, 3, generator=generator)  # two fifths of the weight, four sizes away
    alone, both = (
        edited_volume(field, [(Surfaces(points), torch.ones(len(points), 1))], 0.3, grow=0.3)
        for points in (subject, torch.cat([subject, spots]))
    )
    assert alone.any() and both.equal(alone)


def test_masks_that_agree_on_nothing_are_told(field, cameras, monkeypatch):
    views = [(field.view(c), torch.zeros(24, 32)) for c in cameras]
    assert not edited_volume(field, views, 0.3, grow=0.2).any()
    monkeypatch.setattr(EditedRegion, "weight", lambda *_: torch.zeros(24, 32))
    with pytest.raises(UserError, match="edit.volume.agreement"):
        looked(local_views(field, cameras)).pair(3)


def test_unvisited_cameras_have_no_say(field, cameras, monkeypatch):
    """With one look of three cameras the region is that camera's alone."""
    asked = []

    def weight(self, camera, picture):
        asked.append((camera, picture))
        return right_half(self, camera, picture)

    monkeypatch.setattr(EditedRegion, "weight", weight)
    subject = looked(local_views(field, cameras[::-1], looks=1))
    camera = subject.pair(0).camera
    assert camera > 0  # the first one would hide a mix-up
    asked.clear()
    subject._open()
    ((known, picture),) = asked
    assert [known] == [camera] == subject.region.visited
    assert torch.equal(picture, subject.sources[camera].image)


# --- the edit


def test_outside_the_region_nothing_changes(field, cameras, masked):
    subject = local_views(field, cameras)
    before = clones(subject.source)
    run(Editor(subject, subject.prior, FixedGradient(), PROMPTS, edit_config(8, 0.1)))
    edited = subject.edited()
    assert all(torch.equal(v, before[k]) for k, v in subject.source.state_dict().items())
    x = torch.rand(4000, 3) * 2 - 1
    inside = edited.inside(x)
    assert 0 < inside.sum() < 4000
    d = torch.nn.functional.normalize(x, dim=1)
    for ask in (lambda f: f.density(x), lambda f: f.color(x, d)):
        torch.testing.assert_close(ask(edited)[~inside], ask(field)[~inside], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ask(edited)[inside], ask(field)[inside])


def test_the_editing_picture_is_the_sources_but_where_the_region_is(field, cameras, masked):
    subject = looked(local_views(field, cameras))
    pair = subject.pair(3)
    assert isinstance(pair, LocalPair)
    torch.testing.assert_close(pair.target(), pair.source, atol=1e-4, rtol=0)  # nothing is edited yet
    with torch.no_grad():
        for p in subject.target.target.color_grid.parameters():
            p.mul_(2)
    pair = subject.pair(3)
    pair.target()
    source = subject.sources[pair.camera].image
    changed = (pair._image - source).abs().amax(-1).flatten() > 0
    rays = torch.zeros(24 * 32, dtype=torch.bool)
    rays[pair._view.index] = True
    assert changed.any() and not changed[~rays].any()


def pixel_gradients(subject, step=3):
    """(rays, 3) what the step gives the colours of its rays, and the pair."""
    pair, caught = subject.pair(step), []
    pair.target()
    pair._color.register_hook(caught.append)
    pair.backward(GRADIENT)
    return caught[0], pair


def test_every_ray_of_the_region_gets_the_objectives_gradient(field, cameras, masked):
    gradient, _ = pixel_gradients(looked(local_views(field, cameras, smoothness=0.0)))
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 / 64))


def test_smoothness_adds_the_total_variations_gradient(field, cameras, masked):
    plain, smooth = (looked(local_views(field, cameras, smoothness=s)) for s in (0.0, 2.0))
    for subject in (plain, smooth):
        pair = subject.pair(3)
        pair.backward(GRADIENT)
    plane = lambda s: s.target.target.density_grid.planes[0]  # noqa: E731
    weight = 2.0 * (2 / 64) * 3**0.5 * len(pair._view.index)  # two RMS gradients of a pixel, times the rays
    (variation,) = torch.autograd.grad(weight * smooth.target.total_variation(), plane(smooth))
    torch.testing.assert_close(plane(smooth).grad - plane(plain).grad, variation, rtol=1e-3, atol=1e-6)


def test_a_camera_that_looks_past_the_region_changes_nothing_and_the_edit_goes_on(field, cameras):
    corner = torch.zeros_like(field.occupancy)
    corner[0, 0, 0] = True
    close = replace(cameras[0], fx=6 * cameras[0].fx, fy=6 * cameras[0].fy)
    subject = local_views(field, [close, *cameras[1:]], looks=0, clear_from=0)
    subject.given, before = corner, clones(subject.target)
    at = next(step for step in range(3) if subject.sources.turn(step) == 0)
    pair = subject.pair(at)
    assert len(pair._view.index) == 0
    pair.target()
    pair.backward(GRADIENT)
    gradients = [p.grad for p in subject.target.target.parameters() if p.grad is not None]
    assert gradients and all((g == 0).all() for g in gradients)
    assert all(torch.equal(v, before[k]) for k, v in subject.target.state_dict().items() if k.startswith("source"))


def test_haze_is_pulled_back_and_what_was_meant_is_left_alone(field, cameras, masked):
    """The gradient of Geman and McClure's loss, u s q / (1 + q) with q = |d / s|^2, on differences of both kinds."""
    subject = looked(local_views(field, cameras, clear_from=4, smoothness=0.0, haze=3.0, haze_color=0.1))
    usual = (2 / 64) * 3**0.5  # RMS gradient of a pixel
    for step, weight in ((3, 0.0), (4, 3.0)):  # before it clears, and from then on
        pair = subject.pair(step)
        pair.target()
        source = pair._source_view.image.view(-1, 3)[pair._view.index]
        faint = torch.arange(len(source))[:, None] % 2 == 0
        apart = torch.where(faint, torch.tensor([0.0, 0.03, 0.04]), torch.tensor([0.0, 3.0, 4.0]))
        pair._color, caught = (source + apart).requires_grad_(), []
        pair._color.register_hook(caught.append)
        pair.backward(GRADIENT)
        # |d / s| = 0.5: 2 (d / s) / 1.25^2; |d / s| = 50: nearly nothing
        pull = weight * usual * torch.where(faint, torch.tensor([0.0, 0.3, 0.4]) * 2 / 1.5625, torch.zeros(3))
        torch.testing.assert_close(caught[0] - 2 / 64, pull, rtol=1e-3, atol=1e-4)


def test_without_a_threshold_a_resume_in_the_last_look_finds_the_same_region(field, cameras):
    def without_threshold():
        subject = local_views(field, cameras)
        subject.region = EditedRegion(replace(subject.region.config, mask_threshold=0.0))
        return subject

    unbroken, resumed = looked(without_threshold()), without_threshold()
    unbroken.pair(3)
    resumed.load_state(without_threshold().state())
    resumed.pair(3)  # this process has seen one camera only
    assert torch.equal(resumed.target.region, unbroken.target.region)


def test_an_edit_that_goes_on_for_longer_looks_no_more(field, cameras, masked):
    subject = looked(local_views(field, cameras))
    assert isinstance(subject.pair(3), LocalPair)
    subject.looks = 6
    assert isinstance(subject.pair(4), LocalPair)


def test_what_is_empty_is_left_out_as_the_edit_goes_on_and_at_its_end(field, cameras, masked, monkeypatch):
    monkeypatch.setattr(local_module, "_SETTLE", 2)
    subject, settled = local_views(field, cameras), []
    monkeypatch.setattr(subject.target, "settle", lambda: settled.append(editor.iteration))
    editor = Editor(subject, subject.prior, FixedGradient(), PROMPTS, edit_config(8, 0.1))
    run(editor)
    assert settled == [5, 7]  # the region opens at 3
    assert subject.edited() is subject.target and settled == [5, 7, 8]


def test_a_resumed_edit_goes_on_as_the_unbroken_one(field, cameras, masked, holes, monkeypatch):
    def editor():
        return Editor(local_views(field, cameras), LinearPrior(), FixedGradient(), PROMPTS, edit_config(7, 0.1))

    monkeypatch.setattr(local_module, "_SETTLE", 2)
    for stop in (2, 5, 6):  # while it looks, and after
        whole, first, second = editor(), editor(), editor()
        run(whole)
        for _ in range(stop):
            first.step()
        second.load_state_dict(first.state_dict())
        run(second)
        assert torch.equal(second.subject.target.region, whole.subject.target.region)
        assert torch.equal(second.subject.target.occupancy, whole.subject.target.occupancy)
        for a, b in zip(second.subject.target.parameters(), whole.subject.target.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(look=0.0),
        dict(look=1.0),
        dict(agreement=0.0),
        dict(grow=-1.0),
        dict(smoothness=math.nan),
        dict(haze=-1.0),
        dict(haze_color=0.0),
        dict(haze_from=1.2),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        volume(**wrong)
