"""Cameras of videos: what a path is told, and what is known about where the scene lies."""

import math
from types import SimpleNamespace

import pytest
import torch

from cds3d.commands.videos import cameras_along, scene_depth
from tensorf.cameras import Camera
from tensorf.paths import look_at


def test_a_spiral_where_cameras_look_all_around_is_warned_of(caplog):
    angles = [2 * math.pi * i / 12 for i in range(12)]
    eyes = [torch.tensor([math.cos(a), 0.0, math.sin(a)]) for a in angles]
    poses = [look_at(eye, torch.zeros(3), torch.tensor([0.0, 1, 0])) for eye in eyes]
    cameras = [Camera(pose, 20.0, 20.0, 8.0, 6.0, 16, 12) for pose in poses]
    around = SimpleNamespace(cameras=cameras, forward_facing=False, sightings=None)
    cameras_along(around, "orbit", 4)
    cameras_along(SimpleNamespace(cameras=cameras[:4], forward_facing=False, sightings=None), "spiral", 4)
    assert "path=orbit" not in caplog.text
    cameras_along(around, "spiral", 4)
    assert "path=spiral is for cameras that face one way" in caplog.text and "path=orbit" in caplog.text


def test_the_scene_lies_at_the_median_depth_of_what_is_seen():
    cameras = [Camera(torch.eye(3, 4), 20.0, 20.0, 8.0, 6.0, 16, 12)] * 2
    points = torch.tensor([[0.0, 0, 2], [0, 1, 2], [0, 0, 3], [1, 0, 3], [0, 0, 9], [0, 0, 9]])
    capture = SimpleNamespace(cameras=cameras, sightings=(torch.tensor([0, 1] * 3), points))
    assert scene_depth(capture) == 3
    unknown = SimpleNamespace(sightings=None, forward_facing=True, near=1.5, far=6.0)
    assert scene_depth(unknown) == pytest.approx(2.4)  # halfway between the nearest and the farthest in disparity
