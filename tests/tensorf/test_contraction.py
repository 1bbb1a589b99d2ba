"""Contracted space: its map by hand, the ray parameter by its definition, and both marches through it."""

import math

import pytest
import torch
import torch.nn.functional as F

import tensorf.occupancy as occupancy
from tensorf.cameras import Camera
from tensorf.contraction import SPAN, RayWarp, contract, expand
from tensorf.render import march, render_rays, render_view
from tensorf.space import Space
from tensorf.visibility import View


def unbounded(half=0.5, near=0.05):
    box = torch.tensor([[-half] * 3, [half] * 3]) + 0.1
    return Space("unbounded", box, near, 1000.0, torch.eye(3, 4), 0.4)


def random_rays(space, count=300):
    torch.manual_seed(0)
    origins = torch.randn(count, 3) * 1.5
    return space.cast(origins, F.normalize(torch.randn(count, 3), dim=1))


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        ((0.3, -0.9, 1.0), (0.3, -0.9, 1.0)),  # inside nothing moves
        ((2.0, 0, 0), (1.5, 0, 0)),  # 2 - 1 / 2
        ((1.0, -4.0, 2.0), (1.75 / 4, -1.75, 1.75 / 2)),  # (2 - 1 / 4) / 4 of each
        ((1e9, 1e9, 0), (2.0, 2.0, 0)),
    ],
)
def test_contraction_by_hand(u, expected):
    assert contract(torch.tensor(u)).tolist() == pytest.approx(expected, abs=1e-6)


def test_expansion_undoes_contraction():
    u = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 500)[:, None]
    torch.testing.assert_close(expand(contract(u)), u, rtol=1e-3, atol=1e-4)
    assert expand(torch.tensor([2.0, -2, 0.5])).isfinite().all()


def test_normalise_fills_the_cube():
    space = unbounded()
    assert space.normalise(torch.tensor([0.6, 0.1, -0.4])).tolist() == pytest.approx([0.5, 0, -0.5])
    assert space.normalise(torch.tensor([1e6, 0.1, 0.1])).tolist() == pytest.approx([1, 0, 0], abs=1e-5)


def test_course_by_hand():
    # Along +x from x = -3: into the box after 2, out of it after 4.
    warp = RayWarp.of(torch.tensor([[-3.0, 0.2, 0]]), torch.tensor([[1.0, 0, 0]]))
    assert (warp.enter.item(), warp.leave.item(), warp.reach.item()) == (2, 4, 1)
    s = torch.tensor([0.0, 1, 2, 3, 4, 5, 7, 1e8])
    t = [1 - 2 / 3, 1 - 1 / 2, 1, 2, 3, 3 + 1 / 2, 3 + 3 / 4, 4]
    assert warp.parameter(s).tolist() == pytest.approx(t, abs=1e-5)
    # Past the box at a distance of 3: closest to the centre after 2, and n is 3 there.
    warp = RayWarp.of(torch.tensor([[-2.0, 3, 0]]), torch.tensor([[1.0, 0, 0]]))
    assert (warp.enter.item(), warp.leave.item(), warp.reach.item()) == (2, 2, 3)
    assert warp.parameter(torch.tensor([5.0])).item() == pytest.approx(1 + 3 / 6)


def test_rays_past_the_box_are_nearest_to_its_centre_each_for_itself():
    # o + s d is nearest at s = -(o d) / (d d): 0.5 / 1.25 = 0.4, at (-1.6, 3.2); for the other 4 / 1.0625.
    origins = torch.tensor([[-2.0, 3, 0], [-4, 0, -3], [0, 0, 1.5]])
    directions = torch.tensor([[1.0, 0.5, 0], [1, 0.25, 0], [0, 1, 0]])
    warp = RayWarp.of(origins, directions)
    assert warp.enter.tolist() == warp.leave.tolist() == pytest.approx([0.4, 4 / 1.0625, 0])
    assert warp.reach.tolist() == pytest.approx([3.2, 3, 1.5])


def test_beyond_both_ends_the_distance_stays_finite():
    """t runs from 0 to 2 more than the length in the box, here 4; what lies 1e-4 before an end is as far as it gets."""
    warp = RayWarp.of(torch.tensor([[-3.0, 0.2, 0]]), torch.tensor([[1.0, 0, 0]]))
    for t, end in ((4.0, 4), (4.6, 4), (0.0, 2), (-0.6, 2)):
        far = (warp.distance(torch.tensor([t])) - end).item()
        assert far == pytest.approx(9999 if t > 2 else -9999, rel=1e-2)
        assert warp.rate(torch.tensor([t])).item() == pytest.approx(1e8, rel=2e-2)


def test_distance_undoes_parameter():
    rays = random_rays(unbounded())
    warp = RayWarp.of(rays.origins, rays.directions)
    for s in (0.0, 0.3, 1.0, 3.0, 20.0, 300.0):
        t = warp.parameter(torch.full((300,), s))
        assert (t > 0).all() and (t < SPAN).all()
        assert torch.allclose(warp.distance(t), torch.full((300,), s), rtol=2e-3, atol=1e-4)


