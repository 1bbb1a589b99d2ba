"""Which samples stand for which, by hand and on random rays."""

import pytest
import torch

from tensorf import quadrature
from tensorf.occupancy import Samples
from tensorf.quadrature import representatives


def packed(ray, rays):
    ray = torch.as_tensor(ray)
    zeros = torch.zeros(len(ray))
    return Samples(zeros[:, None].expand(-1, 3), ray, zeros, zeros, torch.searchsorted(ray, torch.arange(rays)), rays)


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """By the compiled loop, and by plain torch."""
    if request.param == "plain":
        monkeypatch.setattr(quadrature, "compiled_for", lambda *tensors: False)


def test_thin_samples_are_gathered_in_groups_of_equal_weight(way):
    # Eight samples of an eighth, two groups: four each; 0.4 of the way through its group is in the second of them.
    which = representatives(torch.full((8,), 0.1), packed([0] * 8, 1), groups=2, place=0.4)
    assert which.tolist() == [1, 1, 1, 1, 5, 5, 5, 5]


def test_place_moves_the_choice_within_a_group(way):
    samples = packed([0] * 8, 1)
    choose = lambda place: representatives(torch.full((8,), 0.1), samples, 2, place).unique().tolist()  # noqa: E731
    assert choose(0.01) == [0, 4] and choose(0.99) == [3, 7]
    assert choose(torch.tensor([0.7])) == [2, 6]


def test_heavy_samples_stand_for_themselves_and_for_no_other(way):
    # A quarter or more of the ray's weight is heavy; the four thin ones share 0.2 of it, half before, half behind.
    weights = torch.tensor([0.05, 0.05, 0.8, 0.05, 0.05])
    which = representatives(weights, packed([0] * 5, 1), groups=4)
    assert which.tolist() == [0, 1, 2, 3, 4]
    assert representatives(weights, packed([0] * 5, 1), groups=2, place=0.4).tolist() == [0, 0, 2, 3, 3]


def test_rays_do_not_mix(way):
    weights = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.1, 0.5])
    samples = packed([0, 2, 2, 2, 2, 5], 7)  # rays 1, 3, 4 and 6 are empty
    which = representatives(weights, samples, groups=1)
    assert (samples.ray[which] == samples.ray).all() and which[0] == 0 and which[5] == 5


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_random_rays(groups):
    generator = torch.Generator().manual_seed(groups)
    ray = torch.randint(50, (3000,), generator=generator).sort().values
    samples, weights = packed(ray, 50), torch.rand(3000, generator=generator) ** 8
    for place in (0.0, 0.5, torch.rand(50, generator=generator), 0.999):
        which = representatives(weights, samples, groups, place)
        assert torch.equal(ray[which], ray)
        chosen = which.unique()
        assert torch.bincount(ray[chosen], minlength=50).max() <= 2 * groups + 1
        share = torch.zeros(3000).index_add(0, which, weights)[chosen]
        total = torch.zeros(50).index_add(0, ray, weights)[ray[chosen]]
        heavy = weights[chosen] * groups >= total
        # No group of thin ones is much above its share: its own weight and less than one sample's more.
        assert (share[~heavy] <= 2 * total[~heavy] / groups + 1e-6).all()


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_compiled_loop_agrees_with_plain_torch(groups, monkeypatch):
    generator = torch.Generator().manual_seed(groups)
    ray = torch.randint(300, (9000,), generator=generator).sort().values
    samples, weights = packed(ray, 300), torch.rand(9000, generator=generator) ** 8
    places = (0.5, torch.rand(300, generator=generator), 0.999)
    loop = [representatives(weights, samples, groups, place) for place in places]
    monkeypatch.setattr(quadrature, "compiled_for", lambda *tensors: False)
    for which, place in zip(loop, places):
        # Sums in another order may send a sample at the edge of a group to the other side.
        assert (which != representatives(weights, samples, groups, place)).sum() <= 3


def test_nothing_and_no_weight(way):
    assert representatives(torch.zeros(0), packed(torch.zeros(0, dtype=torch.int64), 3), 4).shape == (0,)
    which = representatives(torch.zeros(5), packed([0, 0, 1, 1, 1], 2), 4)
    assert which.tolist() == [0, 1, 2, 3, 4]  # all are as heavy as their ray


def test_rays_are_many(way):
    """More than one task of the compiled loop takes: four thin samples, in two groups, and a heavy one on each."""
    rays = 2500
    samples = packed(torch.arange(rays).repeat_interleave(5), rays)
    weights = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.6]).repeat(rays)
    which = representatives(weights, samples, groups=2, place=0.9)
    assert torch.equal(which.view(rays, 5), 5 * torch.arange(rays)[:, None] + torch.tensor([1, 1, 3, 3, 4]))
