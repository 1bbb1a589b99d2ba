"""From a browser's camera to a picture of the source, the edit, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.pictures import colored_depth, depth_range, seen_depth, to_uint8
from cds3d.subjects.given import point_at
from tensorf.cameras import Camera
from tensorf.paths import nearest_point, not_astray, upward
from tensorf.renderable import Renderable

SHOWN = ("split", "edit", "source", "depth")
_REACH = 2.0  # of the distance to the next camera, that a view may be away from the nearest
_LEAST_REACH = 0.15  # of the cameras' spread, where they stand close together
_TURN = 0.6  # radians, that a view may look past the nearest camera's axis
_ALONG, _LEVEL = 0.94, 0.26  # cosine of 20 degrees, sine of 15: looking along the vertical, and being level


@dataclass(frozen=True)
class ViewRequest:
    """What a window wants to see. pose: (3, 4) camera to world; fov: vertical, radians; aspect: width / height.

    shown: one of SHOWN. split: where the edit begins, as a share of the width.
    """

    pose: Tensor
    fov: float
    aspect: float
    shown: str = "edit"
    split: float = 0.5

    def camera(self, width: int) -> Camera:
        """At `width` pixels."""
        height = max(2, round(width / self.aspect))
        focal = height / 2 / np.tan(self.fov / 2)
        return Camera(self.pose, focal, focal, width / 2, height / 2, width, height)


class CameraLimits:
    """Keeps views near the capture's cameras: nobody knows what is seen from elsewhere, and NDC fields end there.

    depth: at which cameras look at the scene, for those that all face the same way. middle: (3,) what they look at, or
    what the first does, where they look outwards. up: (3,) of the world.
    """

    def __init__(self, cameras: list[Camera], depth: float):
        self.positions = torch.stack([c.position for c in cameras])
        self.axes = torch.stack([c.forward for c in cameras])
        poses = not_astray(torch.stack([c.pose for c in cameras]), depth)
        self.up = upward(poses)
        middle, positions = nearest_point(poses, depth), poses[:, :, 3]
        offsets = middle - positions
        if (offsets * poses[:, :, 2]).sum(1).median() <= 0:
            middle = positions[0] + float(offsets.norm(dim=1).mean()) * poses[0, :, 2]
        self.middle = middle.numpy()
        apart = torch.cdist(self.positions, self.positions).fill_diagonal_(torch.inf).amin(1)
        spread = float((positions - positions.mean(0)).norm(dim=1).mean())
        self.reach = max(_REACH * float(apart.median()), _LEAST_REACH * spread)

    def vertical(self, camera: Camera) -> np.ndarray:
        """(3,) what a view that begins at a camera of the capture is turned around, and what is up in its picture.

        Of a level photo it is the world's up, less the photo's own small roll: the picture is as the photo is. Other
        photos are shown level, and those that look along the vertical as they are.
        """
        right, own = camera.pose[:, 0], -camera.pose[:, 1]
        if abs(float(camera.forward @ self.up)) > _ALONG:
            return own.numpy()
        roll = float(self.up @ right)
        if abs(roll) > _LEVEL or own @ self.up < 0:
            return self.up.numpy()
        return F.normalize(self.up - roll * right, dim=0).numpy()

    def looked_at(self, camera: Camera) -> np.ndarray:
        """(3,) the point on a camera's axis that is as far away as the middle."""
        distance = float(np.linalg.norm(camera.position.numpy() - self.middle)) or 1.0
        return camera.position.numpy() + camera.forward.numpy() * distance

    def limited(self, pose: Tensor, pivot: Tensor | None = None) -> Tensor:
        """(3, 4) the pose, moved and turned no more than is needed.

        pivot: (3,) what the view was turned around, which it goes on to look at from where it is held: the direction
        of a view from farther away would lead past it.
        """
        offsets = pose[:, 3] - self.positions
        nearest = int(offsets.norm(dim=1).argmin())
        away = float(offsets[nearest].norm())
        eye = self.positions[nearest] + offsets[nearest] * min(1.0, self.reach / max(away, 1e-9))
        axis, wanted = self.axes[nearest], pose[:, 2]
        if pivot is not None and away > self.reach:
            wanted = F.normalize(pivot - eye, dim=0)
        angle = float(torch.acos((axis @ wanted).clamp(-1, 1)))
        if angle > _TURN:  # turned halfway around, `side` is 0 and the axis itself is taken
            side = F.normalize(wanted - (wanted @ axis) * axis, dim=0)
            wanted = F.normalize(float(np.cos(_TURN)) * axis + float(np.sin(_TURN)) * side, dim=0)
        right = F.normalize(torch.linalg.cross(pose[:, 1], wanted), dim=0)
        return torch.stack([right, torch.linalg.cross(wanted, right), wanted, eye], 1)


@torch.no_grad()
def picture(request: ViewRequest, width: int, source: Renderable, edited: Renderable | None) -> np.ndarray:
    """(H, W, 3) uint8. Without an edit the source is shown; of two halves only what is seen is rendered."""
    camera = request.camera(width)
    if request.shown == "depth":
        depth = seen_depth((source if edited is None else edited).render(camera))
        return to_uint8(colored_depth(depth, *depth_range([depth])))
    if edited is None or request.shown == "source":
        return to_uint8(source.render(camera)["color"])
    at = round(request.split * width) if request.shown == "split" else 0
    parts = [(source, 0, at), (edited, at, width)]
    halves = [field.render(_columns(camera, a, b))["color"].cpu() for field, a, b in parts if b > a]
    image = to_uint8(torch.cat(halves, 1))
    if 0 < at < width:
        image[:, at - 1 : at + 1] = 255
    return image


def point_seen(request: ViewRequest, u: float, v: float, field: Renderable) -> Tensor | None:
    """(3,) the world point under a click; u, v: shares of the picture's width and height. None where nothing is."""
    camera = request.camera(252)
    x, y = (min(max(share, 0.0), 1.0) * size for share, size in ((u, camera.width), (v, camera.height)))
    return point_at(field, camera, x, y)


def _columns(camera: Camera, first: int, last: int) -> Camera:
    """The camera's pixels from column `first` up to `last`."""
    return replace(camera, cx=camera.cx - first, width=last - first)
