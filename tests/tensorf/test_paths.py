"""Camera paths: geometry by its axioms."""

import math

import pytest
import torch
import torch.nn.functional as F

from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.paths import PATHS, camera_path, keyframed, look_at, mean_pose, nearest_point, upward

TARGET = torch.tensor([0.3, -0.2, 1.0])


def cameras_around(count=7, degrees=120):
    """On an arc of so many degrees around TARGET, at changing heights; all look at it, y is down."""
    cameras = []
    for i in range(count):
        angle = math.radians(degrees) * i / (count - 1)
        offset = torch.tensor([2 * math.cos(angle), -0.5 - 0.1 * (i % 3), 2 * math.sin(angle)])
        pose = look_at(TARGET + offset, TARGET, torch.tensor([0.0, 1, 0]))
        cameras.append(Camera(pose, 20.0 + i, 21.0, 8.0, 6.0, 16, 12))
    return cameras


@pytest.mark.parametrize("frames", [1, 2, 13])
@pytest.mark.parametrize("kind", PATHS)
def test_poses_are_rotations_and_intrinsics_those_of_the_median_focal_length(kind, frames):
    path = camera_path(kind, cameras_around(), frames)
    assert len(path) == frames
    for camera in path:
        rotation = camera.pose[:, :3]
        assert torch.allclose(rotation.T @ rotation, torch.eye(3), atol=1e-5)
        assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (23.0, 21.0, 8.0, 6.0)
        assert (camera.width, camera.height) == (16, 12)


@pytest.mark.parametrize("kind", PATHS)
def test_paths_move_and_stay_upright(kind):
    cameras = cameras_around() if kind == "spiral" else cameras_around(9, degrees=320)
    path = camera_path(kind, cameras, 13)  # an even spiral crosses itself halfway
    assert len({tuple(c.position.tolist()) for c in path}) == 13
    steps = [(a.position - b.position).norm().item() for a, b in zip(path, path[1:])]
    assert max(steps) < 2.5
    assert all(c.pose[1, 1] > 0.5 for c in path)  # down stays down


def test_an_orbit_of_cameras_all_around_is_a_whole_turn():
    cameras = cameras_around(12, degrees=330)
    path = camera_path("orbit", cameras, 16)
    center = nearest_point(torch.stack([c.pose for c in cameras]), 1.0)
    assert torch.allclose(center, TARGET, atol=1e-4)
    for camera in path:
        offset = center - camera.position
        assert torch.allclose(F.normalize(offset, dim=0), camera.forward, atol=1e-4)
        assert offset.norm().item() == pytest.approx(2.1, abs=0.1)
    # Opposite frames are across the centre, and the first stands where the first camera points it.
    flat = torch.tensor([1.0, 0, 1])
    across = (path[0].position + path[8].position) / 2 - center
    assert (across * flat).norm() < 0.3  # "up" is the mean camera's, a little off y
    assert F.cosine_similarity((path[0].position - center) * flat, torch.tensor([1.0, 0, 0]), dim=0) > 0.95


def test_an_orbit_stays_where_cameras_were():
    cameras = cameras_around(7)  # on a third of a turn
    path = camera_path("orbit", cameras, 20)
    center = nearest_point(torch.stack([c.pose for c in cameras]), 1.0)
    angles = []
    for camera in path:
        offset = camera.position - center
        assert torch.allclose(F.normalize(-offset, dim=0), camera.forward, atol=1e-4)
        assert offset.norm().item() == pytest.approx(2.1, abs=0.1)
        angles.append(math.degrees(math.atan2(offset[2], offset[0])))
    assert -8 < min(angles) < 8 and 112 < max(angles) < 128  # from the first camera to the last, and no farther


def tilted(cameras, degrees, seed=0):
    """The cameras, each rolled about its own axis by up to so many degrees."""
    generator = torch.Generator().manual_seed(seed)
    rolled = []
    for camera in cameras:
        angle = math.radians(degrees) * (2 * torch.rand((), generator=generator) - 1)
        roll = torch.tensor([[torch.cos(angle), -torch.sin(angle), 0], [torch.sin(angle), torch.cos(angle), 0]])
        roll = torch.cat([roll, torch.tensor([[0.0, 0, 1]])])
        rolled.append(camera.with_pose(torch.cat([camera.pose[:, :3] @ roll, camera.pose[:, 3:]], 1)))
    return rolled


