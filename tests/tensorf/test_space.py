"""Spaces: NDC's formula and a box's entry and exit by hand; straight rays stay straight."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tensorf.cameras import Camera
from tensorf.captures import Capture
from tensorf.captures.images import flat_background
from tensorf.errors import UserError
from tensorf.space import Rays, Space, space_of


def rotation(yaw, pitch):
    """(3, 3) about y, then about x, radians."""
    (cy, sy), (cp, sp) = [(a.cos(), a.sin()) for a in torch.tensor([yaw, pitch])]
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return about_y @ torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])


def pose_at(position, yaw=0.0, pitch=0.0):
    return torch.cat([rotation(yaw, pitch), torch.tensor(position)[:, None]], 1)


def ndc(reference=None, near=2.0):
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    return Space("ndc", box, near, 100.0, torch.eye(3, 4) if reference is None else reference)


def ndc_point(space, world):
    """The formula of the module's docstring, point by point: (x / z, y / z, 1 - 2 near / z)."""
    x, y, z = ((world - space.reference[:, 3]) @ space.reference[:, :3]).T
    return torch.stack([x / z, y / z, 1 - 2 * space.near / z], 1)


def test_ndc_ray_by_hand():
    # From (1, 0, 0) along (0.5, -0.25, 1), near = 2. On the near plane: (1 + 1, -0.5, 2) -> (1, -0.25, -1).
    # At infinity: (0.5, -0.25, 1).
    rays = ndc().cast(torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.5, -0.25, 1]]))
    assert rays.origins[0].tolist() == [1.0, -0.25, -1.0]
    assert (rays.origins + rays.directions)[0].tolist() == [0.5, -0.25, 1.0]
    assert (rays.t_near.item(), rays.t_far.item()) == (0.0, 1.0)
    # At depth 4 the point is (3, -1, 4) -> (0.75, -0.25, 1 - 4 / 4 = 0), and t = 1 - 2 / 4 = 0.5.
    assert (rays.origins + 0.5 * rays.directions)[0].tolist() == [0.75, -0.25, 0.0]


def test_straight_world_rays_are_straight_in_ndc():
    space = ndc(reference=pose_at([0.3, -0.2, 0.5], yaw=0.7, pitch=-0.4), near=1.5)
    camera = Camera(pose_at([0.5, 0.1, 0.3], yaw=0.9, pitch=-0.3), 9.0, 9.0, 4.5, 3.5, 9, 7)
    origins, directions = camera.pixel_rays()
    rays = space.rays(camera)
    for depth in (1.5, 1.6, 4.0, 60.0):  # along the reference axis
        o = (origins - space.reference[:, 3]) @ space.reference[:, 2]
        along = ((depth - o) / (directions @ space.reference[:, 2]))[:, None]
        expected = ndc_point(space, origins + along * directions)
        t = 1 - space.near / depth
        assert torch.allclose(rays.origins + t * rays.directions, expected, atol=2e-5), depth


def test_ndc_depth_undoes_t():
    space = ndc()
    z = torch.tensor([2.0, 2.5, 4, 50, 1000])
    rays = Rays(*(torch.zeros(5, 3),) * 3, torch.zeros(5), torch.ones(5))
    assert torch.allclose(space.depth(1 - space.near / z, rays), z, rtol=1e-4)
    assert space.depth(torch.ones(5), rays).isfinite().all()  # nothing but the sky


def test_ndc_view_directions_are_unit_and_in_the_reference_frame():
    reference = pose_at([0.0, 0, 0], yaw=0.8)
    rays = ndc(reference).cast(torch.zeros(1, 3), 3 * reference[None, :, 2])
    assert torch.allclose(rays.viewdirs, torch.tensor([[0.0, 0, 1]]), atol=1e-6)


@pytest.mark.parametrize("direction", [(1.0, 0, 0.01), (0.0, 0, -1), (0.0, 1, 0)])
def test_sideways_camera_cannot_be_held_in_ndc(direction):
    with pytest.raises(UserError, match="space=unbounded"):
        ndc().cast(torch.zeros(2, 3), torch.tensor([(0.0, 0, 1), direction]))