def test_rate_is_the_derivative_of_the_distance():
    rays = random_rays(unbounded())
    warp = RayWarp.of(rays.origins, rays.directions)
    double = RayWarp(warp.enter.double(), warp.leave.double(), warp.reach.double())
    for t in (0.3, 0.9, 1.2, 2.2, 2.9):
        at = torch.full((300,), t, dtype=torch.float64)
        slope = (double.distance(at + 1e-6) - double.distance(at - 1e-6)) / 2e-6
        there = at < 1.9 + warp.leave - warp.enter  # t ends at 2 more than the box's length
        smooth = (slope - double.rate(at)).abs() < 1e-3 * slope  # all but the rays that enter or leave right here
        assert there.sum() >= 10 and smooth[there].double().mean() > 0.98


def test_rays_reach_points_where_they_say():
    space = unbounded()
    torch.manual_seed(1)
    origins, points = torch.randn(100, 3), torch.randn(100, 3) * 3
    rays = space.cast(origins, points - origins)
    t = space.parameter(points, rays)
    distance = (points - origins).norm(dim=1)
    assert torch.allclose(space.depth(t, rays), distance, rtol=1e-3)
    warp = RayWarp.of(rays.origins, rays.directions)
    u = rays.origins + warp.distance(t)[:, None] * rays.directions
    assert torch.allclose(u, (points - 0.1) / 0.5, atol=2e-2)


def test_both_marches_agree(monkeypatch, make_field):
    space = unbounded()
    field, rays = make_field(space=space, steps=60), random_rays(space)
    field.occupancy = torch.rand(5, 6, 7) > 0.4
    jitter = torch.rand(len(rays))
    compiled = march(field, rays, jitter)
    monkeypatch.setattr(occupancy, "compiled_for", lambda *tensors: False)
    plain = march(field, rays, jitter)
    # Rounding may put a sample right at a cell's face on either side.
    assert abs(len(compiled.x) - len(plain.x)) <= 3
    if len(compiled.x) == len(plain.x):
        for name in ("x", "ray", "t", "step", "first"):
            assert torch.allclose(getattr(compiled, name).float(), getattr(plain, name).float(), atol=1e-3, rtol=1e-3)
    assert len(compiled.x) > 1000


def test_steps_are_lengths_between_samples(make_field):
    space = unbounded()
    field, rays = make_field(space=space, steps=2000), random_rays(space, 20)
    samples = march(field, rays)
    world = space.distance(samples.t, rays, samples.ray)
    middle = (samples.ray[2:] == samples.ray[:-2]) & (world[1:-1] < 20)
    # In units of the inner box's half size, along its longest component.
    unit = space.distance(torch.full((20,), 1.5), rays, torch.arange(20)) * 0 + space._unit(rays.viewdirs)
    between = (world[2:] - world[:-2]) / 2 / unit[samples.ray[1:-1]]
    close = (between - samples.step[1:-1]).abs() < 0.05 * between
    assert close[middle].float().mean() > 0.97


def test_cameras_see_a_wall_at_its_distance(make_field):
    # Everything beyond x = 2 is solid, far outside the inner box.
    space = unbounded()
    field = make_field(space=space, steps=400, gain=1.0)
    solid = lambda x: torch.where(x[:, 0] > 0.5 * (2 - 0.5 / 1.9), 1e4, 0.0)  # noqa: E731  contracted, halved
    field.density = solid
    pose = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])  # at the origin, looking along +x
    camera = Camera(pose, 20.0, 20.0, 4.0, 4.0, 8, 8)
    view = render_view(field, camera)
    assert (view["opacity"] > 0.99).all()
    points = space.points(camera, view["depth"])
    assert torch.allclose(points[..., 0], torch.full((8, 8), 2.0), rtol=0.05)
    assert torch.allclose(space.depth_of(camera, points), view["depth"], rtol=1e-4)


def test_a_view_of_unbounded_space_is_its_render(make_field):
    space = unbounded()
    field = make_field(space=space, steps=60)
    camera = Camera(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5]]), 9.0, 9.0, 4.5, 3.5, 9, 7)
    view, full = View(field, camera), render_view(field, camera)["color"]
    assert torch.allclose(view.full, full, atol=1e-5)
    assert torch.allclose(view.color(field).view(7, 9, 3), full, atol=1e-4)


def test_near_cuts_what_is_before_it(make_field):
    rays = random_rays(unbounded(near=0.7), 50)
    field = make_field(space=unbounded(near=0.7), steps=200)
    samples = march(field, rays)
    first = field.space.distance(samples.t, rays, samples.ray)[samples.first]
    assert first.min() > 0.69
    assert math.isfinite(render_rays(field, rays).color.sum().item())


def test_rays_that_are_no_numbers_meet_nothing():
    """Such as those of a lens with a focal length of zero, or nearly: the compiled march must not read at them."""
    space = unbounded()
    origin, direction = torch.zeros(3, 3), torch.full((3, 3), float("nan"))
    direction[1], direction[2] = float("inf"), torch.tensor([0.0, 0.0, 1.0])
    warp = RayWarp(torch.zeros(3), torch.ones(3), torch.ones(3))
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    found = occupancy.occupied_samples(full, origin, direction, torch.zeros(3), torch.full((3,), 2.0), 0.1, 20, warp)
    assert space.kind == "unbounded" and set(found.ray.tolist()) == {2}
