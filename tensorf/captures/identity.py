"""What a field's cameras depend on: which photos a capture has, where their cameras stand, and where its world lies.

The world's place and size follow from all cameras of a capture, and from what its photos show: one photo more, or poses
that were estimated again, and every camera stands elsewhere relative to fields of before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from tensorf.captures.capture import Capture
from tensorf.captures.writing import capture_poses

_SAME_POSE = 1e-4  # of the cameras' spread, and of a rotation's entries: more than rounding makes
_FITS = 1e-3  # world units by which cameras may move, about a third of a pixel
_UNSTEADY = 5e-3  # the same for unchanged photos: other versions of OpenCV match slightly other features in them


@dataclass(frozen=True)
class Change:
    """How a capture differs from what it was. told: in words. fits: whether cameras stand where they stood before."""

    told: str
    fits: bool


def identity(capture: Capture) -> str:
    """One line of JSON by which `change` tells whether fields of this capture are still of it."""
    poses = capture_poses(capture.cameras, capture).reshape(-1, 12)
    photos = [[name, [float(f"{x:.12g}") for x in pose]] for name, pose in zip(capture.image_names, poses, strict=True)]
    return json.dumps({"world_from_capture": capture.world_from_capture.tolist(), "photos": photos})


def change(before: str, now: str) -> Change | None:
    """What is different between two captures' `identity`; None for nothing, and where `before` cannot be read."""
    try:
        (was, old), (now_is, new) = _read(before), _read(now)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    told = _photos_told(old, new)
    positions = np.stack(list(new.values()))[:, :, 3]
    drift = was @ np.linalg.inv(now_is)
    apart = [positions @ world[:3, :3].T + world[:3, 3] for world in (was, now_is)]
    moved = max(np.abs(drift[:3, :3] - np.eye(3)).max(), np.abs(apart[0] - apart[1]).max())
    fits = moved < (_FITS if told else _UNSTEADY)
    if not told and not fits:
        told = "what the photos show puts the scene at another place"
    return Change(told, bool(fits)) if told else None


def _read(line: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(world_from_capture (4, 4), poses (3, 4) by name)."""
    table = json.loads(line)
    world = np.array(table["world_from_capture"], dtype=np.float64).reshape(4, 4)
    poses = {str(name): np.array(pose, dtype=np.float64).reshape(3, 4) for name, pose in table["photos"]}
    if not poses or not np.isfinite(world).all() or not all(np.isfinite(pose).all() for pose in poses.values()):
        raise ValueError("no photos, or no numbers")
    return world, poses


def _photos_told(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> str:
    """Which photos came, went or got other poses, in words; "" where none did."""
    positions = np.stack(list(old.values()))[:, :, 3]
    spread = np.linalg.norm(positions - positions.mean(0), axis=1).max()
    unit = np.array([1.0, 1.0, 1.0, max(spread, 1e-12)])
    both = [name for name in new if name in old]
    sorts = {
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "posed otherwise": [name for name in both if (np.abs(new[name] - old[name]) / unit).max() > _SAME_POSE],
    }
    return ", ".join(f"{len(names)} of its photos {how}: {names[0]}" for how, names in sorts.items() if names)
