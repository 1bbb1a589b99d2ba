"""Occupancy: cells by hand, and what a measurement of a hand-made field keeps."""

import pytest
import torch

from tensorf.cameras import Camera
from tensorf.occupancy import Samples, cell_index, grown, occupied_samples
from tensorf.pruning import measure, occupied_box
from tensorf.render import render_rays
from tensorf.space import Rays

MOST = 0.005  # of all weight may be pruned


def is_occupied(occupancy, points):
    """(n,) bool: whether a ray that stands at the point finds a sample."""
    n = len(points)
    rays = (points, torch.zeros(n, 3), torch.zeros(n), torch.ones(n))
    found = occupied_samples(occupancy, *rays, dt=1.0, steps=1).ray
    return torch.isin(torch.arange(n), found)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        # Cells (z, y, x) = (2, 3, 4): x in halves of a half, y in thirds, z in halves.
        # Marked: z 1 = [0, 1], y 2 = [1/3, 1], x 0 = [-1, -0.5].
        ((-0.75, 0.5, 0.5), True),
        ((-0.51, 0.34, 0.01), True),
        ((-1.0, 1.0, 1.0), True),  # the box's very corner
        ((-0.49, 0.5, 0.5), False),
        ((-0.75, 0.32, 0.5), False),
        ((-0.75, 0.5, -0.01), False),
        ((-1.01, 0.5, 0.5), False),  # outside
        ((-0.75, 1.01, 0.5), False),
        ((-0.75, 0.5, 1.01), False),
    ],
)
def test_cells_by_hand(point, expected):
    occupancy = torch.zeros(2, 3, 4, dtype=torch.bool)
    occupancy[1, 2, 0] = True
    assert is_occupied(occupancy, torch.tensor([point])).item() is expected


def test_outside_is_never_occupied():
    x = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1.001, 0, 0], [0, -1.001, 0], [0, 0, 50]])
    for occupancy in (torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(2, 3, 4, dtype=torch.bool)):
        assert is_occupied(occupancy, x).tolist() == [True, True, False, False, False]


def test_cell_index_runs_x_first():
    # (z, y, x) = (2, 3, 4); (0.6, 0, -0.5) is x 3, y 1, z 0: (0 * 3 + 1) * 4 + 3 = 7. (-0.6, -0.9, 0.5): z 1 -> 12.
    assert cell_index((2, 3, 4), torch.tensor([[0.6, 0.0, -0.5], [-0.6, -0.9, 0.5]])).tolist() == [7, 12]
    assert cell_index((2, 3, 4), torch.ones(1, 3)).tolist() == [23]


@pytest.fixture
def walled(make_field):
    """Empty but for an opaque block around (0.5, 0, -0.5), and a smaller one at (0.5, 0, 0.5) behind it."""
    field = make_field(resolution=(17, 17, 17), steps=100, density_components=(2, 1, 1), density_shift=-12.0)
    with torch.no_grad():
        for p in field.density_grid.parameters():
            p.zero_()
        # Grid points lie 0.125 apart, the first at -1; values fade out up to the next point.
        field.density_grid.planes[0][0, 7:10, 10:15] = 1.0  # y -0.125 to 0.125, x 0.25 to 0.75
        field.density_grid.lines[0][0, 3:6] = 30.0  # z -0.625 to -0.375
        field.density_grid.planes[0][1, 8, 12] = 1.0  # y 0, x 0.5
        field.density_grid.lines[0][1, 11:14] = 30.0  # z 0.375 to 0.625
    return field


def rays_along_z(field, sign=1.0):
    """Parallel to within a few degrees, over the whole face of the cube."""
    pose = torch.diag(torch.tensor([1.0, sign, sign]))
    pose = torch.cat([pose, torch.tensor([[0.0], [0], [-8 * sign]])], 1)
    return field.space.rays(Camera(pose, 320.0, 320.0, 40.0, 40.0, 80, 80))


def occupied_at(occupancy, *point):
    return is_occupied(occupancy, torch.tensor([point])).item()


