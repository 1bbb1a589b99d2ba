"""The memory forecast: bytes by hand, and that a step's share grows with what it is for."""

import pytest
import torch

from cds3d.forecast import _saved_mb, field_edit_mb, parameter_mb, step_mb


def test_parameters_by_hand():
    assert parameter_mb(torch.nn.Linear(1024, 512)) == pytest.approx((1024 * 512 + 512) * 4 / 2**20)
    assert parameter_mb(torch.nn.Linear(1024, 512).half()) == pytest.approx((1024 * 512 + 512) * 2 / 2**20)


def test_saved_tensors_by_hand():
    x = torch.rand(2**18, requires_grad=True)  # 1 MB
    assert _saved_mb(lambda: x.exp().sum()) == pytest.approx(1)  # exp keeps its result
    assert _saved_mb(lambda: (x.exp() + 1).exp().sum()) == pytest.approx(2)
    assert _saved_mb(lambda: (x + 1).sum()) == 0


def test_frozen_weights_and_views_of_one_storage_count_once():
    layer = torch.nn.Linear(512, 512).requires_grad_(False)
    x = torch.rand(512, 512, requires_grad=True)
    assert _saved_mb(lambda: layer(x), layer) == 0
    assert _saved_mb(lambda: layer(x)) == pytest.approx(1)
    y = torch.rand(2**18, requires_grad=True)
    assert _saved_mb(lambda: (y * y).sum() + (y.view(512, 512) * y.view(512, 512)).sum()) == pytest.approx(1)


def test_a_step_needs_more_with_the_contrastive_term_and_with_size(guidance):
    text = guidance.encode_text("a flower")
    small, large = (step_mb(guidance, text, *size, contrast=True) for size in ((48, 64), (96, 128)))
    assert 3 < large / small < 5  # four times the pixels
    assert step_mb(guidance, text, 48, 64, contrast=False) < 0.9 * small


def test_parts_of_a_field_edit(guidance):
    field = torch.nn.Linear(1024, 1024)
    parts = field_edit_mb(guidance, guidance.encode_text("a flower"), field, 10, 48, 64, True)
    assert parts["optimiser"] == pytest.approx(3 * parameter_mb(field))
    assert parts["views"] == pytest.approx(10 * 48 * 64 * 108 / 2**20)
