"""Where an edit is to stay: anywhere, in a ball or box that is drawn in the scene with handles, or where words fit."""

from __future__ import annotations

import threading

import numpy as np
import viser

SHAPES = ("ball", "box")
PLACES = ("anywhere", *SHAPES, "words")
_BALL, _BOX = (230, 80, 40), (40, 120, 230)


class Place:
    """kind: one of PLACES. middle (3,), half (3,) of a box, radius of a ball: world units."""

    def __init__(self, server: viser.ViserServer, middle: np.ndarray, size: float):
        self._server, self._lock = server, threading.RLock()
        self.kind, self.middle, self.radius = "anywhere", np.asarray(middle, float), size
        self.half = np.full(3, size)
        self._drawn: list = []

    def show(self, kind: str) -> None:
        with self._lock:
            self.kind = kind
            self._draw()

    def put(self, middle: np.ndarray) -> None:
        """Move the ball or box to a point, such as a clicked one."""
        with self._lock:
            self.middle = np.asarray(middle, float)
            self._draw()

    def resize(self, radius: float) -> None:
        with self._lock:
            self.half = self.half * (radius / self.radius)
            self.radius = radius
            self._draw()

    def option(self) -> list[str]:
        """The option of `edit.py` for this ball or box."""
        with self._lock:
            if self.kind == "ball":
                numbers = [*self.middle, self.radius]
            elif self.kind == "box":
                numbers = [*(self.middle - self.half), *(self.middle + self.half)]
            else:
                return []
            return [f"{self.kind}={','.join(f'{x:.5g}' for x in numbers)}"]

    def _draw(self) -> None:
        for handle in self._drawn:
            handle.remove()
        self._drawn = []
        if self.kind not in SHAPES:
            return
        scene, scale = self._server.scene, 0.7 * self.radius
        if self.kind == "ball":
            body = scene.add_icosphere("/place/ball", self.radius, _BALL, wireframe=True, position=self.middle)
        else:
            body = scene.add_box("/place/box", _BOX, tuple(2 * self.half), wireframe=True, position=self.middle)
        grip = scene.add_transform_controls(
            "/place/grip",
            scale=scale,
            disable_rotations=True,
            disable_sliders=True,
            position=self.middle,
            depth_test=False,
        )
        grip.on_update(lambda _: self._moved(grip, body))
        self._drawn = [body, grip]
        if self.kind == "box":
            corner = scene.add_transform_controls(
                "/place/corner",
                scale=0.5 * scale,
                disable_rotations=True,
                disable_sliders=True,
                position=self.middle + self.half,
                depth_test=False,
            )
            corner.on_update(lambda _: self._stretched(corner))
            self._drawn.append(corner)

    def _moved(self, grip, body) -> None:
        with self._lock:
            self.middle = np.array(grip.position, float)
            body.position = self.middle
            if len(self._drawn) > 2:
                self._drawn[2].position = self.middle + self.half

    def _stretched(self, corner) -> None:
        with self._lock:
            self.half = np.maximum(np.abs(np.array(corner.position, float) - self.middle), 1e-3)
            body = self._drawn[0]
            body.dimensions = tuple(2 * self.half)
