"""Edits of a field by way of its pictures: all views share a turn's noise, then the region and the fit, then again."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from defaults import edit_config, region_config
from fakes import PROMPTS, LinearPrior

import cds3d.by_pictures as module
from cds3d.by_pictures import FitConfig, PictureEdit
from cds3d.objectives.objective import Draw, Step
from cds3d.options import build, load_config
from cds3d.subjects.field import FieldRates
from cds3d.subjects.given import seen_share
from cds3d.subjects.region import EditedRegion
from tensorf.captures import load_capture
from tensorf.errors import UserError

RATES = FieldRates(color_lr=1.0, network_lr=0.1, density_lr=0.0, line_lr=1.0)


@pytest.fixture(scope="module")
def cameras(capture_folder):
    """Three of the capture's cameras, 36x27: latents are 5x4, of pictures that are padded."""
    capture = load_capture(capture_folder, width=64)
    return [camera.resized(36, 27) for camera in capture.cameras[:3]]


class Recorded:
    """An objective whose gradient is the same everywhere; it remembers its draws."""

    t_min, t_max = 50, 949

    def __init__(self, size=1.0):
        self.size, self.draws = size, []

    def at(self, progress):
        return self

    def draw(self, latent, progress, generator=None):
        t = int(torch.randint(50, 950, (1,), generator=generator))
        self.draws.append(Draw(t, torch.randn(latent.shape, generator=generator)))
        return self.draws[-1]

    def gradient(self, prior, pair, prompts, draw):
        return Step(torch.full_like(pair.source, self.size), {"t": draw.t})


def fit(**changes):
    shipped = build(FitConfig, load_config("edit", ["edit=pictures"]).edit.fit)
    return replace(shipped, **{**dict(rounds=1, iterations=3, agreement=0.5), **changes})


def work(field, cameras, objective=None, iterations=2, rates=RATES, given=None, find=True, fits=3, **of_fit):
    """iterations: of a picture; fits: of a fit."""
    config, steps = fit(iterations=fits, **of_fit), edit_config(iterations, 0.05, "sgd")
    objective, region = objective or Recorded(), region_config(0.5, 36)
    return PictureEdit(field, cameras, LinearPrior(), objective, PROMPTS, steps, config, rates, region, given, find)


@pytest.fixture
def masked(monkeypatch):
    """The masks of all views are their right halves."""

    def right_half(self, camera, picture):
        mask = torch.zeros(picture.shape[:2])
        mask[:, 18:] = 1
        return mask

    monkeypatch.setattr(EditedRegion, "weight", right_half)


def to_end(edit):
    return [edit.step() for _ in range(edit.iterations - edit.iteration)]


def test_all_views_of_a_turn_share_noise_and_timestep(field, cameras, masked):
    objective = Recorded()
    edit = work(field, cameras, objective, iterations=2, rounds=2)
    to_end(edit)
    draws = objective.draws
    assert len(draws) == 2 * 2 * 3
    turns = [draws[i : i + 3] for i in range(0, 12, 3)]
    for turn in turns:
        assert len({d.t for d in turn}) == 1
        assert all(torch.equal(d.noise, turn[0].noise) for d in turn)
    first = [turn[0].noise for turn in turns]
    assert not any(torch.equal(first[i], first[j]) for i in range(4) for j in range(i))  # of later rounds too


def test_views_share_a_timestep_that_falls(field, cameras, masked):
    told = []

    class Falling(Recorded):
        def draw(self, latent, progress, generator=None):
            told.append(progress)
            return super().draw(latent, progress, generator)

    to_end(work(field, cameras, Falling(), iterations=3, rounds=1))
    assert told == [0] * 3 + [0.5] * 3 + [1] * 3


def test_a_step_edits_one_view(field, cameras):
    edit = work(field, cameras)
    edit.step()
    moved = [not torch.equal(image.parameter, image.source) for image in edit.latents.images]
    assert moved == [True, False, False] and edit.iteration == 1


def parameters(edit):
    images = [image.parameter.detach().clone() for image in edit.latents.images]
    return images + [p.detach().clone() for p in edit.target.target.parameters()]


@pytest.mark.parametrize("steps", [1, 7, 10])  # in the first pictures, in the first fit, in the second pictures
def test_a_state_is_a_snapshot(steps, field, cameras, masked):
    edit = work(field, cameras, rounds=2)
    for _ in range(steps):
        edit.step()
    state, before = edit.state_dict(), parameters(edit)
    to_end(edit)
    end = parameters(edit)
    for _ in range(2):  # what is loaded is not changed either
        edit.load_state_dict(state)
        assert edit.iteration == steps
        parts = None if steps == 7 else 3  # the field's parameters count in a fit alone, which begins with the source's
        assert all(torch.equal(a, b) for a, b in zip(parameters(edit)[:parts], before[:parts], strict=True))
        to_end(edit)
        assert all(torch.equal(a, b) for a, b in zip(parameters(edit), end, strict=True))