def test_measure_keeps_what_is_seen(walled):
    occupancy = measure(walled, rays_along_z(walled), 1e-2, cells=16, most=MOST, dilate=0)
    assert occupancy.shape == (16, 16, 16) and occupancy.dtype == torch.bool
    assert occupied_at(occupancy, 0.5, 0.0, -0.68)  # the front
    assert not any(occupied_at(occupancy, 0.5, 0.0, z) for z in (0.3, 0.5, 0.68))  # hidden behind it
    assert not occupied_at(occupancy, 0.5, 0.0, -0.95)  # empty: before, beside, below
    assert not occupied_at(occupancy, -0.5, 0.0, -0.5)
    assert not occupied_at(occupancy, 0.5, 0.6, -0.5)


def test_measure_from_both_sides_keeps_both(walled):
    both = Rays.concatenate([rays_along_z(walled), rays_along_z(walled, -1.0)])
    occupancy = measure(walled, both, 1e-2, cells=16, most=MOST, dilate=0, chunk=1000)
    assert occupied_at(occupancy, 0.5, 0.0, -0.68) and occupied_at(occupancy, 0.5, 0.0, 0.68)
    assert not occupied_at(occupancy, 0.5, 0.0, 0.0)  # empty between them
    assert torch.equal(occupancy, measure(walled, both, 1e-2, cells=16, most=MOST, dilate=0))


def test_dilation_grows_by_whole_cells(walled):
    rays = rays_along_z(walled)
    tight = measure(walled, rays, 1e-2, cells=16, most=MOST, dilate=0)
    grown = measure(walled, rays, 1e-2, cells=16, most=MOST, dilate=1)
    neighbours = torch.nn.functional.max_pool3d(tight[None].float(), 3, 1, 1)[0] > 0
    assert torch.equal(grown, neighbours) and grown.sum() > tight.sum()


def test_cells_follow_the_resolution(make_field):
    field = make_field(resolution=(16, 8, 4))
    shape = measure(field, field.space.rays(Camera(torch.eye(3, 4), 9, 9, 1, 1, 2, 2)), 1e-2, cells=16, most=MOST).shape
    assert tuple(shape) == (4, 8, 16)  # (z, y, x)


def test_rays_that_see_nothing_keep_nothing(walled):
    pose = torch.eye(3, 4)
    pose[:, 3] = torch.tensor([50.0, 50, 0])
    rays = walled.space.rays(Camera(pose, 9.0, 9.0, 1.0, 1.0, 2, 2))
    assert not measure(walled, rays, 1e-2, cells=16, most=MOST).any()


def test_fog_is_not_emptiness(make_field, camera):
    # Nothing reaches the threshold as long as a field is even fog: then the strongest weights count.
    field = make_field(gain=0.0, steps=12, density_shift=-9.0)
    occupancy = measure(field, field.space.rays(camera.resized(36, 28)), 1e-2, cells=6, most=MOST)
    assert occupied_at(occupancy, 0.0, 0.0, 0.0) and occupied_at(occupancy, 0.0, 0.0, 0.9)


def test_occupied_box_by_hand(make_field, make_space):
    field = make_field(space=make_space().with_box(torch.tensor([[0.0, 0, 0], [8, 6, 2]])))
    field.occupancy = torch.zeros(2, 3, 4, dtype=torch.bool)  # cells of 2 x 2 x 1 along x, y, z
    field.occupancy[1, 0, 1] = field.occupancy[1, 1, 2] = True  # x cells 1, 2: 2 to 6; y 0, 1: 0 to 4; z 1: 1 to 2
    assert occupied_box(field).tolist() == [[2.0, 0, 1], [6, 4, 2]]


def test_occupied_box_of_nothing_is_the_box(make_field):
    field = make_field()
    field.occupancy = torch.zeros(2, 3, 4, dtype=torch.bool)
    assert torch.equal(occupied_box(field), field.space.box)


