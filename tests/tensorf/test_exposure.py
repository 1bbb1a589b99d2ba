"""Exposures of photos: seen in what was matched, decided upon, and taken off again."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from field_defaults import field_config, train_config

from tensorf.captures import load_capture
from tensorf.exposure import LEARNT, UNEVEN, Exposure, exposure_difference
from tensorf.render import render_view
from tensorf.train import Trainer

FIELD = field_config(density_components=(2, 1, 1), color_components=(4, 2, 2), feature_dim=6, hidden=16)
SHORT = train_config(iterations=40, batch=16, resolution=16)
CPU = torch.device("cpu")


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
    assert torch.equal(exposure(color, solid, 0.0, second), color) and exposure.penalty() == 0
    with torch.no_grad():
        exposure.gains[1], exposure.offsets[0] = math.log(4), 0.2
    # Less the mean over photos: gains of 1/2 and 2, offsets of 0.1 and -0.1.
    assert torch.allclose(exposure(color, solid, 1.0, first), torch.tensor([[0.35, 0.225, 0.1]]))
    assert torch.allclose(exposure(color, solid, 1.0, second), torch.tensor([[0.9, 0.4, -0.1]]))
    # A quarter of it over white: 0.25 of the above and 0.75 of white, which no exposure changes.
    over_white = 0.25 * color + 0.75
    assert torch.allclose(exposure(over_white, solid / 4, 1.0, second), torch.tensor([[0.975, 0.85, 0.725]]))
    assert torch.equal(exposure(torch.ones(1, 3), torch.zeros(1), 1.0, second), torch.ones(1, 3))
    assert exposure.penalty().item() == pytest.approx((math.log(4) ** 2 / 2 + 0.2**2 / 2) / 2)


def random_logs(capture, spread):
    return spread * torch.randn(len(capture.cameras), generator=torch.Generator().manual_seed(1)) - 0.3


def test_planted_exposures_are_seen(flower):
    assert exposure_difference(flower) < 0.02
    for spread in (0.1, 0.2):
        logs = random_logs(flower, spread)
        assert exposure_difference(exposed(flower, logs)) == pytest.approx(spread, rel=0.4)


def test_neighbours_count_and_not_the_whole(flower):
    """Exposure that follows the camera's place, as that of a slow video does, is none that photos differ in."""
    positions = torch.stack([c.position for c in flower.cameras])
    along = (positions @ torch.linalg.svd(positions - positions.mean(0)).Vh[0]).argsort().argsort()
    logs = torch.linspace(-0.6, 0, len(positions))[along]
    assert logs.std() > 2 * UNEVEN
    shuffled = logs[torch.randperm(len(logs), generator=torch.Generator().manual_seed(0))]
    assert exposure_difference(exposed(flower, logs)) < 0.75 * exposure_difference(exposed(flower, shuffled))


def test_where_nothing_was_matched_exposure_is_not_known(flower):
    assert exposure_difference(replace(flower, sightings=None)) is None
    views, points = flower.sightings
    assert exposure_difference(replace(flower, sightings=(views[:0], points[:0]))) is None
    assert exposure_difference(replace(flower, sightings=(views[:8], points[:8]))) is None
    assert exposure_difference(replace(flower, images=torch.full_like(flower.images, 255))) is None  # all clipped


def test_training_decides_by_itself_unless_told(flower):
    uneven = exposed(flower, random_logs(flower, 0.2))
    for capture, asked, expected in (
        (uneven, None, LEARNT),
        (flower, None, 0.0),
        (uneven, 0.0, 0.0),
        (flower, 0.01, 0.01),
    ):
        trainer = Trainer(capture, FIELD, replace(SHORT, exposure=asked), CPU)
        assert (trainer.exposure is not None) == (expected > 0)
        assert trainer._exposure_weight == expected


def test_a_resumed_run_goes_on_as_it_was_begun(flower):
    """Whatever is found the second time, such as with another version of the matcher."""
    uneven = exposed(flower, random_logs(flower, 0.2))
    for begun, again in ((uneven, flower), (flower, uneven)):
        first, second = (Trainer(c, FIELD, replace(SHORT, exposure=None), CPU) for c in (begun, again))
        first.step()
        second.load_state_dict(first.state_dict())
        assert (second.exposure is None) == (first.exposure is None)
        second.step()


def test_exposures_of_photos_are_found_and_left_out_of_the_field(box_capture):
    gains = torch.tensor([[0.8, 0.9, 1.0], [1.2, 1.1, 1.0]]).repeat(len(box_capture.train), 1)[: len(box_capture.train)]
    images = box_capture.images.clone()
    for i, gain in zip(box_capture.train, gains, strict=True):
        images[i] = (images[i] * gain * 0.8).round().to(torch.uint8)  # 0.8: nothing is clipped
    learning = dict(lr_grid=0.05, lr_network=1e-2, lr_exposure=0.03, prune_at=(), view_noise=0.0)
    config = replace(SHORT, iterations=200, batch=256, resolution=32, **learning)
    off = {}
    for weight in (0.0, 1e-4):
        trainer = Trainer(replace(box_capture, images=images), FIELD, replace(config, exposure=weight), CPU)
        while trainer.iteration < 200:
            trainer.step()
        view = box_capture.train[0]  # a dark photo: with exposures the field has the colours of the mean photo
        rendered = render_view(trainer.field, box_capture.cameras[view])["color"]
        truth = 0.8 * box_capture.images[view] / 255 * gains.log().mean(0).exp()
        off[weight] = (rendered - truth).mean((0, 1)).norm().item()
    assert off[1e-4] < 0.5 * off[0.0]
    found = (trainer.exposure.gains - trainer.exposure.gains.mean(0)).detach()
    planted = gains.log() - gains.log().mean(0)
    assert torch.corrcoef(torch.stack([found[:, 0], planted[:, 0]]))[0, 1] > 0.95
    held = {id(p) for p in trainer.field.parameters()}
    assert not held & {id(p) for p in trainer.exposure.parameters()}  # nothing of it is saved with the field


def test_the_bar_tells_what_the_field_gives_without_exposures(ndc_capture):
    trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=64, exposure=0.01), CPU)
    with torch.no_grad():
        trainer.exposure.offsets[0] = 0.5
    plain = Trainer(ndc_capture, FIELD, replace(SHORT, batch=64, exposure=0.0), CPU)
    assert trainer.step() == plain.step()


def test_exposures_are_held_to_none(flower):
    trainer = Trainer(flower, FIELD, replace(SHORT, exposure=1000.0), CPU)
    with torch.no_grad():
        trainer.exposure.gains[::2], trainer.exposure.offsets[1::2] = 0.5, -0.5
    before = trainer.exposure.penalty().item()
    for _ in range(5):
        trainer.step()
    assert trainer.exposure.penalty().item() < 0.98 * before