def test_steps_leave_the_global_random_state_alone(field, cameras, masked):
    edit = work(field, cameras)
    before = torch.get_rng_state()
    with torch.no_grad():  # which a step does not mind
        to_end(edit)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_edit_is_freed_once_nobody_has_it(field, cameras):
    edit = work(field, cameras)
    alive = weakref.ref(edit)
    gc.disable()
    try:
        del edit
        assert alive() is None
    finally:
        gc.enable()


def test_the_callers_field_stays_trainable(field, cameras):
    work(field, cameras)
    assert all(p.requires_grad for p in field.parameters())


def test_views_and_regions_that_nothing_can_be_edited_in(field, cameras):
    with pytest.raises(ValueError, match="cameras is empty"):
        work(field, [])
    with pytest.raises(ValueError, match="6x27 pixels"):
        work(field, [cameras[0].resized(6, 27)])
    with pytest.raises(ValueError, match="find=False"):
        work(field, cameras, find=False)


def test_iterations_count_pictures_and_fits_of_all_rounds(field, cameras, masked):
    edit = work(field, cameras, rounds=2)
    assert edit.iterations == 2 * (2 * 3 + 3)
    told = to_end(edit)
    assert edit.iteration == edit.iterations
    assert ["fit/psnr_db" in figures for figures in told] == 2 * (6 * [False] + 3 * [True])


@pytest.mark.parametrize("detail", [0.0, 0.25, 1.0])
def test_the_field_takes_on_the_change_of_its_pictures_in_the_region_alone(detail, field, cameras, masked):
    before = {k: v.clone() for k, v in field.state_dict().items()}
    edit = work(field, cameras, Recorded(-1.0), iterations=3, fits=60, lr=0.05, detail=detail)
    to_end(edit)
    assert all(torch.equal(v, before[k]) for k, v in field.state_dict().items())
    lossy, edited = edit.latents.decoded(0)
    assert not torch.allclose(lossy, edited)
    wanted, shown, source = edit._pictures[0], edit._seen(0), edit._views[0].full
    assert torch.equal(wanted[:, :15], source[:, :15])  # the mask, dilated by the margin
    expected = edited + detail * (source - lossy)
    assert torch.allclose(wanted[:, 20:], expected[:, 20:].clamp(0, 1))
    crossing = edit._local[0].index
    outside = torch.ones(27 * 36, dtype=torch.bool).index_fill(0, crossing, False)
    assert torch.equal(shown.view(-1, 3)[outside], source.view(-1, 3)[outside])
    error = lambda x: (x - wanted).view(-1, 3)[crossing].square().mean()  # noqa: E731
    assert error(shown) < 0.3 * error(source)
    density = dict(edit.target.target.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in density.items() if k.startswith("density"))


def test_the_rate_of_a_fit_falls_to_a_tenth(field, cameras, masked):
    edit = work(field, cameras, fits=4, lr=0.02)
    rates = []
    while edit.iteration < edit.iterations:
        edit.step()
        if edit.fitted:
            rates.append(edit.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.02 * 0.1 ** (i / 4) for i in range(4)])


def test_a_round_begins_as_the_field_shows(field, cameras, masked):
    edit = work(field, cameras, rounds=2)
    while edit.fitted < edit.fit.iterations:
        edit.step()
    seen = [edit._seen(i) for i in range(3)]
    expected = [image.parameter.clone() for image in edit.latents.images]
    edit.step()
    assert edit.round == 1 and edit.fitted == 0
    for image, now, old in list(zip(edit.latents.images, seen, expected))[1:]:  # the first has been edited already
        assert torch.equal(image.parameter, image.encoded(now.permute(2, 0, 1)))
        assert not torch.equal(image.parameter, old)


@pytest.mark.parametrize("at", [1, 6, 9, 11, 12, 17, 20])
def test_resumed_it_is_bit_for_bit_the_unbroken_one(at, field, cameras, masked, holes, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE", 2)
    rates = replace(RATES, density_lr=1.0)
    whole = work(field, cameras, rounds=2, fits=5, grow=0.2, rates=rates)
    to_end(whole)
    begun = work(field, cameras, rounds=2, fits=5, grow=0.2, rates=rates)
    for _ in range(at):
        begun.step()
    resumed = work(field, cameras, rounds=2, fits=5, grow=0.2, rates=rates)
    resumed.load_state_dict(begun.state_dict())
    assert resumed.iteration == at
    to_end(resumed)
    expected = whole.edited().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.edited().state_dict().items())


