"""Scenes of more cameras than an edit has time to visit: which of them it is made through, also after a resume."""

import pytest
import torch
from defaults import field_views
from fakes import LinearPrior

from cds3d.commands.edit import views_maker
from cds3d.commands.preparing import most_views
from cds3d.options import load_config
from cds3d.subjects.sources import spread
from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.errors import UserError


@pytest.fixture(scope="module")
def cameras(capture_folder):
    return load_capture(capture_folder, width=64).cameras


def looking_at(x, z, direction):
    """A camera at (x, 0, z) whose last axis points along +z or -z."""
    pose = torch.tensor([[1.0, 0, 0, x], [0, direction, 0, 0], [0, 0, direction, z]])
    return Camera(pose=pose, width=8, height=8, fx=8.0, fy=8.0, cx=4.0, cy=4.0)


def test_cameras_are_spread_over_all():
    row = [looking_at(float(x), 0.0, 1.0) for x in range(9)]
    assert spread(row, None) == spread(row, 9) == spread(row, 20) == list(range(9))
    assert spread(row, 3) == [0, 4, 8]
    assert len(spread(row, 1)) == 1 and len(spread(row, 5)) == 5
    around = [looking_at(0.0, 0.0, 1.0) for _ in range(8)] + [looking_at(0.0, 0.0, -1.0)]
    assert 8 in spread(around, 2)  # who looks the other way comes first


def test_cameras_at_one_place_are_chosen_once_each():
    same = [looking_at(0.0, 0.0, 1.0) for _ in range(6)]
    assert len({*spread(same, 4)}) == 4


@pytest.mark.parametrize(
    ("options", "find", "count"),
    [
        ([], True, 30),  # 90 steps of 400 while the rate rises, three visits each
        (["edit.iterations=200"], True, 15),
        (["edit.iterations=50"], True, 8),
        (["edit.iterations=50", "edit.region.visits=1"], True, 11),
        (["edit.iterations=50", "edit.views=20"], True, 20),
        ([], False, None),
        (["edit=published"], True, None),
        (["edit.warmup=0"], True, None),
        (["edit.region.mask_threshold=0"], True, None),
    ],
)
def test_as_many_as_have_their_masks_when_the_rate_has_risen(options, find, count):
    assert most_views(load_config("edit", options), find) == count


@pytest.mark.parametrize("views", ["0", "2.5", "all"])
def test_wrong_numbers_are_told(views):
    with pytest.raises(UserError, match="edit.views"):
        most_views(load_config("edit", [f"edit.views={views}"]), True)


def seen(subject, steps):
    return [subject.pair(step).camera for step in steps]


def test_an_edit_is_made_through_the_chosen_cameras_alone(field, cameras):
    small = [camera.resized(32, 16) for camera in cameras]
    subject = field_views(field, small, LinearPrior(), views=2)
    chosen = spread(small, 2)
    assert sorted(seen(subject, [0, 1])) == sorted(seen(subject, [2, 3])) == chosen
    assert subject.cameras == [small[i] for i in chosen] and {*subject.views.made} == {*chosen}


def with_mask(subject):
    pair = subject.pair(0)
    subject.observe(pair, pair.backward(torch.ones_like(pair.source)))
    return subject


def test_a_longer_edit_goes_on_with_the_cameras_that_it_began_with(field, cameras):
    small = [camera.resized(32, 16) for camera in cameras]
    short = with_mask(field_views(field, small, LinearPrior(), mask_threshold=0.5, views=2))
    longer = field_views(field, small, LinearPrior(), mask_threshold=0.5, views=3)
    longer.load_state(short.state())
    assert longer.cameras == short.cameras and seen(longer, range(4)) == seen(short, range(4))
    assert longer.region.visited == short.region.visited == [short.pair(0).camera]


def test_a_state_of_an_earlier_version_goes_on_with_all_cameras(field, cameras):
    small = [camera.resized(32, 16) for camera in cameras]
    before = with_mask(field_views(field, small, LinearPrior(), mask_threshold=0.5))
    now = field_views(field, small, LinearPrior(), mask_threshold=0.5, views=2)
    now.load_state(before.region.state())
    assert now.cameras == small and now.region.visited == before.region.visited


@pytest.mark.parametrize("chosen", [[], [0, 99], [-1]])
def test_a_state_with_cameras_that_are_not_there_is_refused(chosen, field, cameras):
    subject = field_views(field, [camera.resized(32, 16) for camera in cameras], LinearPrior())
    with pytest.raises(ValueError, match="cameras"):
        subject.load_state({"masks": {}, "cameras": chosen})


def test_a_given_region_is_told_where_gradients_find_none(field, cameras):
    left = torch.zeros_like(field.occupancy)
    left[..., : left.shape[2] // 2] = True
    subject = field_views(field, [cameras[0].resized(32, 16)], LinearPrior(), given=left)  # no threshold, no masks
    assert torch.equal(subject.region_in_space(), left)


def test_the_command_chooses_them(field, cameras):
    small, config = [camera.resized(32, 16) for camera in cameras], load_config("edit", ["edit.views=2"])
    assert views_maker(config)(field, small, LinearPrior()).views.chosen == spread(small, 2)
    assert views_maker(load_config("edit", []))(field, small, LinearPrior()).cameras == small