@pytest.mark.parametrize(
    ("origin", "direction", "near", "far", "t_near", "t_far"),
    [
        ((0.0, 0, -3), (0, 0, 1), 0.1, 10, 2, 4),  # through the cube's middle
        ((0.0, 0, 0.5), (0, 0, 1), 0.1, 10, 0.1, 0.5),  # from inside: from near to the face at z = 1
        ((0.0, 0, 0.5), (0, 0, 1), 0.1, 0.3, 0.1, 0.3),  # far ends it before the face
        # Direction (0, 0.75, 1) has length 1.25, unit (0, 0.6, 0.8): z = -1 after 0.8 / 0.8, y = 1 after 1 / 0.6.
        ((0.0, 0, -1.8), (0, 0.75, 1), 0.1, 10, 1, 1 / 0.6),
        # Bounds are depths: 1.2 along the axis is 1.5 along this ray.
        ((0.0, 0, -1.8), (0, 0.75, 1), 1.2, 10, 1.5, 1 / 0.6),
        ((0.0, 0, -1.8), (0, 0.75, 1), 0.1, 1.2, 1, 1.5),
    ],
)
def test_box_entry_and_exit_by_hand(origin, direction, near, far, t_near, t_far):
    space = Space("box", torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), near, far, torch.eye(3, 4))
    rays = space.cast(torch.tensor([origin]), torch.tensor([direction]).float())
    assert rays.t_near.item() == pytest.approx(t_near, abs=1e-5)
    assert rays.t_far.item() == pytest.approx(t_far, abs=1e-5)
    assert rays.directions.norm().item() == pytest.approx(1)
    assert torch.equal(space.depth(rays.t_far, rays), rays.t_far)  # t is the distance


@pytest.mark.parametrize(
    ("origin", "direction"),
    [((0.0, 2, -3), (0, 0, 1)), ((0.0, 0, 3), (0, 0, 1)), ((-3.0, 0, -3), (1, 0, 0.2)), ((0.0, 1.5, 0), (1, 1, 1))],
)
def test_rays_that_miss_the_box_have_no_stretch(origin, direction):
    space = Space("box", torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 0.1, 10.0, torch.eye(3, 4))
    rays = space.cast(torch.tensor([origin]), torch.tensor([direction]).float())
    assert rays.t_far.item() == rays.t_near.item()


def test_normalise_maps_the_box_to_the_unit_cube():
    space = ndc().with_box(torch.tensor([[-1.0, 0, 2], [3, 1, 6]]))
    # Halfway of x is 1, a quarter of y is 0.25, the high end of z is 6.
    assert space.normalise(torch.tensor([1.0, 0.25, 6])).tolist() == [0.0, -0.5, 1.0]


@pytest.mark.parametrize("kind", ["ndc", "box", "unbounded"])
def test_world_undoes_normalise(kind):
    reference = pose_at([0.3, -0.2, 0.5], yaw=0.7, pitch=-0.4)
    box = torch.tensor([[-1.2, -0.9, -1], [1.1, 1.3, 1]])
    space = Space(kind, box, near=1.5, far=50.0, reference=reference)
    local = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 2, 12]) - 1
    local[:, 2] += 2.6  # before the near plane nothing is
    world = local @ reference[:, :3].T + reference[:, 3]
    x = space.normalise(ndc_point(space, world) if kind == "ndc" else world)
    torch.testing.assert_close(space.world(x), world, rtol=1e-3, atol=1e-3)


def test_t_span_is_the_longest_stretch():
    box = torch.tensor([[0.0, 0, 0], [2, 3, 6]])  # diagonal: sqrt(4 + 9 + 36) = 7
    assert Space("box", box, 0.1, 10.0, torch.eye(3, 4)).t_span == 7.0
    assert ndc().t_span == 1.0


