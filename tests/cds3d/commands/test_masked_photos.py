"""A capture whose photos have masks, from training to its figures."""

from dataclasses import replace

import pytest
import torch

from cds3d.commands.diagnosis import mean_picture_psnr
from cds3d.commands.importing import _fit
from cds3d.commands.train import evaluate
from tensorf.cameras import Camera
from tensorf.captures.capture import Capture


class Photographs:
    """A "field" that shows what the photos show where they count."""

    def __init__(self, capture, images):
        self.shown = {id(camera): image for camera, image in zip(capture.cameras, images)}

    def render(self, camera):
        color = self.shown[id(camera)].float() / 255
        return {"color": color, "depth": torch.ones(color.shape[:2]), "opacity": torch.ones(color.shape[:2])}


@pytest.fixture
def masked():
    """(capture, its photos without what the masks hide); every photo has noise in its left half, which is hidden."""
    torch.manual_seed(0)
    pose = torch.eye(3, 4)
    cameras = [Camera(pose, 20.0, 20.0, 12.0, 9.0, 24, 18) for _ in range(4)]
    clean = torch.full((4, 18, 24, 3), 100, dtype=torch.uint8)
    images, masks = clean.clone(), torch.ones(4, 18, 24, dtype=torch.bool)
    images[:, :, :12] = torch.randint(256, (4, 18, 12, 3), dtype=torch.uint8)
    masks[:, :, :12] = False
    capture = Capture(
        "masked", None, cameras, images, list("abcd"), [1, 2, 3], [0], 1.0, 4.0, "box", "black",
        torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), pose, torch.eye(4), masks=masks,
    )  # fmt: skip
    return capture, clean


def test_figures_of_masked_photos_are_of_what_counts(masked, tmp_path):
    capture, clean = masked
    field = Photographs(capture, clean)
    figures = evaluate(field, capture, tmp_path)
    assert figures["psnr_db"] == figures["train_psnr_db"] == 100
    without = evaluate(field, replace(capture, masks=None), tmp_path)
    assert max(without["psnr_db"], without["train_psnr_db"]) < 20 and without["ssim"] < figures["ssim"] - 0.2


def test_the_mean_picture_is_measured_on_what_counts(masked):
    capture, _ = masked
    assert mean_picture_psnr(capture) > 90
    assert mean_picture_psnr(replace(capture, masks=None)) < 20


def test_an_imported_model_is_compared_with_what_counts(masked):
    class Grey:
        def render(self, camera):
            return {"color": torch.full((camera.height, camera.width, 3), 100 / 255)}

    capture, _ = masked
    assert _fit(Grey(), capture) > 90
    assert _fit(Grey(), replace(capture, masks=None)) < 20
