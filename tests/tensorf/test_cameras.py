"""Cameras: hand-worked rays, intrinsics that scale with the image, and projection as the rays' inverse."""

import math
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pkgutil import walk_packages

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tensorf
from tensorf.cameras import Camera, size_for_width
from tensorf.space import space_of
from tensorf.train import PixelBatches


def project(camera, points):
    """(n, 3) world points -> (n, 2) pixel coordinates (column, row)."""
    x, y, z = ((points - camera.position) @ camera.pose[:, :3]).T
    return torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1)


@pytest.fixture
def turned():
    """Odd sizes, a principal point off the centre, a rotation about a skew axis."""
    torch.manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    rotation = rotation * torch.sign(torch.linalg.det(rotation))
    pose = torch.cat([rotation, torch.tensor([[0.5], [-2.0], [3.0]])], 1)
    return Camera(pose, fx=11.0, fy=13.0, cx=3.1, cy=2.7, width=7, height=5)


def test_rays_of_a_camera_worked_by_hand():
    camera = Camera(torch.eye(3, 4), fx=2.0, fy=4.0, cx=2.0, cy=1.0, width=4, height=2)
    origins, directions = camera.pixel_rays()
    assert origins.shape == directions.shape == (8, 3)
    assert (origins == 0).all()
    # Pixel (0, 0) has its centre at (0.5, 0.5): ((0.5 - 2) / 2, (0.5 - 1) / 4, 1).
    assert directions[0].tolist() == [-0.75, -0.125, 1.0]
    # Row by row: index 1 is column 1 of row 0, (1.5 - 2) / 2 = -0.25; index 4 is row 1, (1.5 - 1) / 4 = 0.125.
    assert directions[1].tolist() == [-0.25, -0.125, 1.0]
    assert directions[4].tolist() == [-0.75, 0.125, 1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fx", 0.0),
        ("fx", -50.0),
        ("fy", math.nan),
        ("fy", math.inf),
        ("cx", math.nan),
        ("cy", -math.inf),
        ("width", 0),
        ("height", -4),
        ("width", 96.0),
        ("height", 2.5),
    ],
)
def test_intrinsics_that_no_camera_has_are_refused(turned, name, value):
    with pytest.raises(ValueError, match=f"the camera's {name}={value} has to be a (finite|whole) number.*in pixels"):
        replace(turned, **{name: value})
    assert replace(turned, cx=-3.0, width=np.int64(7)).cx == -3.0  # crops look past their own middle


def test_small_focal_lengths_are_taken_and_limits_are_told(turned):
    assert replace(turned, fx=0.5, cy=-3.0).cy == -3.0
    for name, what in (
        ("fx", "number above 0, in"),
        ("fy", "number above 0, in"),
        ("cx", "number, in"),
        ("cy", "number, in"),
    ):
        with pytest.raises(ValueError, match=f"{name}=nan has to be a finite {what} pixels"):
            replace(turned, **{name: math.nan})


def test_rays_are_cast_without_matrix_products(turned, ndc_capture):
    """A GPU may make those in TF32, and rays would miss their pixels."""

    class NoProducts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket.__name__ not in ("mm", "bmm", "addmm", "matmul"), func
            return func(*args, **kwargs or {})

    pixels = PixelBatches(ndc_capture, ndc_capture.train, space_of(ndc_capture), torch.device("cpu"))
    view, v, u = torch.tensor([0, 1]), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 5.0])
    with NoProducts():
        turned.pixel_rays()
        directions = pixels._directions(view, v, u)
    for i in range(2):
        camera = ndc_capture.cameras[ndc_capture.train[i]]
        expected = camera.pixel_rays()[1][int(v[i]) * camera.width + int(u[i])]
        torch.testing.assert_close(directions[i], expected)


