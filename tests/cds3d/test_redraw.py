"""Views drawn anew after an edit of the shape, and the field fitted to them one by one."""

from dataclasses import replace

import pytest
import torch
from defaults import edit_config
from fakes import PROMPTS, FixedGradient, LinearPrior
from test_local_edits import clones, local_views, masked  # noqa: F401

import cds3d.redraw as module
from cds3d.editor import Editor
from cds3d.options import build, load_config
from cds3d.redraw import Crop, RedrawConfig, RedrawnShape, closed, differs, free_cells, widened
from cds3d.subjects.field import FieldRates
from tensorf.errors import UserError
from tensorf.local import LocalField

RATES = FieldRates(color_lr=1.0, network_lr=0.1, density_lr=1.0, line_lr=1.0)
pytestmark = pytest.mark.usefixtures("masked")


def options(**changes):
    shipped = build(RedrawConfig, load_config("edit", ["edit=redraw"]).edit.redraw)
    return replace(shipped, **{**dict(views=None, steps=4, fits=3, polish=2, zoom=0.0), **changes})


def work(field, cameras, iterations=4, seed=0, **changes):
    subject, prior = local_views(field, cameras, looks=2), LinearPrior()
    editor = Editor(subject, prior, FixedGradient(0.01), PROMPTS, edit_config(iterations, 0.01))
    return RedrawnShape(editor, subject, prior, PROMPTS, options(**changes), RATES, seed)


def to_end(edit):
    return [edit.step() for _ in range(edit.iterations - edit.iteration)]


@pytest.fixture
def red(monkeypatch):
    """The prior draws every view red."""

    def redrawn(edit, camera, strength):
        source = edit._source(camera)
        return torch.where(edit._inside(camera) > 0, torch.tensor([1.0, 0.0, 0.0]).expand_as(source), source)

    monkeypatch.setattr(RedrawnShape, "_redrawn", redrawn)


def test_iterations_count_the_edit_the_views_and_the_polish(field, cameras):
    edit = work(field, cameras)
    figures = to_end(edit)
    assert edit.iteration == edit.iterations == 4 + 3 + 2
    assert ["redraw/psnr_db" in f for f in figures] == [False] * 4 + [True] * 5


@pytest.mark.parametrize("steps", [1, 3, 4, 6])  # while it looks, in the edit, before the first round, between rounds
def test_a_state_is_a_snapshot(steps, field, cameras):
    edit = work(field, cameras)
    for _ in range(steps):
        edit.step()
    state, before = edit.state_dict(), clones(edit.target.target)
    with torch.no_grad():  # which a step does not mind
        to_end(edit)
    end = clones(edit.target.target)
    assert any(not torch.equal(before[k], v) for k, v in end.items())
    for _ in range(2):  # what is loaded is not changed either
        edit.load_state_dict(state)
        assert edit.iteration == steps
        assert all(torch.equal(before[k], v) for k, v in edit.target.target.state_dict().items())
        to_end(edit)
        assert all(torch.equal(end[k], v) for k, v in edit.target.target.state_dict().items())


def test_the_field_takes_on_what_is_drawn_in_the_region_alone(field, cameras, red):
    edit = work(field, cameras, fits=8, polish=6, lr=0.05)
    for _ in range(5):
        edit.step()
    before, source = edit._seen(0), edit._source(0)
    outside = clones(edit.target.source)
    to_end(edit)
    after, inside = edit._seen(0), edit._inside(0)[..., 0] > 0
    assert 0 < inside.float().mean() < 1
    assert torch.equal(after[~inside], before[~inside]) and torch.equal(after[~inside], source[~inside])
    goal = torch.tensor([1.0, 0.0, 0.0])
    assert (after[inside] - goal).square().mean() < 0.5 * (source[inside] - goal).square().mean()
    assert all(torch.equal(v, outside[k]) for k, v in edit.target.source.state_dict().items())
    assert isinstance(edit.edited(), LocalField) and torch.equal(edit.region_in_space(), edit.target.region)


def test_a_view_shows_what_was_drawn_in_others_before(field, cameras, monkeypatch):
    starts, drawn = [], RedrawnShape._drawn
    monkeypatch.setattr(RedrawnShape, "_drawn", lambda s, z, *rest: (starts.append(z), drawn(s, z, *rest))[1])
    edit = work(field, cameras)
    for _ in range(4):
        edit.step()
    edit._begin()
    third = module.LatentImage(module.as_batch(edit._seen(edit._turn(2)))[0], edit.prior).source
    to_end(edit)
    assert len(starts) == 3  # rounds that polish draw nothing
    assert starts[2].shape == third.shape and not torch.equal(starts[2], third)