def test_an_orbit_of_cameras_that_look_down_from_one_side_is_level():
    """The mean of their own up axes leans away from where they stand, by as much as they look down."""
    down, higher = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, -1.5, 0])
    level = cameras_around(12, degrees=140)
    cameras = tilted([c.with_pose(look_at(c.position + higher, TARGET, down)) for c in level], 5)
    poses = torch.stack([c.pose for c in cameras])
    mean = F.normalize(-poses[:, :, 1].mean(0), dim=0)
    assert mean @ torch.tensor([0.0, -1, 0]) < math.cos(math.radians(20))  # the mean would not do
    assert upward(poses) @ torch.tensor([0.0, -1, 0]) > math.cos(math.radians(3))
    for camera in camera_path("orbit", cameras, 20):
        assert abs(float(camera.pose[1, 0])) < math.sin(math.radians(4))  # its right axis is level


def test_up_is_the_mean_where_nothing_says_more():
    ahead = [
        Camera(look_at(torch.tensor([x, 0.0, 0]), torch.tensor([x, 0.0, 4]), torch.tensor([0.0, 1, 0])), *[1] * 6)
        for x in (0.0, 1, 2)
    ]
    assert torch.allclose(upward(torch.stack([c.pose for c in ahead])), torch.tensor([0.0, -1, 0]), atol=1e-6)
    rolled = torch.stack([c.pose for c in tilted(cameras_around(30), 180)])  # any way up
    assert torch.allclose(upward(rolled), F.normalize(-rolled[:, :, 1].mean(0), dim=0), atol=1e-6)


def test_an_orbit_is_as_far_away_as_the_cameras_nearby():
    cameras = cameras_around(24, degrees=345)
    moved = []
    for i, camera in enumerate(cameras):  # the second half of them stands twice as far away
        pose = camera.pose.clone()
        pose[:, 3] = TARGET + (pose[:, 3] - TARGET) * (2 if i >= 12 else 1)
        moved.append(camera.with_pose(pose))
    distances = [(c.position - TARGET).norm().item() for c in camera_path("orbit", moved, 40)]
    assert min(distances) < 2.4 and max(distances) > 3.9


def test_an_orbit_looks_where_the_cameras_nearby_look():
    """Some look higher than others: the point nearest to all axes lies in between, and none of them looks there."""
    cameras = []
    for i, camera in enumerate(cameras_around(24, degrees=345)):
        aim = TARGET + torch.tensor([0.0, -0.4 if i < 12 else 0.4, 0.0])
        cameras.append(camera.with_pose(look_at(camera.position, aim, torch.tensor([0.0, 1, 0]))))
    positions = torch.stack([c.position for c in cameras])
    for camera in camera_path("orbit", cameras, 40):
        near = (positions - camera.position).norm(dim=1).argsort()[:3]
        if len({*(near < 12).tolist()}) == 1:  # not where the two halves meet
            assert (camera.forward * cameras[near[0]].forward).sum() > 0.985


def test_spiral_looks_at_the_focus_from_near_the_mean_camera():
    cameras = cameras_around(5)
    poses = torch.stack([c.pose for c in cameras])
    center = mean_pose(poses)
    focus = center[:, 3] + 1.7 * center[:, 2]
    reach = (poses[:, :, 3] - center[:, 3]).norm(dim=1).max()
    for camera in camera_path("spiral", cameras, 20, focus=1.7):
        assert torch.allclose(F.normalize(focus - camera.position, dim=0), camera.forward, atol=1e-5)
        assert (camera.position - center[:, 3]).norm() <= reach * 1.5


def test_spiral_makes_two_turns():
    cameras = cameras_around(9)
    center = mean_pose(torch.stack([c.pose for c in cameras]))
    offsets = torch.stack([c.position - center[:, 3] for c in camera_path("spiral", cameras, 40, focus=1.7)])
    across = offsets @ center[:, 0]
    starts = [i for i in range(40) if across[i] > 0.99 * across.max()]
    assert starts == [0, 20]  # at the far right again after each turn


def test_an_orbit_of_cameras_that_look_outwards_looks_outwards():
    cameras = []
    for camera in cameras_around(24, degrees=345):
        away = 2 * camera.position - TARGET
        cameras.append(camera.with_pose(look_at(camera.position, away, torch.tensor([0.0, 1, 0]))))
    positions = torch.stack([c.position for c in cameras])
    for camera in camera_path("orbit", cameras, 40):
        nearest = cameras[int((positions - camera.position).norm(dim=1).argmin())]
        assert (camera.forward * nearest.forward).sum() > 0.9


def passed(path, cameras):
    """The frame of the path that is nearest to each camera, which has to be there."""
    places = torch.stack([c.position for c in path])
    step = (places[1:] - places[:-1]).norm(dim=1).max()
    nearest = []
    for camera in cameras:
        away = (places - camera.position).norm(dim=1)
        assert away.min() <= 0.6 * step
        nearest.append(int(away.argmin()))
        assert (path[nearest[-1]].pose[:, :3] - camera.pose[:, :3]).abs().max() < 0.1
    return nearest


