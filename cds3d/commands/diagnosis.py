"""Does a field show its capture? Figures that tell, and the likely cause where it does not."""

from __future__ import annotations

import torch

from cds3d.metrics.psnr import psnr
from tensorf.captures import Capture

_BARELY = 2.0  # dB above the mean picture
_APART = 4.0  # dB between photos that were trained on and held-out ones; good captures stay below 3
_UNEVEN = 0.08  # standard deviation of the photos' exposures; with fixed exposure it stays below 0.04
_FEWEST = 50  # pairs of pixels that say something about exposures


def mean_picture_psnr(capture: Capture) -> float | None:
    """Mean PSNR in dB of the mean of all training photos, taken for each held-out one; None where none is held out."""
    if not capture.test:
        return None
    mean = torch.zeros(capture.images.shape[1:])
    for i in capture.train:
        mean += capture.images[i].float() / 255
    mean /= len(capture.train)
    values = [psnr(mean, capture.images[i].float() / 255) for i in capture.test]
    return sum(values) / len(values)


def exposure_spread(capture: Capture) -> float | None:
    """By how much exposure differs among the training photos: the standard deviation of its natural logarithm.

    Each point that was matched in two photos says how bright one is against the other (of the three channels, the
    median); together they give each photo's exposure, by least absolute deviations. None where too few were matched.
    """
    if capture.sightings is None:
        return None
    views, points = capture.sightings
    cameras = capture.cameras
    poses = torch.stack([c.pose for c in cameras])[views]
    intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras])[views]
    local = torch.einsum("nji,nj->ni", poses[:, :, :3], points - poses[:, :, 3])
    place = local[:, :2] / local[:, 2:].clamp(min=1e-6) * intrinsics[:, :2] + intrinsics[:, 2:]
    height, width = capture.images.shape[1:3]
    u, v = (place[:, i].long().clamp(1, size - 2) for i, size in enumerate((width, height)))
    steps = range(-1, 2)  # the mean of 3x3 pixels: matches are not exact
    colors = sum(capture.images[views, v + i, u + j].float() for i in steps for j in steps) / 9 / 255
    first, second = colors[::2], colors[1::2]
    clear = (torch.minimum(first, second).amin(1) > 0.02) & (torch.maximum(first, second).amax(1) < 0.97)
    if clear.sum() < _FEWEST:
        return None
    ratio = (first[clear] / second[clear]).log().median(1).values.double()
    a, b = views[::2][clear], views[1::2][clear]
    exposures = _from_differences(ratio, a, b, len(cameras))
    return exposures[torch.cat([a, b]).unique()].std().item()


def _from_differences(difference: torch.Tensor, a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """x (count,) such that x[a] - x[b] is near difference (n,), by weighted least squares, weighted anew ten times."""
    weight, x = torch.ones_like(difference), difference.new_zeros(count)
    for _ in range(10):
        matrix = 1e-3 * torch.eye(count, dtype=x.dtype)  # parts that no pair joins stay near 0
        for row, column, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            matrix.index_put_((row, column), sign * weight, accumulate=True)
        right = x.new_zeros(count).index_add(0, a, weight * difference).index_add(0, b, -weight * difference)
        x = torch.linalg.solve(matrix, right)
        weight = 1 / ((difference - x[a] + x[b]).abs() + 0.02)
    return x


def uneven_exposure(capture: Capture, evened: bool) -> str | None:
    """One line where exposure differs much from photo to photo and training does not even it out; else None."""
    spread = exposure_spread(capture)
    if spread is None or spread < _UNEVEN or evened:
        return None
    return (
        f"exposure differs from photo to photo, by {100 * spread:.0f}% (standard deviation): field.exposure=0.02 evens "
        "it out, and renders have that of the average photo; PSNR of held-out photos, which keep theirs, may fall"
    )


def diagnose(held_out: float | None, training: float, mean_picture: float | None, space: str) -> str | None:
    """One line with the likely cause and a remedy, where the figures (PSNR in dB) are those of a failure; else None.

    held_out: of photos left out of training; training: of photos trained on; mean_picture: `mean_picture_psnr`; space:
    the capture's.
    """
    if held_out is None or mean_picture is None:
        return None
    boxed = "what lies outside the box is not modelled (scene.space=unbounded)" if space == "box" else None
    if held_out < mean_picture + _BARELY:
        causes = ["photos and poses do not belong together (another scene.order, or estimate the poses again)", boxed]
        what = f"held-out PSNR is {held_out:.1f} dB, and the mean of all photos has {mean_picture:.1f} dB already"
        return f"{what}: the field does not show the scene. Likely: {_either(causes)}"
    if training - held_out > _APART:
        causes = [boxed, "poses are off by more than a pixel", "the photos are too few, or differ in exposure"]
        what = f"PSNR is {training:.1f} dB on photos trained on, {held_out:.1f} dB on held-out ones"
        remedy = "more photos from more sides, with fixed exposure, help most"
        return f"{what}: fog explains each photo by itself. Likely: {_either(causes)}; {remedy}"
    return None


def _either(causes: list[str | None]) -> str:
    return ", or ".join(cause for cause in causes if cause)