def test_noise_becomes_less_from_view_to_view(field, cameras, monkeypatch):
    asked, guided = [], module.guided
    monkeypatch.setattr(module, "guided", lambda p, z, t, *rest: (asked.append(t), guided(p, z, t, *rest))[1])
    edit = work(field, cameras, steps=10, strength=0.5, strength_end=0.1)
    for _ in range(4):
        edit.step()
    firsts, counts = [], []
    for _ in range(3):
        asked.clear()
        edit.step()
        firsts.append(asked[0])
        counts.append(len(asked))
        assert asked == sorted(asked, reverse=True) and asked[-1] == 1
    assert firsts == [401, 201, 1] and counts == [5, 3, 1]


def test_the_least_strength_still_draws(field, cameras):
    edit = work(field, cameras, steps=2, strength=1e-6, strength_end=1e-6)
    assert len(to_end(edit)) == edit.iterations


def test_latent_cells_outside_the_region_stay(field, cameras, monkeypatch):
    edit = work(field, cameras)
    for _ in range(5):
        edit.step()
    latents, drawn = [], RedrawnShape._drawn
    monkeypatch.setattr(
        RedrawnShape, "_drawn", lambda s, *rest: (latents.append((*rest[:2], drawn(s, *rest))), latents[-1][2])[1]
    )
    edit._redrawn(0, 0.4)
    start, free, end = latents[0]
    assert torch.equal(free, free_cells(module.as_batch(edit._inside(0)))) and 0 < free.mean() < 1
    kept = (free == 0).expand_as(start)
    assert torch.equal(end[kept], start[kept])
    assert not torch.allclose(end[~kept], start[~kept])


def test_cells_of_odd_pictures_are_those_of_the_latent():
    inside = torch.zeros(1, 1, 9, 20)
    inside[..., :4, :12] = 1  # half of the first row of cells, and of the second cell in it
    assert free_cells(inside).tolist() == [[[[0, 0, 0], [0, 0, 0]]]]
    inside[..., :5, :13] = 1
    assert free_cells(inside).tolist() == [[[[1, 0, 0], [0, 0, 0]]]]
    inside[..., 8:, 16:] = 1  # the border is repeated
    assert free_cells(inside).tolist() == [[[[1, 0, 0], [0, 0, 1]]]]


def drawn_as(edit, monkeypatch, new, before):
    """The prior draws `new`, and the VAE shows the source as `before`: (H, W, 3) each."""
    pictures = iter([new, before])
    with monkeypatch.context() as patch:
        patch.setattr(module.LatentImage, "decoded", lambda s, z: next(pictures).permute(2, 0, 1))
        return edit._redrawn(0, 0.4)


def in_rounds(field, cameras, monkeypatch, changed, **changes):
    """An edit whose first view shows the region everywhere, and differs from the source in `changed` (H, W)."""
    edit = work(field, cameras, **changes)
    for _ in range(5):
        edit.step()
    source = torch.full((24, 32, 3), 0.2)
    monkeypatch.setattr(edit, "_source", lambda camera: source)
    monkeypatch.setattr(edit, "_inside", lambda camera: torch.ones(24, 32, 1))
    monkeypatch.setattr(edit, "_seen", lambda camera: torch.where(changed[..., None], 0.9, source))
    return edit, source


def test_pixels_that_differ_little_are_the_sources_and_gaps_are_closed(field, cameras, monkeypatch):
    everywhere = torch.ones(24, 32, dtype=torch.bool)
    old, new = torch.full((24, 32, 3), 0.5), torch.full((24, 32, 3), 0.54)
    new[4:20, 4:20] = 0.9
    new[10:14, 10:14] = 0.54  # a hole
    edit, source = in_rounds(field, cameras, monkeypatch, everywhere, change=0.1, close=0.2)
    taken = drawn_as(edit, monkeypatch, new, old)
    assert torch.equal(taken[:, 24:], source[:, 24:])
    torch.testing.assert_close(taken[6:18, 6:18], new[6:18, 6:18])
    edit, _ = in_rounds(field, cameras, monkeypatch, everywhere, change=0.1, close=0.0)
    assert not torch.allclose(drawn_as(edit, monkeypatch, new, old)[6:18, 6:18], new[6:18, 6:18])


def test_what_is_drawn_far_from_what_has_changed_is_left_out(field, cameras, monkeypatch):
    changed = torch.zeros(24, 32, dtype=torch.bool)
    changed[8:16, 8:12] = True
    edit, source = in_rounds(field, cameras, monkeypatch, changed, grow=0.1, close=0.0)  # 3 pixels
    taken = drawn_as(edit, monkeypatch, torch.full((24, 32, 3), 0.9), torch.full((24, 32, 3), 0.2))
    torch.testing.assert_close(taken[6:18, 6:14], torch.full((12, 8, 3), 0.9))
    assert torch.equal(taken[:, 20:], source[:, 20:]) and torch.equal(taken[:2], source[:2])