def test_interpolation_goes_back_the_same_way_where_the_ends_are_far_apart():
    cameras = cameras_around(7, degrees=180)
    path = camera_path("interpolate", cameras, 120)
    assert passed(path[:61], cameras) == sorted(passed(path[:61], cameras))
    assert torch.allclose(path[0].pose, cameras[0].pose, atol=1e-5)
    assert torch.allclose(path[60].pose, cameras[-1].pose, atol=1e-5)
    for i in range(1, 60):
        assert torch.allclose(path[i].pose, path[-i].pose, atol=1e-5)
    assert min((c.position - TARGET).norm() for c in path) > 1.9  # never through what was photographed


@pytest.mark.parametrize("degrees", [0, 1, 90, 179, 180])
@pytest.mark.parametrize("make", ["interpolate", "keyframed"])
def test_rotations_turn_evenly(make, degrees):
    still = cameras_around(2)[0]
    radians = math.radians(degrees)
    turn = torch.tensor(
        [[math.cos(radians), 0, math.sin(radians)], [0, 1, 0], [-math.sin(radians), 0, math.cos(radians)]]
    )
    turned = still.with_pose(torch.cat([still.pose[:, :3] @ turn, still.position[:, None] + 1], 1))
    if make == "keyframed":
        rotations = [pose[:, :3] for pose in keyframed(torch.stack([still.pose, turned.pose]), 5)]
    else:
        rotations = [c.pose[:, :3] for c in camera_path("interpolate", [still, turned], 8)[:5]]
    for before, after in zip(rotations, rotations[1:]):
        cosine = ((before.T @ after).trace() - 1) / 2
        assert math.degrees(math.acos(min(1, cosine.item()))) == pytest.approx(degrees / 4, abs=0.1)
    assert torch.allclose(rotations[0], still.pose[:, :3], atol=1e-5)
    assert torch.allclose(rotations[4], turned.pose[:, :3], atol=1e-5)


def test_interpolation_passes_through_the_cameras():
    cameras = cameras_around(5, degrees=300)
    path = camera_path("interpolate", cameras, 100)
    frames = passed(path, cameras)
    assert frames == sorted(frames) and frames[0] == 0 and frames[-1] < 90  # and from the last one to the first


def test_interpolation_keeps_its_pace_and_takes_no_corners():
    """Photos that were taken at uneven steps, two of them at one place: a hop each would take as long as any other."""
    angles = [0, 4, 6, 40, 41, 43, 80, 80, 110, 180]
    cameras = [cameras_around(181, degrees=180)[degrees] for degrees in angles]
    down = torch.tensor([0.0, 1, 0])
    cameras = [c.with_pose(look_at(c.position * torch.tensor([1.0, 0, 1]), TARGET, down)) for c in cameras]
    path = camera_path("interpolate", cameras, 120)[:61]
    places = torch.stack([c.position for c in path])
    ways = places[1:] - places[:-1]
    steps = ways.norm(dim=1)
    assert steps[3:-3].max() < 1.6 * steps.median() and steps[3:-3].min() > 0.5 * steps.median()
    assert F.cosine_similarity(ways[1:], ways[:-1]).min() > math.cos(math.radians(12))
    turns = [((a.pose[:, :3].T @ b.pose[:, :3]).trace() - 1) / 2 for a, b in zip(path, path[1:])]
    assert max(math.degrees(math.acos(min(1.0, float(turn)))) for turn in turns) < 6  # of 180 in 60 steps
    still = camera_path("interpolate", [cameras[0]] * 3, 4)
    assert all(torch.equal(camera.pose, cameras[0].pose) for camera in still)


def test_a_closed_way_is_as_smooth_at_its_seam():
    path = camera_path("interpolate", [c for i, c in enumerate(cameras_around(34, degrees=330)) if i % 3 == 0], 60)
    places = torch.stack([c.position for c in [*path, path[0], path[1]]])
    ways = places[1:] - places[:-1]
    assert F.cosine_similarity(ways[1:], ways[:-1]).min() > math.cos(math.radians(10))


@pytest.mark.parametrize("kind", PATHS)
def test_a_camera_that_stands_astray_is_on_no_path(kind):
    cameras = cameras_around(12, degrees=330)
    pose = cameras[4].pose.clone()
    pose[0, 3] += 300
    astray = [*cameras[:5], cameras[4].with_pose(pose), *cameras[5:]]
    for ours, theirs in zip(camera_path(kind, astray, 9), camera_path(kind, cameras, 9), strict=True):
        torch.testing.assert_close(ours.pose, theirs.pose)


@pytest.mark.parametrize(
    ("kind", "frames", "message"), [("zigzag", 5, "zigzag.*spiral, orbit"), ("orbit", 0, "frames=0")]
)
def test_what_cannot_be_is_told(kind, frames, message):
    with pytest.raises(UserError, match=message):
        camera_path(kind, cameras_around(), frames)