def test_centre_pixel_of_an_odd_image_looks_forward():
    # Forward is world +x, down is world +y, hence right = down x forward = (0, 1, 0) x (1, 0, 0) = (0, 0, -1).
    pose = torch.tensor([[0.0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7]])
    camera = Camera(pose, fx=3.0, fy=3.0, cx=1.5, cy=1.5, width=3, height=3)
    origins, directions = camera.pixel_rays()
    assert directions[4].tolist() == [1.0, 0.0, 0.0]
    assert camera.forward.tolist() == [1.0, 0.0, 0.0]
    assert (origins == torch.tensor([5.0, 6, 7])).all()
    # One pixel to the right: local ((2.5 - 1.5) / 3, 0, 1), so forward plus a third of right.
    assert torch.allclose(directions[5], torch.tensor([1.0, 0, -1 / 3]))


def test_directions_have_unit_depth(turned):
    _, directions = turned.pixel_rays()
    assert torch.allclose(directions @ turned.forward, torch.ones(35), atol=1e-6)
    assert (directions.norm(dim=1) > 1.0001).any()  # so they are not normalised


def test_resized_scales_each_axis(turned):
    # 7 x 5 -> 10 x 4: factors 10/7 and 4/5.
    small = turned.resized(10, 4)
    assert (small.width, small.height) == (10, 4)
    assert math.isclose(small.fx, 110 / 7) and math.isclose(small.cx, 31 / 7)
    assert math.isclose(small.fy, 10.4) and math.isclose(small.cy, 2.16)
    assert small.pose is turned.pose
    # The image's bottom right corner stays the same direction.
    assert math.isclose((10 - small.cx) / small.fx, (7 - turned.cx) / turned.fx)
    assert math.isclose((4 - small.cy) / small.fy, (5 - turned.cy) / turned.fy)


def test_resizing_to_odd_sizes_and_back_is_the_identity(turned):
    back = turned.resized(3, 1).resized(7, 5)
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert math.isclose(getattr(back, name), getattr(turned, name)), name


def test_projecting_points_of_rays_gives_pixel_centres(turned):
    origins, directions = turned.pixel_rays()
    depth = torch.linspace(0.5, 20, 35)[:, None]
    pixels = project(turned, origins + depth * directions)
    v, u = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    assert torch.allclose(pixels, torch.stack([u.ravel(), v.ravel()], 1), atol=1e-4)


def test_with_pose_moves_the_rays_only(turned):
    moved = turned.with_pose(torch.eye(3, 4))
    local = turned.pixel_rays()[1] @ turned.pose[:, :3]
    assert torch.allclose(moved.pixel_rays()[1], local, atol=1e-6)
    assert (moved.pixel_rays()[0] == 0).all()


@pytest.mark.parametrize(
    ("width", "height", "target", "expected"),
    [
        (504, 378, 252, (252, 189)),
        (5, 3, 4, (4, 2)),  # 3 * 4 / 5 = 2.4
        (5, 4, 7, (7, 6)),  # 4 * 7 / 5 = 5.6
        (1000, 1, 10, (10, 1)),  # never less than a row
    ],
)
def test_size_for_width(width, height, target, expected):
    assert size_for_width(width, height, target) == expected


def pose_of(rotation):
    return torch.cat([torch.as_tensor(rotation), torch.tensor([[0.5], [-2.0], [3.0]])], 1)


@pytest.mark.parametrize(
    "pose",
    [
        pose_of(1.1 * torch.eye(3)),
        pose_of(torch.diag(torch.tensor([1.0, 1, -1]))),
        pose_of(torch.eye(3) + 0.1 * torch.eye(3).roll(1, 1)),
        pose_of(torch.full((3, 3), math.nan)),
        torch.eye(4),
    ],
    ids=["scaled", "mirrored", "sheared", "not finite", "four rows"],
)
def test_poses_that_are_no_rotation_are_refused(turned, pose):
    with pytest.raises(ValueError, match="pose"):
        Camera(pose, 9.0, 9.0, 4.5, 3.5, 9, 7)
    with pytest.raises(ValueError, match="pose"):
        turned.with_pose(pose)