def test_rays_are_indexed_and_joined_alike(camera, make_space):
    rays = make_space().rays(camera)
    joined = Rays.concatenate([rays[:20], rays[20:]])
    assert len(rays) == len(joined) == 63
    for name in Rays.__dataclass_fields__:
        assert torch.equal(getattr(joined, name), getattr(rays, name)), name


def tiny_capture(cameras, **changes):
    capture = Capture(
        name="tiny",
        root=Path(),
        cameras=cameras,
        images=torch.zeros(len(cameras), 7, 9, 3, dtype=torch.uint8),
        image_names=["x"] * len(cameras),
        train=list(range(len(cameras))),
        test=[],
        near=1.0,
        far=20.0,
        space="ndc",
        background="black",
        box=torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]]),
        reference=torch.eye(3, 4),
        world_from_capture=torch.eye(4),
    )
    return replace(capture, **changes)


PLACES = [([0.4, 0.0, 0.1], 0.25, 0.0), ([-0.4, 0.1, 0.0], -0.25, 0.1), ([0.0, -0.3, -0.1], 0.0, -0.2)]


@pytest.mark.parametrize("places", [PLACES, [([0.0, 0.0, 0.0],)]], ids=["three cameras", "one"])
def test_space_of_a_forward_facing_capture_holds_all_rays(places):
    cameras = [Camera(pose_at(*place), 9.0, 9.0, 4.5, 3.5, 9, 7) for place in places]
    space = space_of(tiny_capture(cameras))
    assert space.kind == "ndc" and space.background == 0.0
    assert 0 < space.near <= 1.0  # never behind the nearest thing seen
    used = []
    for camera in cameras:
        rays = space.rays(camera.resized(90, 70))  # finer than the photos: pixels nearer to the border
        ends = space.normalise(torch.stack([rays.origins, rays.origins + rays.directions]))
        assert (ends.abs() <= 1 + 1e-6).all()
        used.append(ends)
    widest = torch.cat(used).flatten(0, 1).abs().amax(0)
    assert (widest > 0.85).all()  # and the box is no larger than it has to be


def test_space_of_other_captures_is_their_box():
    cameras = [Camera(pose_at([0.0, 0, -1]), 9.0, 9.0, 4.5, 3.5, 9, 7)]
    space = space_of(tiny_capture(cameras, space="box", background="white"))
    assert (space.kind, space.near, space.far, space.background) == ("box", 1.0, 20.0, 1.0)
    assert space.box.tolist() == [[-1.5] * 3, [1.5] * 3]


@pytest.fixture
def converted(monkeypatch):
    """How many numbers each tensor has that is converted to floats or ints."""
    sizes = []
    for name in ("float", "double", "int"):
        convert = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, f=convert: sizes.append(t.numel()) or f(t))
    return sizes


def test_behind_unbounded_space_is_the_mean_grey_of_the_training_photos(converted):
    cameras = [Camera(pose_at([0.0, 0, -1]), 9.0, 9.0, 4.5, 3.5, 9, 7)] * 5
    images = torch.randint(0, 256, (5, 7, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[1] = 255
    capture = tiny_capture(cameras, space="unbounded", images=images, train=[0, 2, 3], test=[1, 4])
    background = space_of(capture).background
    assert max(converted) == 7 * 9 * 3  # all photos as floats could fill the memory
    assert background == pytest.approx(images[capture.train].float().mean().item() / 255, rel=1e-6)


def test_a_flat_background_is_looked_for_photo_by_photo(converted):
    images = torch.full((20, 30, 40, 3), 255, dtype=torch.uint8)
    images[:, 5:20, 5:20] = 90
    assert flat_background(images) == "white"
    images[:, 0, :3] = 0  # 3 of 136 pixels of the rim
    assert flat_background(images) == "white"
    images[:2] = 90  # two photos of twenty
    assert flat_background(images) is None
    assert max(converted) <= 30 * 40 * 3


def test_near_plane_of_ndc_lies_before_the_nearest_depth(ndc_capture):
    # A margin: bounds from sparse points cut into near surfaces.
    assert space_of(ndc_capture).near == pytest.approx(0.75 * ndc_capture.near)