def test_occupied_box_holds_the_measured_blob(walled):
    walled.occupancy = measure(walled, rays_along_z(walled), 1e-2, cells=16, most=MOST, dilate=0)
    low, high = occupied_box(walled)
    # The front block fades out over a grid step (0.125) around x 0.25..0.75, y -0.125..0.125, z -0.625..-0.375.
    assert (low <= torch.tensor([0.25, -0.125, -0.6])).all() and (low >= torch.tensor([0.0, -0.4, -0.8])).all()
    assert (high >= torch.tensor([0.75, 0.125, -0.6])).all() and (high <= torch.tensor([1.0, 0.4, -0.2])).all()


def test_subset_keeps_the_rays_and_where_their_samples_start():
    ray = torch.tensor([0, 0, 2, 2, 2])
    samples = Samples(
        torch.arange(15.0).view(5, 3), ray, torch.arange(5.0), torch.arange(5.0) + 10, torch.tensor([0, 2, 2, 5]), 4
    )
    few = samples.subset(torch.tensor([1, 2, 4]))
    assert few.ray.tolist() == [0, 2, 2] and few.t.tolist() == [1, 2, 4] and few.rays == 4
    assert few.first.tolist() == [0, 1, 1, 3] and torch.equal(few.x, samples.x[[1, 2, 4]])


def test_pruning_fog_takes_hardly_any_of_it_away(make_field, make_space, camera):
    # Thin fog everywhere: each sample weighs less than the threshold, and together they are the picture.
    field = make_field(space=make_space(), steps=200)
    field.density = lambda x: torch.where(x[:, 0] > 0, 0.4, 1e-5)
    rays = field.space.rays(camera.resized(36, 28))
    before = render_rays(field, rays).opacity
    field.occupancy = measure(field, rays, 1e-2, cells=16, most=MOST, dilate=0)
    after = render_rays(field, rays).opacity
    assert before.mean() > 0.15
    assert (before - after).mean() < 0.01 * before.mean()
    assert not field.occupancy[:, :, :7].any()  # where there is nothing to lose


def plain_march(monkeypatch, *rays, warp=None):
    """Samples by the torch operations that a GPU uses."""
    monkeypatch.setattr("tensorf.occupancy.compiled_for", lambda *_: False)
    return occupied_samples(torch.ones(8, 8, 8, dtype=torch.bool), *rays, dt=0.1, steps=30, warp=warp)


def test_without_compiled_loops_rays_of_nan_have_no_samples_either(monkeypatch):
    origin, direction = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [float("nan"), 1, 0]])
    rays = origin, direction, torch.full((2,), 0.1), torch.full((2,), 3.0)
    compiled = occupied_samples(torch.ones(8, 8, 8, dtype=torch.bool), *rays, dt=0.1, steps=30)
    plain = plain_march(monkeypatch, *rays)
    assert plain.ray.tolist() == compiled.ray.tolist() == [0] * len(plain.x) and len(plain.x) > 5


def test_indices_of_cells_lie_in_the_grid_whatever_the_points():
    points = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-float("inf")] * 3, [9.0, -9.0, 0.0]])
    index = cell_index((2, 3, 4), points)
    assert index.min() >= 0 and index.max() < 24


def test_samples_have_their_rays_type_whatever_torchs_default_is(monkeypatch):
    rays = torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.ones(1)
    expected = plain_march(monkeypatch, *rays)
    torch.set_default_dtype(torch.float64)
    try:
        found = plain_march(monkeypatch, *rays)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.t.dtype == found.x.dtype == torch.float32 and torch.equal(found.t, expected.t)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_cells_grow_by_cubes(radius):
    torch.manual_seed(0)
    numbers, expected = torch.rand(4, 5, 6), torch.zeros(4, 5, 6)
    for place in torch.cartesian_prod(*map(torch.arange, numbers.shape)).tolist():
        expected[tuple(place)] = numbers[tuple(slice(max(0, k - radius), k + radius + 1) for k in place)].max()
    assert torch.equal(grown(numbers, radius), expected)
    assert torch.equal(grown(numbers > 0.9, radius), expected > 0.9)