def test_poses_of_other_kinds_of_numbers_become_float32(turned):
    assert turned.with_pose(turned.pose.double()).pose.dtype == torch.float32
    camera = turned.with_pose(turned.pose.double().numpy())
    assert torch.equal(camera.pixel_rays()[1], turned.pixel_rays()[1])


def test_cameras_can_be_looked_for(turned):
    other = turned.with_pose(turned.pose.clone())
    assert turned != other and [other, turned].index(turned) == 1 and other not in [turned]


def test_no_class_compares_its_tensors():
    """Comparing these would raise: the truth of several numbers is ambiguous."""
    modules = [import_module(found.name) for found in walk_packages(tensorf.__path__, "tensorf.")]
    kinds = {kind for module in modules for kind in vars(module).values() if is_dataclass(kind)}
    holders = {kind for kind in kinds if any("Tensor" in str(f.type) or "ndarray" in str(f.type) for f in fields(kind))}
    assert len(holders) > 10 and {kind for kind in holders if kind.__eq__ is not object.__eq__} == set()


@pytest.mark.parametrize(("quarters", "place"), [(1, lambda u, v: (7 - v, u)), (3, lambda u, v: (v, 9 - u))])
def test_a_turned_camera_sees_the_turned_picture(camera, quarters, place):
    off = replace(camera, fx=8.0, cx=4.0, cy=3.0)
    turned, points = off.turned(quarters), torch.tensor([[0.3, -0.2, 0.5], [-0.1, 0.4, 1.0]])
    assert (turned.width, turned.height) == (7, 9)
    for (u, v), now in zip(off.project(points)[0].tolist(), turned.project(points)[0].tolist(), strict=True):
        assert now == pytest.approx(place(u, v), abs=1e-4)
    back = turned.turned(-quarters)
    assert vars(back) | {"pose": 0} == vars(off) | {"pose": 0} and torch.equal(back.pose, off.pose)


def test_points_close_by_and_in_other_numbers_are_projected():
    camera = Camera(torch.eye(3, 4), fx=2.0, fy=4.0, cx=2.0, cy=1.0, width=4, height=2)
    pixels, depth = camera.project(torch.tensor([[0.1, -0.05, 0.2], [0.0, 0.0, -1.0]], dtype=torch.float64))
    assert pixels.dtype == depth.dtype == torch.float64 and depth.tolist() == [0.2, -1.0]
    assert pixels[0].tolist() == pytest.approx([2 * 0.1 / 0.2 + 2, 4 * -0.05 / 0.2 + 1])


def test_what_a_camera_shows_by_hand():
    # 4x2 pixels: at a depth of 2 it shows x from -2 to 2 and y from -0.5 to 0.5.
    camera = Camera(torch.eye(3, 4), fx=2.0, fy=4.0, cx=2.0, cy=1.0, width=4, height=2)
    inside = [[0.0, 0, 2], [-1.9, 0, 2], [1.9, 0, 2], [0, -0.4, 2], [0, 0.4, 2], [0, 0, 0.1]]
    outside = [[-2.1, 0, 2], [2.1, 0, 2], [0, -0.6, 2], [0, 0.6, 2], [0, 0, -2], [0, 0, 0]]
    rim = [[-2.0, 0, 2], [2.0, 0, 2], [0, -0.5, 2], [0, 0.5, 2]]
    shown = camera.shows(torch.tensor(inside + outside + rim))
    assert shown.tolist() == [True] * 6 + [False] * 10


def test_the_reason_why_a_pose_is_refused():
    mirror = torch.diag(torch.tensor([1.0, 1, -1]))
    for rotation, why in ((mirror, "it is a mirror image"), (1.1 * torch.eye(3), r"R\^T R is 0.21 off the identity")):
        with pytest.raises(ValueError, match=rf"no rotation \({why}\)"):
            Camera(pose_of(rotation), 9.0, 9.0, 4.5, 3.5, 9, 7)
