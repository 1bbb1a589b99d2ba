"""The compiled loops against plain torch: products, their gradients, the march; and what happens without numba."""

import pytest
import torch

from tensorf import lookup, occupancy
from tensorf.field import VM
from tensorf.lookup import plane_line_products
from tensorf.occupancy import occupied_samples


@pytest.fixture
def plain(monkeypatch):
    """Run a function without the compiled loops."""

    def run(function, *args, **options):
        with monkeypatch.context() as m:
            m.setattr(lookup, "compiled_for", lambda *tensors: False)
            m.setattr(occupancy, "compiled_for", lambda *tensors: False)
            return function(*args, **options)

    return run


@pytest.fixture
def grid():
    torch.manual_seed(0)
    return VM((5, 3, 1), (9, 2, 17), scale=1.0)


def points(n=200):
    """Some of them outside, and the box's corners."""
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    return torch.cat([x, torch.tensor([[1.0, 1, 1], [-1, -1, -1]])])


def test_the_compiled_loops_are_used_on_this_machine():
    assert lookup.compiled_for(torch.zeros(1)) and not lookup.compiled_for(torch.zeros(1).double())


@pytest.mark.parametrize("summed", [False, True])
def test_products_and_gradients_agree_with_grid_sample(grid, plain, summed):
    results = []
    for run in (plain, lambda f, *a, **o: f(*a, **o)):
        values = run(plane_line_products, grid.planes, grid.lines, points(), summed=summed)
        weight = torch.linspace(-1, 2, values.numel()).view(values.shape)
        results.append((values, *torch.autograd.grad((values * weight).sum(), list(grid.parameters()))))
    for expected, actual in zip(*results, strict=True):
        assert expected.shape == actual.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_tables_in_any_layout_give_the_same(grid):
    x = points()
    value = plane_line_products(grid.planes, grid.lines, x, summed=True)
    planes = [p.detach().contiguous().requires_grad_() for p in grid.planes]
    again = plane_line_products(planes, grid.lines, x, summed=True)
    assert torch.equal(value, again)
    again.sum().backward()
    value.sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(planes, grid.planes))


def test_threads_do_not_change_the_gradient(grid):
    before = torch.get_num_threads()
    gradients = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            values = grid(points(40_000))
            gradients.append(torch.autograd.grad(values.square().sum(), list(grid.parameters())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other))


def test_tables_of_one_point_are_left_to_plain_torch():
    torch.manual_seed(0)
    thin = VM((2, 1, 1), (5, 1, 4), scale=1.0)
    assert thin.total(points()).isfinite().all() and thin(points()).shape == (202, 4)


def test_no_points(grid):
    assert grid(points()[:0]).shape == (0, 9) and grid.total(points()[:0]).shape == (0,)


def test_a_value_that_is_not_finite_stays_so(grid):
    with torch.no_grad():
        grid.planes[0].fill_(float("nan"))
    assert grid.total(points()).isnan().all()


def test_positions_that_are_not_finite_do_no_harm(grid):
    x = points(3)
    x[0], x[1], x[2] = float("nan"), float("inf"), -float("inf")
    assert grid.total(x)[0].isnan() and grid.total(x)[3:].isfinite().all()
    grid.total(x)[3:].sum().backward()
    assert all(p.grad.isfinite().all() for p in grid.parameters())


@pytest.mark.parametrize("rays", [1, 3000])
def test_march_agrees_with_plain_torch(plain, rays):
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(5, 7, 3, generator=generator) < 0.4
    origin = torch.rand(rays, 3, generator=generator) * 3 - 1.5
    direction = torch.rand(rays, 3, generator=generator) * 2 - 1
    begin, end = torch.rand(2, rays, generator=generator)
    arguments = (cells, origin, direction, begin * 0.3, end, 0.02, 40)
    expected, actual = plain(occupied_samples, *arguments), occupied_samples(*arguments)
    # Rounding may decide about a sample that lies on a border.
    assert abs(len(actual.ray) - len(expected.ray)) <= 0.001 * len(expected.ray)
    assert (actual.ray.diff() >= 0).all()
    assert torch.equal(torch.bincount(actual.ray, minlength=rays).cumsum(0)[:-1], actual.first[1:])
    if len(actual.ray) == len(expected.ray):
        assert torch.equal(actual.ray, expected.ray) and torch.equal(actual.first, expected.first)
        assert torch.allclose(actual.x, expected.x, atol=1e-5) and torch.allclose(actual.t, expected.t, atol=1e-6)


def test_march_through_nothing():
    rays = (torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4), torch.ones(4))
    found = occupied_samples(torch.zeros(2, 2, 2, dtype=torch.bool), *rays, dt=0.1, steps=10)
    assert found.x.shape == (0, 3) and found.first.tolist() == [0] * 4


def test_without_numba_everything_works_in_plain_torch(grid, monkeypatch):
    expected = grid.total(points())
    monkeypatch.setattr(lookup, "kernels", lambda: None)
    assert not lookup.compiled_for(torch.zeros(1))
    assert torch.allclose(grid.total(points()), expected, atol=1e-5)
