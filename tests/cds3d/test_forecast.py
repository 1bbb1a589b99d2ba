"""The memory forecast: bytes by hand, and that a step's share grows with what it is for."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from cds3d.commands import edit
from cds3d.forecast import _PREPARE_MB, _saved_mb, _working_mb, field_edit_mb, parameter_mb, step_mb


def test_parameters_by_hand():
    assert parameter_mb(torch.nn.Linear(1024, 512)) == pytest.approx((1024 * 512 + 512) * 4 / 2**20)
    assert parameter_mb(torch.nn.Linear(1024, 512).half()) == pytest.approx((1024 * 512 + 512) * 2 / 2**20)


def test_saved_tensors_by_hand():
    x = torch.rand(2**18, requires_grad=True)  # 1 MB
    assert _saved_mb(lambda: x.exp().sum()) == [pytest.approx(1)]  # exp keeps its result
    assert sum(_saved_mb(lambda: (x.exp() + 1).exp().sum())) == pytest.approx(2)
    assert _saved_mb(lambda: (x + 1).sum()) == []


def test_frozen_weights_and_views_of_one_storage_count_once():
    layer = torch.nn.Linear(512, 512).requires_grad_(False)
    x = torch.rand(512, 512, requires_grad=True)
    assert _saved_mb(lambda: layer(x), layer) == []
    assert sum(_saved_mb(lambda: layer(x))) == pytest.approx(1)
    y = torch.rand(2**18, requires_grad=True)
    twice = _saved_mb(lambda: (y * y).sum() + (y.view(512, 512) * y.view(512, 512)).sum())
    assert sum(twice) == pytest.approx(1)


def test_counting_leaves_no_graph_behind():
    # exp keeps its own output, which a hook that hands it back as it is would tie to its graph for ever.
    x, kept = torch.rand(8, requires_grad=True), []

    def forward():
        y = x.exp()
        kept.append(weakref.ref(y))
        return y.sum()

    _saved_mb(forward)
    gc.collect()
    assert kept[0]() is None


def test_working_memory_by_hand():
    layer = torch.nn.Linear(512, 512)  # its largest weight is 1 MB
    assert _working_mb(layer, [3.0, 2.0]) == pytest.approx(4.5 * 1 + 4 * 3)
    assert _working_mb(torch.nn.Identity(), []) == 0


def test_a_step_needs_more_with_the_contrastive_term_and_with_size(prior):
    text = prior.embed("a flower")
    small, large = (step_mb(prior, text, *size, unet_graphs=1) for size in ((48, 64), (96, 128)))
    assert 2.5 < large / small < 4  # four times the pixels; the copies of weights are the same
    none, two = (step_mb(prior, text, 48, 64, unet_graphs=n) for n in (0, 2))
    assert none < 0.9 * small and two > small + 0.5 * (small - none)  # IDS keeps two graphs at once


def test_parts_of_a_field_edit(prior):
    field = torch.nn.Linear(1024, 1024)
    parts = field_edit_mb(prior, prior.embed("a flower"), field, 10, 48, 64, 1)
    assert parts["optimiser"] == pytest.approx(3 * parameter_mb(field))
    assert parts["views"] == pytest.approx(10 * 48 * 64 * 108 / 2**20)
    assert parts["networks"] == pytest.approx(step_mb(prior, prior.embed("a flower"), 48, 64, 1))
    assert "region" not in parts
    local = field_edit_mb(prior, prior.embed("a flower"), field, 10, 48, 64, 1, local=True)
    assert local == {**parts, "region": pytest.approx(10 * 48 * 64 * 900 / 2**20)}
    redrawn = field_edit_mb(prior, prior.embed("a flower"), field, 10, 48, 64, 1, local=True, redrawn=True)
    assert redrawn == {**parts, "region": pytest.approx(10 * 48 * 64 * 1150 / 2**20)}


def test_expected_peak_is_what_is_in_use_and_all_parts(monkeypatch, prior):
    monkeypatch.setattr(edit, "memory_mb", lambda device: 1000.0)
    monkeypatch.setattr(edit, "field_edit_mb", lambda *arguments: {"optimiser": 20.0, "views": 3.5})
    view = SimpleNamespace(height=24, width=32)
    prompts, objective = SimpleNamespace(target=None), SimpleNamespace(unet_graphs=1)
    assert edit._forecast(prior, prompts, None, [view], objective, local=False, redrawn=False) == 1023.5


@pytest.mark.parametrize(("threads", "views"), [(1, 1), (4, 2)])
def test_views_that_are_prepared_at_once_count(prior, threads, views):
    field, told = torch.nn.Linear(4, 4), {}
    for count in (1, threads):
        torch.set_num_threads(count)
        told[count] = field_edit_mb(prior, prior.embed("a flower"), field, 10, 48, 64, 1)["rendering"]
    assert told[threads] - told[1] == pytest.approx((views - 1) * _PREPARE_MB)
