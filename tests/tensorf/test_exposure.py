"""Exposures of photos: seen in what was matched, decided upon, and taken off again."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from field_defaults import field_config, train_config

from tensorf.captures import load_capture
from tensorf.exposure import LEARNT, Exposure, differ_at_random, exposures
from tensorf.train import Trainer

FIELD = field_config(density_components=(2, 1, 1), color_components=(4, 2, 2), feature_dim=6, hidden=16)
SHORT = train_config(iterations=40, batch=16, resolution=16)


@pytest.fixture(scope="module")
def flower():
    """The shipped capture, wide enough for its photos to be matched."""
    return load_capture(Path(__file__).resolve().parents[2] / "scenes" / "flower", width=200)


def exposed(capture, logs):
    """The capture with photos exp(logs) times as bright, a fifth darker before, so that hardly anything is clipped."""
    images = (capture.images.float() * 0.8 * logs.exp()[:, None, None, None]).round().to(torch.uint8)
    return replace(capture, images=images)


def test_exposures_by_hand():
    exposure, color, solid = Exposure(2), torch.tensor([[0.5, 0.25, 0.0]]), torch.ones(1)
    first, second = torch.tensor([0]), torch.tensor([1])
    assert torch.equal(exposure(color, solid, 0.0, second), color) and exposure.size() == 0
    with torch.no_grad():
        exposure.gains[1], exposure.offsets[0] = math.log(4), 0.2
    # Less the mean over photos: gains of 1/2 and 2, offsets of 0.1 and -0.1.
    assert torch.allclose(exposure(color, solid, 1.0, first), torch.tensor([[0.35, 0.225, 0.1]]))
    assert torch.allclose(exposure(color, solid, 1.0, second), torch.tensor([[0.9, 0.4, -0.1]]))
    # A quarter of it over white: 0.25 of the above and 0.75 of white, which no exposure changes.
    over_white = 0.25 * color + 0.75
    assert torch.allclose(exposure(over_white, solid / 4, 1.0, second), torch.tensor([[0.975, 0.85, 0.725]]))
    assert torch.equal(exposure(torch.ones(1, 3), torch.zeros(1), 1.0, second), torch.ones(1, 3))
    assert exposure.size().item() == pytest.approx((math.log(4) ** 2 / 2 + 0.2**2 / 2) / 2)


def test_planted_exposures_are_seen(flower):
    assert exposures(flower).std() < 0.02
    logs = torch.linspace(-0.4, 0.1, len(flower.cameras))
    logs = logs[torch.randperm(len(logs), generator=torch.Generator().manual_seed(0))]
    found = exposures(exposed(flower, logs))
    assert len(found) == len(flower.train) and found.mean().abs() < 1e-6
    planted = logs[flower.train] - logs[flower.train].mean()
    assert (found - planted).abs().max() < 0.05 and (found - planted).abs().mean() < 0.02


def test_where_nothing_was_matched_exposure_is_not_known(flower):
    assert exposures(replace(flower, sightings=None)) is None
    views, points = flower.sightings
    assert exposures(replace(flower, sightings=(views[:40], points[:40]))) is None
    assert exposures(replace(flower, images=torch.full_like(flower.images, 255))) is None  # all clipped


def test_exposures_that_drift_are_not_at_random():
    generator = torch.Generator().manual_seed(0)
    assert differ_at_random(0.2 * torch.randn(30, generator=generator))
    assert not differ_at_random(0.02 * torch.randn(30, generator=generator))  # hardly differ
    assert not differ_at_random(0.3 * torch.linspace(0, 6, 30).sin())
    assert not differ_at_random(None) and not differ_at_random(torch.tensor([-1.0, 1.0]))


def test_training_decides_by_itself_unless_told(flower):
    logs = 0.2 * torch.randn(len(flower.cameras), generator=torch.Generator().manual_seed(1)) - 0.3
    drift = 0.3 * torch.linspace(0, 6, len(flower.cameras)).sin() - 0.3
    cpu = torch.device("cpu")
    for capture, asked, expected in (
        (exposed(flower, logs), None, LEARNT),
        (exposed(flower, drift), None, 0.0),
        (flower, None, 0.0),
        (exposed(flower, logs), 0.0, 0.0),
        (flower, 0.01, 0.01),
    ):
        trainer = Trainer(capture, FIELD, replace(SHORT, exposure=asked), cpu)
        assert (trainer.exposure is not None) == (expected > 0)
        assert trainer._hold_exposure == expected