def test_nearest_point_by_hand():
    # The line along z through (1, 0) and the line along x at y = 2, z = 5: closest to both is (1, 1, 5).
    along_z = look_at(torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0, 1]), torch.tensor([0.0, 1, 0]))
    along_x = look_at(torch.tensor([-3.0, 2, 5]), torch.tensor([0.0, 2, 5]), torch.tensor([0.0, 1, 0]))
    assert torch.allclose(nearest_point(torch.stack([along_z, along_x]), 7.0), torch.tensor([1.0, 1, 5]), atol=1e-5)


def nearly_parallel(count=9):
    """Side by side along x, y is down: they look along z, and a little apart, so that their axes meet behind them."""
    places = [torch.tensor([0.25 * (i - count // 2), 0.0, 0.0]) for i in range(count)]
    ahead = [place * 1.1 + torch.tensor([0.0, 0, 5]) for place in places]
    poses = [look_at(place, aim, torch.tensor([0.0, 1, 0])) for place, aim in zip(places, ahead)]
    return [Camera(pose, 20.0, 20.0, 8.0, 6.0, 16, 12) for pose in poses]


def test_cameras_that_face_one_way_look_at_the_depth_that_is_known():
    cameras = nearly_parallel()
    poses = torch.stack([c.pose for c in cameras])
    assert torch.allclose(nearest_point(poses, 3.0), torch.tensor([0.0, 0, 3]), atol=1e-5)  # not at z = -50
    path = camera_path("orbit", cameras, 20, focus=3.0)
    assert min(float(c.forward[2]) for c in path) > 0.9
    assert max(float(c.position.norm()) for c in path) < 1.3


def test_look_at_by_hand():
    # From (0, 0, -2) to the origin with y down: the identity's rotation.
    pose = look_at(torch.tensor([0.0, 0, -2]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    assert torch.allclose(pose, torch.cat([torch.eye(3), torch.tensor([[0.0], [0], [-2]])], 1))
    # From (5, 0, 0): forward is -x, right = down x forward = (0, 1, 0) x (-1, 0, 0) = (0, 0, 1).
    pose = look_at(torch.tensor([5.0, 0, 0]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    assert torch.allclose(pose[:, :3], torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]))


def test_mean_pose_of_one_is_itself():
    pose = cameras_around()[2].pose
    assert torch.allclose(mean_pose(pose[None]), pose, atol=1e-6)


def test_a_path_through_keyframes():

    def key(x, y):
        pose = torch.eye(3, 4)
        pose[:, 3] = torch.tensor([x, y, 0.0])
        return pose

    keys = torch.stack([key(0, 0), key(1, 0), key(2, 3)])
    path = keyframed(keys, 5)
    places = torch.stack([p[:, 3] for p in path])
    torch.testing.assert_close(places[::2], keys[:, :, 3])  # all of them, the first and the last at the ends
    # Catmull-Rom at the middle of the first stretch: (-a + 9 b + 9 c - d) / 16 with a = b
    torch.testing.assert_close(places[1], (8 * keys[0] + 9 * keys[1] - keys[2])[:, 3] / 16)
    assert all(torch.allclose(p[:, :3], torch.eye(3)) for p in path)
    assert len(keyframed(keys, 1)) == 1


def test_keyframed_positions_are_catmull_roms():
    keys = torch.eye(3, 4).repeat(4, 1, 1)
    keys[:, :, 3] = torch.tensor([[0.0, 0, 0], [1, 2, 0], [3, 1, 1], [4, 0, 5]])
    a, b, c, d = keys[:, :, 3]
    path = keyframed(keys, 7)  # two frames a span; halfway (-a + 9 b + 9 c - d) / 16, the ends count twice
    assert torch.allclose(path[3][:, 3], (-a + 9 * b + 9 * c - d) / 16)
    assert torch.allclose(path[1][:, 3], (-a + 9 * a + 9 * b - c) / 16)
    assert torch.allclose(path[5][:, 3], (-b + 9 * c + 9 * d - d) / 16)


def test_the_mean_of_cameras_all_around_is_turned_as_the_first():
    """Their axes cancel out: what is left of them is rounding, which is no direction."""
    angles = [2 * math.pi * i / 8 for i in range(8)]
    down = torch.tensor([0.0, 1.0, 0.0])
    eyes = [torch.tensor([math.cos(a), 0.0, math.sin(a)]) for a in angles]
    poses = torch.stack([look_at(eye, torch.zeros(3), down) for eye in eyes])
    mean = mean_pose(poses)
    assert torch.equal(mean[:, :3], poses[0, :, :3])
    torch.testing.assert_close(mean[:, 3], torch.zeros(3), atol=1e-6, rtol=0)
