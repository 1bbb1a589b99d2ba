"""The capture's photos at their cameras, in one browser window: a click on one goes there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import viser

from tensorf.cameras import Camera
from tensorf.captures import Capture

_WIDTH = 96  # of a photo, pixels
_SIZE = 0.14  # of a frame, as a share of how far views may be from a camera: a frame is narrower than a gap
_OWN = 0.4  # of that distance: nearer to its camera than this, a photo would hide what it shows
_LINE = 1.5  # pixels


def small_photos(capture: Capture) -> list[np.ndarray]:
    """(h, w, 3) uint8 of each camera, for all windows."""
    photos = []
    for camera, image in zip(capture.cameras, capture.images, strict=True):
        size = (round(_WIDTH * camera.height / camera.width), _WIDTH)
        small = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None].float(), size, mode="area")
        photos.append(small[0].permute(1, 2, 0).byte().numpy())
    return photos


class Photos:
    """Of one window, whose own place decides which are shown. Drawn once they are asked for.

    images: `small_photos`. reach: how far the window may be from a camera, in world units. go: called with the camera
    whose photo is clicked.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        cameras: list[Camera],
        images: list[np.ndarray],
        reach: float,
        go: Callable[[Camera], None],
    ):
        self._client, self._cameras, self._images, self._reach, self._go = client, cameras, images, reach, go
        self._handles: list = []
        self._on = False

    def show(self, on: bool, eye: np.ndarray) -> None:
        """Show or hide them for a window that stands at `eye` (3,)."""
        self._on = on
        if on and not self._handles:
            self._handles = [self._frame(i) for i in range(len(self._cameras))]
        self.stand(eye)

    def stand(self, eye: np.ndarray) -> None:
        """The window has moved to `eye` (3,): the photos that it stands in are hidden."""
        for camera, handle in zip(self._cameras, self._handles, strict=False):  # no handles before they are asked for
            away = float(np.linalg.norm(camera.position.numpy() - eye))
            visible = self._on and away > _OWN * self._reach
            if handle.visible != visible:
                handle.visible = visible

    def _frame(self, i: int):
        camera = self._cameras[i]
        handle = self._client.scene.add_camera_frustum(
            f"/photos/{i}",
            fov=2 * float(np.arctan(camera.height / 2 / camera.fy)),
            aspect=camera.width / camera.height,
            scale=_SIZE * self._reach,
            thickness=_LINE,  # of pixels: in world units the lines would be as thick as a small capture
            thickness_units="screen",
            image=self._images[i],
            wxyz=viser.transforms.SO3.from_matrix(camera.pose[:, :3].double().numpy()).wxyz,
            position=camera.position.numpy(),
            visible=False,
        )
        handle.on_click(lambda _: self._go(camera))
        return handle