def test_a_finished_edit_goes_on_with_more_steps_or_rounds(field, cameras, masked):
    done = work(field, cameras)
    to_end(done)
    more = work(field, cameras, iterations=4)
    more.load_state_dict(done.state_dict())
    assert more.iteration == 6 and not more._pictures  # two more turns of pictures, then the fit
    to_end(more)
    assert more.iteration == 4 * 3 + 3
    again = work(field, cameras, rounds=2)
    again.load_state_dict(done.state_dict())
    assert again.iteration == 9
    again.step()
    assert again.round == 1 and again.editor.iteration == 1


def test_a_given_region_bounds_what_is_found_or_is_the_region(field, cameras, masked):
    given = torch.zeros_like(field.occupancy)
    given[:, : given.shape[1] // 2] = True
    both = work(field, cameras, given=given, grow=0.5)  # it would grow out of what is given
    to_end(both)
    assert both.target.region.any() and not (both.target.region & ~given).any()
    alone = work(field, cameras, given=given, find=False)
    to_end(alone)
    assert torch.equal(alone.target.region, given)


@pytest.mark.parametrize("find", [True, False])
def test_only_what_a_given_region_shows_of_a_change_counts(find, field, cameras, monkeypatch):
    """Stronger changes elsewhere neither hide nor add anything."""
    given = torch.zeros_like(field.occupancy)
    given[..., given.shape[2] // 2 :] = True
    edit, asked = work(field, cameras, given=given, find=find), []
    monkeypatch.setattr(EditedRegion, "add", lambda self, camera, change, picture: asked.append(change))
    shares = [seen_share(field, view, given) for view in edit._views]
    changes = [torch.rand(27, 36, 3) for _ in cameras]
    masks = edit._masks(changes)  # nothing is added here, so that what is found is everything
    assert all(torch.equal(mask, share) and 0 < share.mean() < 1 for mask, share in zip(masks, shares))
    assert len(asked) == (3 if find else 0)
    assert all(torch.equal(a, c * s[..., None]) for a, c, s in zip(asked, changes, shares))


def test_a_fit_that_is_not_finite_is_told_with_its_option_and_iteration(field, cameras, masked):
    edit = work(field, cameras)
    for _ in range(7):
        edit.step()
    with torch.no_grad():
        edit.target.target.color_grid.planes[0].fill_(float("nan"))
    with pytest.raises(UserError, match="iteration 7: lower edit.fit.lr"):
        edit.step()


def test_a_view_that_does_not_see_the_region_does_not_count(field, cameras, monkeypatch):
    given = torch.zeros_like(field.occupancy)  # no cell
    edit = work(field, cameras, given=given, find=False)
    before = {k: v.clone() for k, v in edit.target.target.state_dict().items()}
    to_end(edit)
    assert all(torch.equal(v, before[k]) for k, v in edit.target.target.state_dict().items())


def test_pictures_that_do_not_change_are_told(field, cameras):
    edit = work(field, cameras, Recorded(0.0))
    with pytest.raises(UserError, match="Lower edit.fit.agreement"):
        to_end(edit)


def test_what_is_shown_on_the_way(field, cameras, masked):
    edit = work(field, cameras)
    edit.step()
    (picture,) = edit.pictures().values()
    assert picture.shape == (27, 72, 3) and torch.equal(picture[:, :36], edit._views[0].full)
    to_end(edit)
    shown = edit.pictures()
    assert torch.equal(shown["picture_and_edit"], torch.cat([edit._pictures[0], edit._seen(0)], 1))
    assert shown["region"].shape == (27, 36, 1) and 0 < shown["region"].mean() < 1


def test_only_the_spread_views_are_edited_and_shown(field, cameras, masked):
    edit = work(field, cameras, views=2)
    assert len(edit.cameras) == len(edit.latents.images) == 2
    assert edit.iterations == 2 * 2 + 3
    to_end(edit)
    assert len(edit._pictures) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"views": 0},
        {"rounds": 0},
        {"iterations": 0},
        {"lr": 0.0},
        {"agreement": 0.0},
        {"grow": -1.0},
        {"margin": 1.0},
        {"detail": 1.5},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fit(**wrong)
