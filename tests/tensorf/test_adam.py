"""Adam over tables whose channels lie side by side, against torch's plain one."""

import pytest
import torch

from tensorf.adam import Adam, memory_order
from tensorf.lookup import grid_points_first


def parameters():
    """A table (C, H, W) and a line (C, N, 1), channels innermost, and a plain matrix."""
    torch.manual_seed(0)
    tensors = grid_points_first(torch.randn(3, 5, 4)), grid_points_first(torch.randn(3, 6, 1)), torch.randn(4, 2)
    return [torch.nn.Parameter(t.clone()) for t in tensors]


def moved(optimizer, ours, steps=range(4), layout=lambda g: g):
    for step in steps:
        torch.manual_seed(step)
        for p in ours:
            p.grad = layout(torch.zeros_like(p).copy_(torch.randn(p.shape)))
        optimizer.step()
    return [p.detach().clone() for p in ours]


@pytest.mark.parametrize("layout", [lambda g: g, lambda g: g.contiguous()], ids=["as the parameter", "contiguous"])
def test_as_plain_adam_whatever_the_gradients_layout(layout):
    first, second = parameters(), parameters()
    assert not first[0].is_contiguous()
    ours = moved(Adam(first, lr=0.1, betas=(0.9, 0.99)), first, layout=layout)
    plain = moved(torch.optim.Adam(second, lr=0.1, betas=(0.9, 0.99), foreach=False), second)
    for a, b, start in zip(ours, plain, parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert (a - start).abs().mean() > 0.01


def test_the_fused_step_sees_only_contiguous_tensors(monkeypatch):
    seen, step = [], torch._fused_adam_

    def watched(*lists, **options):
        seen.extend(t for tensors in lists[:4] for t in tensors)
        return step(*lists, **options)

    monkeypatch.setattr(torch, "_fused_adam_", watched)
    ours = parameters()
    moved(Adam(ours, lr=0.1), ours, range(1))
    assert len(seen) == 12 and all(t.is_contiguous() for t in seen)


def test_states_are_those_of_torch():
    ours, theirs, whole = parameters(), parameters(), parameters()
    before = Adam(ours, lr=0.1)
    moved(before, ours, range(2))
    after = torch.optim.Adam(theirs, lr=0.1)
    after.load_state_dict(before.state_dict())
    for a, b in zip(theirs, ours):
        a.data.copy_(b)
    expected = moved(Adam(whole, lr=0.1), whole)
    for a, b in zip(moved(after, theirs, range(2, 4)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_memory_order():
    assert memory_order(torch.zeros(3, 5, 4)) == [0, 1, 2]
    assert memory_order(grid_points_first(torch.zeros(3, 5, 4))) == [1, 2, 0]
