"""Seeds of steps: trained fields and edits depend on them."""

import torch

from tensorf.seeds import seed_of_step, seeded


def test_each_step_of_each_seed_has_numbers_of_its_own():
    assert seed_of_step(0, 7) == 7 and seed_of_step(2, 7) == 2_000_013  # as in all fields that there are
    seeds = {seed_of_step(seed, step) for seed in range(3) for step in range(0, 1_000_000, 9_999)}
    assert len(seeds) == 3 * 101
    before = torch.random.get_rng_state()
    first, second = (torch.rand(3, generator=seeded(torch.device("cpu"), seed_of_step(1, 5))) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.random.get_rng_state(), before)
