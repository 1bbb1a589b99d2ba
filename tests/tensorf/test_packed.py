"""Sums along rays of packed samples: by hand, differentiable, and exact over millions of samples."""

from unittest import mock

import numpy as np
import pytest
import torch

from tensorf.occupancy import Samples
from tensorf.packed import exclusive_sum, ray_sum, split_indices


def packed(ray, rays):
    ray = torch.as_tensor(ray)
    zeros = torch.zeros(len(ray))
    return Samples(zeros[:, None].expand(-1, 3), ray, zeros, zeros, torch.searchsorted(ray, torch.arange(rays)), rays)


FIVE = packed([1, 1, 1, 3, 3], rays=5)  # rays 0, 2 and 4 have none
VALUES = [1.0, 2.0, 4.0, 8.0, 16.0]


def test_five_samples_by_hand():
    values = torch.tensor(VALUES)
    assert exclusive_sum(values, FIVE).tolist() == [0, 1, 3, 0, 8]
    assert ray_sum(values, FIVE).tolist() == [0, 7, 0, 24, 0]


def test_a_last_ray_of_one_sample():
    assert exclusive_sum(torch.tensor([1.0, 2.0, 4.0]), packed([0, 0, 1], rays=2)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("count", [None, 300])
def test_indices_that_are_split(elsewhere, count):
    """On a GPU they are sorted, where the CPU looks for those that are not zero."""
    mask = torch.zeros(600, dtype=torch.bool)
    mask[::2] = True
    if elsewhere:
        mask = mock.Mock(device=torch.device("cuda"), sum=mask.sum, sort=mask.sort)
    holds, rest = split_indices(mask, count)
    assert holds.tolist() == list(range(0, 600, 2)) and rest.tolist() == list(range(1, 600, 2))
    assert holds.dtype == rest.dtype == torch.int64


def test_types():
    assert exclusive_sum(torch.tensor(VALUES), FIVE).dtype == torch.float64
    assert ray_sum(torch.tensor(VALUES), FIVE).dtype == torch.float32
    assert ray_sum(torch.tensor(VALUES).double(), FIVE).dtype == torch.float64


def test_no_samples_at_all():
    none = packed(torch.zeros(0, dtype=torch.int64), rays=3)
    assert (
        exclusive_sum(torch.zeros(0), none).shape == (0,) and exclusive_sum(torch.zeros(0), none).dtype == torch.float64
    )
    assert ray_sum(torch.zeros(0), none).tolist() == [0, 0, 0]
    assert ray_sum(torch.zeros(0), packed(torch.zeros(0, dtype=torch.int64), rays=0)).shape == (0,)


def test_gradients_by_hand():
    values, scale = torch.tensor(VALUES, requires_grad=True), torch.tensor([1.0, 10, 100, 1000, 10000])
    # The sum of scale x what lies before: a value counts for the samples behind it on its ray.
    (gradient,) = torch.autograd.grad((exclusive_sum(values, FIVE) * scale).sum(), values)
    assert gradient.tolist() == [110, 100, 0, 10000, 0]
    (gradient,) = torch.autograd.grad((ray_sum(values, FIVE) * scale).sum(), values)
    assert gradient.tolist() == [10, 10, 10, 1000, 1000]


def test_exact_over_millions_of_samples():
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(0, 60, (100_000,), generator=generator)
    ray = torch.repeat_interleave(count)
    samples = packed(ray, len(count))
    assert len(ray) > 2_900_000
    # What is as large as it is on thousands of rays must not blur what is small on the next.
    values = (
        torch.rand(len(ray), generator=generator) * 10 ** (6 * torch.rand(len(count), generator=generator) - 5)[ray]
    )
    before, total = exclusive_sum(values, samples), ray_sum(values, samples)
    checked = torch.cat([torch.arange(50), torch.arange(len(count) - 500, len(count))])
    for r in checked.tolist():
        start = int(samples.first[r])
        alone = values[start : start + int(count[r])].double().numpy()
        exact = np.concatenate([[0.0], alone.cumsum()])
        largest = max(exact[-1], 1e-5)
        assert np.abs(before[start : start + len(alone)].numpy() - exact[:-1]).max(initial=0) < 1e-4 * largest
        assert abs(total[r].item() - exact[-1]) < 1e-5 * largest
