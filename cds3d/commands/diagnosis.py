"""Does a field show its capture? Figures that tell, and the likely cause where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cds3d.metrics.coverage import RarelySeen
from cds3d.metrics.psnr import psnr
from tensorf.captures import Capture

_BARELY = 2.0  # dB above the mean picture
_ALIKE = 1.0  # dB between training and held-out photos: nothing has been learnt by heart yet
_MUCH = 0.03  # of the pixels at the near plane; fields of good captures have 0.002 at most
_APART = 4.0  # dB between photos that were trained on and held-out ones; good captures stay below 3
_RARE = 0.25  # of the error in parts that hardly any photo shows; good captures have 0.1 at most


def mean_picture_psnr(capture: Capture) -> float | None:
    """Mean PSNR in dB of the mean of all training photos, taken for each held-out one; None where none is held out."""
    if not capture.test:
        return None
    mean = torch.zeros(capture.images.shape[1:])
    for i in capture.train:
        mean += capture.images[i].float() / 255
    mean /= len(capture.train)
    values = [psnr(mean, capture.images[i].float() / 255, capture.mask(i)) for i in capture.test]
    return sum(values) / len(values)


def diagnose(
    held_out: float | None,
    training: float,
    mean_picture: float | None,
    space: str,
    named: bool,
    near: float = 0.0,
    look: Callable[[], RarelySeen | None] = lambda: None,
) -> str | None:
    """One line with the likely cause and a remedy, where the figures (PSNR in dB) are those of a failure; else None.

    held_out: of photos left out of training; training: of photos trained on; mean_picture: `mean_picture_psnr`; space:
    the capture's; named: whether its poses say which photo they are of, as all but LLFF's do. near:
    `Trainer.share_at_near_plane`. look: gives `rarely_seen`, which takes seconds: called where
    nothing else explains the figures.
    """
    if near > _MUCH:
        return (
            f"{near:.0%} of what the photos show lies on the near plane: something stands before it and is cut off, "
            "such as a thing without texture, which cannot be matched. Train with scene.space=unbounded"
        )
    if held_out is None or mean_picture is None:
        return None
    boxed = "what lies outside the box is not modelled (scene.space=unbounded)" if space == "box" else None
    if held_out < mean_picture + _BARELY:
        remedy = "estimate the poses again" if named else "another scene.order, or estimate the poses again"
        short = "training was too short (field.iterations)" if training < held_out + _ALIKE else None
        causes = [short, f"photos and poses do not belong together ({remedy})", boxed]
        what = f"held-out PSNR is {held_out:.1f} dB, and a mere mean of all photos has {mean_picture:.1f} dB"
        return f"{what}: the field does not show the scene. Likely: {_either(causes)}"
    if training - held_out > _APART:
        what = f"PSNR is {training:.1f} dB on photos trained on, {held_out:.1f} dB on held-out ones"
        rare = look()
        if rare is not None and rare.error > _RARE:
            return (
                f"{what}: {rare.share:.0%} of what held-out photos show is in fewer than two of the others, and has "
                f"{rare.error:.0%} of the error, most of it in {rare.photo}. Photograph these parts from more places"
            )
        causes = [boxed, "poses are off by more than a pixel", "the photos are too few, or differ in exposure"]
        remedy = "more photos from more sides, with fixed exposure, help most"
        return f"{what}: fog explains each photo by itself. Likely: {_either(causes)}; {remedy}"
    return None


def _either(causes: list[str | None]) -> str:
    return ", or ".join(cause for cause in causes if cause)
