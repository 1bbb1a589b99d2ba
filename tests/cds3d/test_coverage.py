"""A wall at z = 4 and cameras that face it: what is in how many photos follows by hand."""

from types import SimpleNamespace

import pytest
import torch

from cds3d.metrics.coverage import rarely_seen, shown_by
from tensorf.cameras import Camera
from tensorf.space import Space

FAR = 4.0
WIDTH, HEIGHT, FOCAL = 80, 60, 40.0  # a camera sees 4 to either side


def space(kind="unbounded"):
    return Space(kind, torch.tensor([[-9.0] * 3, [9.0] * 3]), 0.1, 20.0, torch.eye(3, 4))


def camera(x):
    pose = torch.eye(3, 4)
    pose[0, 3] = x
    return Camera(pose, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def wall(camera, opacity=1.0):
    """What a field of the wall renders; depth is distance along the ray."""
    depth = FAR * camera.pixel_rays()[1].norm(dim=1).view(camera.height, camera.width)
    return {"color": torch.full((*depth.shape, 3), 0.4), "opacity": torch.full_like(depth, opacity), "depth": depth}


def capture(photo, masks=None):
    """Three photos from the left, and one held out that sees from 0 to 8: half of it is in none of the others."""
    cameras = [camera(x) for x in (0.0, 0.2, 0.4, 4.0)]
    images = torch.full((4, HEIGHT, WIDTH, 3), 102, dtype=torch.uint8)  # 0.4
    images[3] = photo
    names = [f"{i}.png" for i in range(4)]
    return SimpleNamespace(cameras=cameras, train=[0, 1, 2], test=[3], images=images, masks=masks, image_names=names)


def field(opacity=1.0, kind="unbounded"):
    return SimpleNamespace(space=space(kind), render=lambda camera: wall(camera, opacity))


def columns(first, last, shade=153):
    photo = torch.full((HEIGHT, WIDTH, 3), 102, dtype=torch.uint8)
    photo[:, first:last] = shade
    return photo


def test_a_point_is_shown_where_it_is_in_the_picture_and_nothing_stands_before_it():
    left, here = camera(0.0), camera(4.0)
    free = wall(left)
    points = space().points(here, wall(here)["depth"])
    assert (shown_by(space(), points, [(left, free)])[0] == 1).tolist() == [True] * 40 + [False] * 40
    hidden = {**free, "depth": free["depth"].clone()}
    hidden["depth"][:, 60:] = 2.0  # from x = 2 on
    assert shown_by(space(), points, [(left, free), (left, hidden)])[0].tolist()[:40] == [2] * 20 + [1] * 20


@pytest.mark.parametrize("places", [256, 40])
@pytest.mark.parametrize("wrong, error", [((0, 80), 0.475), ((50, 60), 1.0), ((10, 20), 0.0)])
def test_the_share_and_its_error_by_hand(wrong, error, places, monkeypatch):
    monkeypatch.setattr("cds3d.metrics.coverage._PLACES", places)
    # The second of the three cameras sees to 4.2: column 42 of 80. Below that there are two photos or more.
    found = rarely_seen(field(), capture(columns(*wrong)))
    assert found.share == pytest.approx(0.475, abs=0.02) and found.error == pytest.approx(error, abs=0.02)
    assert found.photo == "3.png"


def test_around_an_object_nothing_is_missing():
    photo = columns(0, 80)
    assert rarely_seen(field(0.1, "box"), capture(photo)).share == 0
    assert rarely_seen(field(0.1, "unbounded"), capture(photo)).share > 0.4  # a hole


def test_hidden_pixels_do_not_count():
    masks = torch.ones(4, HEIGHT, WIDTH, dtype=torch.bool)
    masks[3, :, 60:] = False
    found = rarely_seen(field(), capture(columns(0, 80), masks))
    assert found.share == pytest.approx(18 / 60, abs=0.02) and found.error == pytest.approx(18 / 60, abs=0.02)


def test_without_error_or_held_out_photos_there_is_nothing_to_tell():
    assert rarely_seen(field(), capture(columns(0, 0))) is None
    nothing = capture(columns(0, 80))
    nothing.test = []
    assert rarely_seen(field(), nothing) is None