def test_what_has_changed_outside_of_the_crop_stays(field, cameras, monkeypatch):
    changed = torch.zeros(24, 32, dtype=torch.bool)
    changed[4:20, 8:24] = True
    edit, source = in_rounds(field, cameras, monkeypatch, changed, close=0.0, zoom=0.8)
    grey = torch.full((24, 32, 3), 0.5)
    taken = drawn_as(edit, monkeypatch, grey, grey)  # the prior draws nothing
    kept = (taken - 0.9).abs().amax(-1) < 1e-6
    assert kept.sum() == 16 * (16 - 13) and changed[kept].all()  # the crop is 17x13 pixels
    assert torch.equal(taken[~kept], source[~kept])


def test_a_crop_holds_what_has_changed_and_is_put_back_where_it_was():
    changed = torch.zeros(1, 1, 24, 32)
    changed[..., 4:16, 10:14] = 1
    assert Crop.around(changed, 0) == Crop.around(0 * changed, 1.5) == Crop(0, 0, 24, 32)
    assert Crop.around(changed, 1) == Crop(4, 4, 12, 16)  # half of the height, and of the width too
    assert Crop.around(changed, 1.5) == Crop(1, 0, 18, 24)  # no farther than the picture's border
    changed[..., 5:, :] = 0
    assert Crop.around(changed, 1) == Crop(1, 7, 7, 10)  # no smaller
    picture, crop = torch.rand(1, 3, 24, 32), Crop(4, 4, 12, 16)
    large = crop.enlarged(picture)
    assert large.shape == picture.shape and not torch.equal(large, picture)
    smooth = torch.linspace(0, 1, 32).expand(1, 3, 24, 32)
    torch.testing.assert_close(crop.put_back(crop.enlarged(smooth), smooth)[..., 6:18], smooth[..., 6:18])
    back = crop.put_back(torch.ones_like(picture), picture)
    assert (back[..., 4:16, 4:20] == 1).all()
    back[..., 4:16, 4:20] = picture[..., 4:16, 4:20]
    assert torch.equal(back, picture)
    whole = Crop(0, 0, 24, 32)
    assert torch.equal(whole.enlarged(picture), picture)


def test_masks():
    picture, other = torch.zeros(1, 3, 50, 100), torch.zeros(1, 3, 50, 100)
    other[:, 1, 20:30, 40:60] = 0.5  # one colour is enough
    other[:, :, 5, 5] = 0.5  # a single pixel is noise
    assert differs(picture, other, 0.1)[0, 0, 22:28, 42:58].all()
    assert differs(picture, other, 0.1).sum() < 23 * 13 and not differs(picture, other, 0.6).any()
    mask = torch.zeros(1, 1, 50, 100)
    mask[..., 20, 30], mask[..., 20, 36] = 0.6, 0.4
    assert widened(mask, 0.05).sum() == 11 * 11 and widened(mask, 0.05)[..., 15:26, 25:36].all()
    mask = (mask > 0).float()
    assert closed(mask, 0.1)[..., 20, 30:37].all() and closed(mask, 0.04).sum() == 2


@pytest.mark.parametrize("at", [3, 5, 7, 8])
def test_resumed_it_is_bit_for_bit_the_unbroken_one(at, field, cameras, holes, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE", 2)
    whole, broken, resumed = (work(field, cameras) for _ in range(3))
    to_end(whole)
    for _ in range(at):
        broken.step()
    resumed.load_state_dict(broken.state_dict())
    assert resumed.iteration == at
    to_end(resumed)
    expected = whole.edited().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.edited().state_dict().items())


def test_an_edit_that_becomes_longer_is_redrawn_again(field, cameras):
    done, longer = work(field, cameras), work(field, cameras, iterations=6)
    to_end(done)
    longer.load_state_dict(done.state_dict())
    assert longer.iteration == 4 and longer.round == 0
    assert sum("redraw/psnr_db" in f for f in to_end(longer)) == 5


def test_cameras_that_do_not_see_the_region_are_left_out(field, cameras):
    away = replace(cameras[1], cx=cameras[1].cx + 500)
    edit = work(field, [*cameras[:1], away, *cameras[2:]], views=3)
    to_end(edit)
    assert edit.iteration == 4 + 3 + 2  # the others come again
    assert set(edit._pictures) == {0, 2} and edit._chosen == [0, 2]


def test_a_region_without_anything_in_it_is_seen_by_none(field, cameras):
    region = torch.zeros_like(field.occupancy)
    assert not module.sees(cameras[0], field, region)


def test_what_is_shown_on_the_way(field, cameras):
    edit = work(field, cameras)
    shown = []
    for _ in range(edit.iterations):
        edit.step()
        shown.append(set(edit.pictures()))
    assert shown[3] == {"source_and_edit"} and shown[4] == shown[-1] == {"picture_and_edit"}
    assert edit.pictures()["picture_and_edit"].shape == (24, 64, 3)


