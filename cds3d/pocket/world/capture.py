"""Captures of the procedural world in LLFF layout, and the truth about their edits.

A capture folder holds `images/*.jpg`, `poses_bounds.npy` as any LLFF capture, and `world.json`: the scene's attributes
and cameras, from which the same views of an edited scene can be rendered exactly.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from cds3d.pocket.world.raycast import Render, render
from cds3d.pocket.world.scenes import COLORS, Attributes, build_scene, look_camera
from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.untrusted import load_json

SUPERSAMPLE = 2
FILLERS = {"a", "an", "photo", "picture", "of"}  # words of a prompt that say nothing about what is seen


def capture_cameras(attributes: Attributes, views: int, width: int, height: int) -> list[Camera]:
    """Forward-facing cameras on a disc around the scene's own, on a sphere around the subject, in sunflower order."""
    own = build_scene(attributes, width, height).camera
    eye, forward = own.position.numpy().astype(np.float64), own.forward.numpy().astype(np.float64)
    subject = np.array([0.0, 0.55, 0.0])
    distance = float((subject - eye) @ forward)
    center = eye + distance * forward
    offset = eye - center
    yaw, pitch = math.atan2(offset[0], offset[2]), math.asin(offset[1] / distance)
    cameras = []
    for i in range(views):
        radius, angle = math.sqrt((i + 0.5) / views), i * math.pi * (3 - math.sqrt(5))
        y = yaw + 0.30 * radius * math.cos(angle)
        p = max(pitch + 0.14 * radius * math.sin(angle), 0.03)
        d = distance * (1 + 0.06 * math.sin(1.7 * i))
        e = center + d * np.array([math.sin(y) * math.cos(p), math.sin(p), math.cos(y) * math.cos(p)])
        target = center + 0.35 * (e - eye) * np.array([1, 1, 0])
        cameras.append(look_camera(e, target, width=width, height=height))
    return cameras


def write_capture(folder: Path, attributes: Attributes, *, views=34, width=504, height=378, progress=iter) -> None:
    """Render and write a capture; `progress` wraps the loop over views (tqdm)."""
    cameras = capture_cameras(attributes, views, width, height)
    scene = build_scene(attributes, width, height)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, camera in enumerate(progress(cameras)):
        view = render(scene, camera, supersample=SUPERSAMPLE)
        iio.imwrite(folder / "images" / f"view{i:03d}.jpg", view.image, quality=95, subsampling=0)
        seen = view.depth[np.isfinite(view.depth)]
        rows.append(_llff_row(camera, float(seen.min()) * 0.95, float(np.percentile(seen, 99))))
    np.save(folder / "poses_bounds.npy", np.stack(rows))
    description = {
        "attributes": asdict(attributes),
        "caption": attributes.caption(),
        "width": width,
        "height": height,
        "cameras": [{"pose": c.pose.double().tolist(), "focal": c.fx} for c in cameras],
    }
    (folder / "world.json").write_text(json.dumps(description) + "\n")


def write_orbit(folder: Path, attributes: Attributes, *, views=100, held_out=13, size=200) -> None:
    """A Blender-layout capture that looks at the subject from all sides: square PNGs, transparent around it.

    `transforms_train.json` and `transforms_test.json` as of the synthetic NeRF scenes; cameras on the upper half of a
    sphere, in sunflower order, the held-out ones spread evenly among them.
    """
    scene = build_scene(attributes, size, size)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames: dict[str, list] = {"train": [], "test": []}
    total = views + held_out
    for i in range(total):
        height, angle = 0.05 + 0.85 * (i + 0.5) / total, i * math.pi * (3 - math.sqrt(5))
        ring = math.sqrt(1 - height**2)
        eye = np.array([0, 0.5, 0]) + 2.0 * np.array([ring * math.sin(angle), height, ring * math.cos(angle)])
        camera = look_camera(eye, (0, 0.5, 0), width=size, height=size)
        view = render(scene, camera, supersample=SUPERSAMPLE)
        rgba = np.concatenate([view.image, 255 * view.subject[..., None].astype(np.uint8)], 2)
        iio.imwrite(folder / "images" / f"r_{i:03d}.png", rgba)
        pose = np.eye(4)
        pose[:3] = camera.pose.numpy() * [1, -1, -1, 1]  # Blender's axes: y up, z backwards
        split = "test" if held_out and i % (total // held_out) == 0 and len(frames["test"]) < held_out else "train"
        frames[split].append({"file_path": f"./images/r_{i:03d}", "transform_matrix": pose.tolist()})
    angle_x = 2 * math.atan(size / 2 / camera.fx)
    for split, rows in frames.items():
        text = json.dumps({"camera_angle_x": angle_x, "frames": rows})
        (folder / f"transforms_{split}.json").write_text(text + "\n")


def _llff_row(camera: Camera, near: float, far: float) -> np.ndarray:
    """17 numbers: [R | t | (height, width, focal)] with R's columns (down, right, back), then the depth bounds."""
    right, down, forward, position = camera.pose.double().numpy().T
    matrix = np.stack([down, right, -forward, position, [camera.height, camera.width, camera.fx]], 1)
    return np.concatenate([matrix.ravel(), [near, far]])


@dataclass(frozen=True)
class WorldCapture:
    """What `world.json` says: the scene, and the camera of each photo by file stem (`view000`...)."""

    attributes: Attributes
    cameras: dict[str, Camera]

    @staticmethod
    def read(folder: Path) -> WorldCapture | None:
        """None if the folder is not a capture of the procedural world. UserError if its file is broken."""
        path = folder / "world.json"
        if not path.exists():
            return None
        try:
            data = load_json(path)
            width, height = data["width"], data["height"]
            cameras = {
                f"view{i:03d}": Camera(
                    torch.tensor(c["pose"], dtype=torch.float32),
                    c["focal"],
                    c["focal"],
                    width / 2,
                    height / 2,
                    width,
                    height,
                )
                for i, c in enumerate(data["cameras"])
            }
            return WorldCapture(Attributes(**data["attributes"]), cameras)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): make the capture anew with scripts/make_scene.py") from error

    def edited(self, source_prompt: str, target_prompt: str) -> Attributes | None:
        """The attributes that the target prompt asks for, or None where the world has no such edit.

        Only words that the source prompt does not have count: "an orange flower" -> "a red flower" changes the colour.
        """
        said = {*words(source_prompt), *FILLERS}
        new, of = [w for w in words(target_prompt) if w not in said], self.attributes
        if of.beside in said and of.color not in said:  # the flower beside is meant
            color = new[0] if len(new) == 1 else None
            return replace(of, beside=color) if color in COLORS and color != of.beside else None
        return of.towards(new)

    def view(self, name: str, attributes: Attributes, width: int, height: int) -> Render:
        """Photo `name` as it would be if the scene had these attributes, at any size."""
        scene = build_scene(attributes, width, height)
        return render(scene, self.cameras[name].resized(width, height), supersample=SUPERSAMPLE)


def words(prompt: str) -> list[str]:
    """Lower-case words without punctuation."""
    return [w for w in "".join(c.lower() if c.isalpha() else " " for c in prompt).split() if w]
