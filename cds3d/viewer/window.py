"""One browser window: what it looks at, its own controls, and the thread that renders for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import viser

from cds3d.viewer.looking import SHOWN, CameraLimits, ViewRequest, picture
from cds3d.viewer.photos import Photos
from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.renderable import Renderable

log = logging.getLogger("cds3d")

_REST = 0.3  # seconds without a move, after which a view is rendered in full
_APART = 1e-3  # of positions, as a share of the distance to what is looked at; and 1 less the cosine of directions
_GAP = 0.01  # seconds between two renders, for other windows: locks are not fair


def pose_of(wxyz: np.ndarray, position: np.ndarray) -> torch.Tensor:
    """(3, 4) from viser's quaternion and position, whose camera axes are OpenCV's."""
    rotation = viser.transforms.SO3(np.asarray(wxyz)).normalize().as_matrix()
    return torch.from_numpy(np.concatenate([rotation, np.asarray(position).reshape(3, 1)], 1)).float()


def put_back(client: viser.ClientHandle, pose: torch.Tensor) -> None:
    """Let the browser's camera stand where the picture was taken from, if it was kept from where it went to.

    Handles and photos' frames are drawn by the browser, from its own camera, which turns around the same point as
    before if it still looks there. pose: (3, 4) of the picture.
    """
    own, forward, position = pose_of(client.camera.wxyz, client.camera.position), pose[:, 2].numpy(), pose[:, 3].numpy()
    distance = float(np.linalg.norm(np.asarray(client.camera.look_at) - position)) or 1.0
    if np.abs(own[:, 3].numpy() - position).max() < _APART * distance and float(own[:, 2] @ pose[:, 2]) > 1 - _APART:
        return
    with client.atomic():
        client.camera.position = position
        client.camera.look_at = position + forward * distance


def fov_of(camera: Camera, aspect: float) -> float:
    """The vertical field of view, in radians, that shows all of a camera's picture in a window of this aspect."""
    narrower = max(1.0, camera.width / camera.height / max(aspect, 1e-3))
    return 2 * float(np.arctan(narrower * camera.height / 2 / camera.fy))


class Window:
    """fields: gives (source, edit or None) as they are now. lock: held while rendering, one window at a time.

    cameras, photos: of the capture; `photos.small_photos`. start: the camera to begin with. moving, full: widths in
    pixels of pictures while the camera moves and at rest.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        fields: Callable[[], tuple[Renderable, Renderable | None]],
        lock: threading.Lock,
        limits: CameraLimits,
        cameras: list[Camera],
        photos: list[np.ndarray],
        start: Camera,
        moving: int,
        full: int,
    ):
        self.client, self._fields, self._lock, self._limits = client, fields, lock, limits
        self._moving, self._full = moving, full
        self._wanted, self._closed, self._moved_at = threading.Event(), False, 0.0
        self.request: ViewRequest | None = None  # of the last picture
        self.frames = 0
        self.photos = Photos(client, cameras, photos, limits.reach, self.look_from)
        self.look_from(start)
        with client.gui.add_folder("View", order=0):
            self._shown = client.gui.add_dropdown("Show", SHOWN, initial_value="split")
            self._split = client.gui.add_slider("Source | edit", 0.0, 1.0, 0.01, 0.5)
            back = client.gui.add_button("First view")
        back.on_click(lambda _: self.look_from(start))
        for control in (self._shown, self._split):
            control.on_update(lambda _: self.refresh())
        client.camera.on_update(lambda _: self._moved())
        threading.Thread(target=self._run, daemon=True, name=f"window {client.client_id}").start()

    def look_from(self, camera: Camera) -> None:
        """Stand where a camera of the capture does."""
        handle = self.client.camera
        self._pivot = self._limits.looked_at(camera)
        with self.client.atomic():
            handle.position = camera.position.numpy()
            handle.look_at = self._pivot
            handle.up_direction = self._limits.vertical(camera)
            self._fit(camera)

    def _fit(self, camera: Camera) -> None:
        """Show all of a camera's picture, in a window of the present shape."""
        self._fitted, self._aspect = camera, self.client.camera.aspect
        self.client.camera.fov = fov_of(camera, self._aspect)

    def show_photos(self, on: bool) -> None:
        self.photos.show(on, self.look().pose[:, 3].numpy())

    def refresh(self) -> None:
        """Render anew: a field or a control has changed."""
        self._wanted.set()

    def close(self) -> None:
        self._closed = True
        self._wanted.set()

    def _moved(self) -> None:
        if abs(self.client.camera.aspect - self._aspect) > _APART:  # another shape, such as of a phone that was turned
            self._fit(self._fitted)
        self._moved_at = time.monotonic()
        self._wanted.set()

    def look(self) -> ViewRequest:
        """What the window wants to see now, kept near the capture's cameras."""
        camera = self.client.camera
        shown = self._shown.value if self._shown.value in SHOWN else SHOWN[0]
        split = min(max(float(self._split.value), 0.0), 1.0)
        fov, aspect = min(max(camera.fov, 0.05), 2.5), min(max(camera.aspect, 0.2), 5.0)
        pose, pivot = pose_of(camera.wxyz, camera.position), np.asarray(camera.look_at, float)
        # One that was moved along, by a drag sideways, says nothing about where to look from where the view is held.
        kept = np.abs(pivot - self._pivot).max() < _APART * np.linalg.norm(pivot - camera.position)
        pose = self._limits.limited(pose, torch.from_numpy(pivot).float() if kept else None)
        return ViewRequest(pose, fov, aspect, shown, split)

    def _run(self) -> None:
        full_due = False
        while not self._closed:
            if not self._wanted.wait(timeout=_REST if full_due else None):
                self._render(self._full)
                full_due = False
                if self.request is not None and not self._closed:
                    self._rest(self.request.pose)
                continue
            self._wanted.clear()
            moving = time.monotonic() - self._moved_at < _REST
            if not self._closed:
                self._render(self._moving if moving else self._full)
                full_due = moving

    def _rest(self, pose: torch.Tensor) -> None:
        """The camera has come to rest, and the picture from `pose` (3, 4) is shown."""
        put_back(self.client, pose)
        self._pivot = np.asarray(self.client.camera.look_at, float)
        self.photos.stand(pose[:, 3].numpy())

    def _render(self, width: int) -> None:
        try:
            request = self.look()
            with self._lock:
                image = picture(request, width, *self._fields())
            self.request = request
            self.client.scene.set_background_image(image, format="jpeg", jpeg_quality=85 if width == self._full else 70)
            self.frames += 1
        except UserError as error:  # a camera that the field's space cannot hold
            log.debug("no picture: %s", error)
        except Exception:
            if not self._closed:  # a browser that went away in between
                log.exception("a window's picture failed")
        time.sleep(_GAP)