def test_a_fit_that_is_not_finite_is_told_with_its_option_and_iteration(field, cameras, monkeypatch):
    edit = work(field, cameras)
    for _ in range(5):
        edit.step()
    monkeypatch.setattr(edit, "_redrawn", lambda camera, strength: torch.full((24, 32, 3), float("nan")))
    with pytest.raises(UserError, match=r"iteration 5: lower edit\.redraw\.lr"):
        edit.step()


def test_a_gradient_that_is_not_finite_moves_nothing(field, cameras):
    edit = work(field, cameras)
    for _ in range(5):
        edit.step()
    edit._optimizer.param_groups[0]["params"][0].register_hook(lambda gradient: gradient * float("nan"))
    before = clones(edit.target.target)
    with pytest.raises(UserError, match=r"iteration 5: lower edit\.redraw\.lr"):
        edit.step()
    assert all(torch.equal(v, before[k]) for k, v in edit.target.target.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [
        dict(views=0),
        dict(strength=0.0),
        dict(strength_end=1.1),
        dict(steps=0),
        dict(scale=0.0),
        dict(zoom=-1.0),
        dict(change=1.0),
        dict(grow=-0.1),
        dict(close=-0.1),
        dict(fits=0),
        dict(polish=-1),
        dict(lr=float("nan")),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        options(**wrong)


def test_more_steps_than_the_schedule_has_are_refused(field, cameras):
    with pytest.raises(UserError, match="timesteps"):
        work(field, cameras, steps=5000)


def test_redrawing_opens_the_whole_region_again_and_takes_the_edits_views(field, cameras):
    edit = work(field, cameras)
    for _ in range(4):
        edit.step()
    target = edit.target
    target.occupancy = torch.zeros_like(target.occupancy)  # as after many steps of an edit that empties it
    views = dict(edit.subject._views)
    edit.step()
    assert torch.equal(target.occupancy, target.source.occupancy | target.region)
    assert views and all(edit.subject._views[camera] is view for camera, view in views.items())


def test_what_is_empty_is_left_out_every_few_rounds(field, cameras, monkeypatch):
    edit, at = work(field, cameras), []
    for _ in range(4):
        edit.step()
    monkeypatch.setattr(LocalField, "settle", lambda self: at.append(edit.round))
    to_end(edit)
    assert at == [3]


def test_the_rate_falls_to_a_tenth(field, cameras, monkeypatch):
    edit, rates = work(field, cameras, lr=0.02), []
    step = module.Adam.step
    for _ in range(4):
        edit.step()
    monkeypatch.setattr(module.Adam, "step", lambda o: (rates.append(o.param_groups[0]["lr"]), step(o))[1])
    to_end(edit)
    assert len(rates) == 5 * 3 and rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.02) and rates[-1] == pytest.approx(0.02 * 0.1 ** (14 / 15))


def test_each_view_has_noise_of_its_own_and_the_target_prompt(field, cameras, monkeypatch):
    edit, noises, asked = work(field, cameras), [], []
    noise_like, guided = module.noise_like, module.guided
    monkeypatch.setattr(module, "noise_like", lambda *a: (noises.append(noise_like(*a)), noises[-1])[1])
    monkeypatch.setattr(module, "guided", lambda *a: (asked.append(a[3:]), guided(*a))[1])
    to_end(edit)
    assert len(noises) == 3 and not torch.equal(noises[0], noises[1])
    assert all(rest == (PROMPTS.null, PROMPTS.target, edit.config.scale) for rest in asked)


def test_only_the_spread_views_are_drawn_anew(field, cameras):
    edit = work(field, cameras, views=2)
    assert len(to_end(edit)) == 4 + 2 + 2
    assert len(edit._chosen) == len(edit._pictures) == 2


def test_pixels_of_rays_past_the_region_are_the_sources(field, cameras, monkeypatch):
    edit = work(field, cameras, grow=0.99)
    for _ in range(5):
        edit.step()
    source, inside = edit._source(0), edit._inside(0)[..., 0] > 0
    monkeypatch.setattr(edit, "_seen", lambda camera: torch.ones_like(source))
    taken = drawn_as(edit, monkeypatch, torch.ones(24, 32, 3), torch.zeros(24, 32, 3))
    assert torch.equal(taken[~inside], source[~inside]) and (taken[inside] == 1).all()


def test_a_damaged_picture_in_a_state_is_refused(field, cameras):
    edit = work(field, cameras)
    for _ in range(6):
        edit.step()
    state = edit.state_dict()
    state["redrawn"] = {camera: picture[:-1] for camera, picture in state["redrawn"].items()}
    with pytest.raises(ValueError, match="redrawn view"):
        work(field, cameras).load_state_dict(state)
