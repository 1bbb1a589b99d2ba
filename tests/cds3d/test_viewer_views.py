"""Where the viewer's windows look from: what a drag may lose, the way back, photos, narrow windows, clicks."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

viser = pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')
from viewer_client import look, messages, socket_of  # noqa: E402

from cds3d.commands.view import open_viewer  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.viewer import app  # noqa: E402
from cds3d.viewer.looking import CameraLimits  # noqa: E402
from cds3d.viewer.window import fov_of, pose_of  # noqa: E402
from tensorf.cameras import Camera  # noqa: E402
from tensorf.paths import look_at  # noqa: E402


@pytest.fixture(scope="module")
def viewer(tmp_path_factory, source_run):
    here = tmp_path_factory.mktemp("views")
    source = here / "outputs" / "daisies" / "source"
    shutil.copytree(source_run, source)
    running = open_viewer(load_config("view", [f"run={source}", "port=0", "width=48", "moving_width=24"]))
    yield running
    running.close()


def window_of(viewer):
    (window,) = viewer.windows.values()
    return window


def orbited(camera, pivot, angle):
    """The camera turned around a point, about its own vertical axis."""
    turn = viser.transforms.SO3.exp(np.asarray(camera.pose[:, 1].double()) * angle).as_matrix()
    turn = torch.from_numpy(turn).float()
    pose = torch.cat([turn @ camera.pose[:, :3], (pivot + turn @ (camera.position - pivot))[:, None]], 1)
    return replace(camera, pose=pose)


def row_of_cameras():
    flat = torch.eye(3)
    return [
        Camera(torch.cat([flat, torch.tensor([[x], [0.0], [0.0]])], 1), 50, 50, 32, 24, 64, 48) for x in (0, 1, 2.0)
    ]


def test_a_view_that_is_held_still_looks_at_what_it_was_turned_around():
    limits, pivot = CameraLimits(row_of_cameras(), 4.0), torch.tensor([1.0, 0, 10])
    far = orbited(row_of_cameras()[1], pivot, math.radians(-60))
    held = limits.limited(far.pose, pivot)
    torch.testing.assert_close(held[:, 2], torch.nn.functional.normalize(pivot - held[:, 3], dim=0))
    assert float((held[:, 3] - limits.positions).norm(dim=1).min()) <= limits.reach + 1e-4
    near = orbited(row_of_cameras()[1], pivot, math.radians(-5))
    torch.testing.assert_close(limits.limited(near.pose, pivot), near.pose)


def test_a_drag_and_one_back_keep_the_subject(viewer):
    camera = viewer.start
    pivot = torch.from_numpy(viewer.limits.looked_at(camera)).float()
    with socket_of(viewer) as socket:
        window = window_of(viewer)
        for angle in (0.9, 0.0, -0.9):
            look(socket, orbited(camera, pivot, angle), at=pivot)
            messages(socket)  # until it rests
            pose = window.request.pose
            aim = torch.nn.functional.normalize(pivot - pose[:, 3], dim=0)
            assert float(pose[:, 2] @ aim) > math.cos(math.radians(1))
            np.testing.assert_allclose(window.client.camera.look_at, pivot, atol=1e-2)


def test_browsers_reset_their_view_to_the_first_camera(viewer):
    first, start = viewer.server.initial_camera, viewer.start
    np.testing.assert_allclose(first.position, start.position)
    towards = np.asarray(first.look_at) - first.position
    np.testing.assert_allclose(towards / np.linalg.norm(towards), start.forward, atol=1e-5)
    np.testing.assert_allclose(first.up, viewer.limits.vertical(start), atol=1e-6)
    assert first.fov == pytest.approx(2 * math.atan(start.height / 2 / start.fy))


@pytest.mark.parametrize("aspect", [0.46, 1.0, 4 / 3, 2.0])
def test_the_whole_photo_is_in_the_window(aspect):
    camera = Camera(torch.eye(4)[:3], 50, 50, 32, 24, 64, 48)
    fov = fov_of(camera, aspect)
    half = math.tan(fov / 2)
    assert half == pytest.approx(max(24 / 50, 32 / 50 / aspect))  # no more than is needed


def test_photos_are_small_frames_and_not_where_the_window_stands(viewer):
    with socket_of(viewer) as socket:
        window = window_of(viewer)
        messages(socket)
        viewer.show_photos(True)
        frames = [m for m in messages(socket, 3) if m["type"] == "CameraFrustumMessage"]
        assert len(frames) == len(viewer.capture.cameras)
        assert all(m["props"]["thickness_units"] == "screen" for m in frames)
        shown = [handle.visible for handle in window.photos._handles]
        away = [float((c.position - viewer.start.position).norm()) for c in viewer.capture.cameras]
        assert not shown[int(np.argmin(away))] and shown[int(np.argmax(away))]
        viewer.show_photos(False)
        assert not any(handle.visible for handle in window.photos._handles)


def test_a_photo_leads_to_its_camera(viewer):
    with socket_of(viewer):
        window, camera = window_of(viewer), viewer.capture.cameras[-1]
        window.photos._go(camera)
        np.testing.assert_allclose(window.client.camera.position, camera.position, atol=1e-5)


def around(pitch=40.0, rolls=(0.0,) * 8, radius=3.0):
    """Cameras that look down on the origin by so many degrees from half around it, each rolled; y is down."""
    cameras = []
    for i, roll in enumerate(rolls):
        angle, down, turn = math.pi * i / len(rolls), math.radians(pitch), math.radians(roll)
        flat, height = radius * math.cos(down), -radius * math.sin(down)
        eye = torch.tensor([flat * math.cos(angle), height, flat * math.sin(angle)])
        pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 1, 0]))
        rolled = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        cameras.append(Camera(torch.cat([pose[:, :3] @ rolled, eye[:, None]], 1), 50, 50, 32, 24, 64, 48))
    return cameras


def level(pose):
    """Degrees by which a picture's horizon leans, where up is -y."""
    return math.degrees(math.asin(float(pose[1, 0]) / math.hypot(*pose[1, :2].tolist())))


def seen_from(camera, vertical, turned=0.0):
    """(3, 4) of what a browser shows that looks where `camera` does and was dragged around the vertical."""
    turn = torch.from_numpy(viser.transforms.SO3.exp(vertical.astype(float) * turned).as_matrix()).float()
    return look_at(turn @ camera.position, turn @ (camera.position + camera.forward), turn @ -torch.tensor(vertical))


def test_a_drag_from_a_photo_stays_level_and_begins_with_its_picture():
    cameras = around(rolls=(2, -3, 1, 0, -2, 3, -1, 2))
    limits = CameraLimits(cameras, 4.0)
    for camera in cameras:
        vertical = limits.vertical(camera)
        torch.testing.assert_close(seen_from(camera, vertical), camera.pose, atol=1e-5, rtol=0)
        drags = [abs(level(seen_from(camera, vertical, turned))) for turned in (-1.0, 1.0, 2.0)]
        assert max(drags) < 8  # around the photo's own up it is 35 and more


def test_photos_on_their_side_are_shown_level_and_those_from_above_as_they_are():
    cameras = around(rolls=(0, 0, 90, 180, 0, 0, 0, 0))
    limits = CameraLimits(cameras, 4.0)
    for camera in cameras[2:4]:
        assert abs(level(seen_from(camera, limits.vertical(camera)))) < 8  # one on its side moves the vertical itself
        assert float(seen_from(camera, limits.vertical(camera))[1, 1]) > 0  # not upside down
    above = around(pitch=75.0, rolls=(150.0,))[0]
    torch.testing.assert_close(seen_from(above, limits.vertical(above)), above.pose, atol=1e-5, rtol=0)


def test_windows_turn_around_the_vertical(viewer):
    with socket_of(viewer):
        window, camera = window_of(viewer), viewer.capture.cameras[-1]
        window.photos._go(camera)
        np.testing.assert_allclose(window.client.camera.up_direction, viewer.limits.vertical(camera), atol=1e-6)
        shown = pose_of(window.client.camera.wxyz, window.client.camera.position)
        torch.testing.assert_close(shown, camera.pose, atol=1e-4, rtol=0)


def test_what_cameras_look_at_lies_ahead_of_them():
    row = CameraLimits(row_of_cameras(), 4.0)  # parallel: at the scene's depth
    np.testing.assert_allclose(row.middle, [1, 0, 4], atol=1e-5)
    inwards = around(rolls=(0.0,) * 16)
    np.testing.assert_allclose(CameraLimits(inwards, 4.0).middle, [0, 0, 0], atol=1e-5)
    outwards = []
    for camera in inwards:
        pose = look_at(camera.position, 2 * camera.position, torch.tensor([0.0, 1, 0]))
        outwards.append(replace(camera, pose=pose))
    limits = CameraLimits(outwards, 4.0)
    np.testing.assert_allclose(limits.middle, 2 * outwards[0].position, atol=1e-4)
    astray = replace(inwards[3], pose=torch.cat([inwards[3].pose[:, :3], torch.tensor([[300.0], [0], [0]])], 1))
    limits = CameraLimits([*inwards, astray], 4.0)
    np.testing.assert_allclose(limits.middle, [0, 0, 0], atol=1e-4)
    assert limits.reach == pytest.approx(CameraLimits(inwards, 4.0).reach, rel=0.1)


@pytest.mark.parametrize(
    "kind, photos, puts",
    [("anywhere", False, False), ("words", False, False), ("ball", False, True), ("ball", True, False)],
)
def test_a_click_puts_only_what_was_chosen(viewer, monkeypatch, kind, photos, puts):
    monkeypatch.setattr(app, "point_seen", lambda request, u, v, of: torch.tensor([0.1, 0.2, 3.0]))
    viewer.place.show(kind)
    before = viewer.place.middle.copy()
    with socket_of(viewer) as socket:
        viewer.controls._photos.value = photos
        client = window_of(viewer).client
        viewer._clicked(SimpleNamespace(client=client, screen_pos=(0.5, 0.5)))
        viewer.controls._photos.value = False
        messages(socket, 1)
    np.testing.assert_allclose(viewer.place.middle, [0.1, 0.2, 3.0] if puts else before, atol=1e-6)
    assert viewer.place.kind == kind
    assert ("edits stay in this ball" in viewer.controls._status.content) == puts
    viewer.controls.say("")
    viewer.place.show("anywhere")
    viewer.place.middle = viewer.limits.middle.astype(float)


def test_a_click_on_thin_air_says_so(viewer, monkeypatch):
    monkeypatch.setattr(app, "point_seen", lambda *_: None)
    viewer.place.show("ball")
    before = viewer.place.middle.copy()
    with socket_of(viewer) as socket:
        viewer._clicked(SimpleNamespace(client=window_of(viewer).client, screen_pos=(0.5, 0.5)))
        told = [m["props"]["body"] for m in messages(socket, 3) if m["type"] == "NotificationShowMessage"]
    assert told == ["the field is too thin there: the ball stays where it was"]
    np.testing.assert_array_equal(viewer.place.middle, before)
    viewer.place.show("anywhere")


def test_a_window_that_changes_its_shape_still_shows_the_whole_photo(viewer):
    with socket_of(viewer) as socket:
        window = window_of(viewer)
        for size in ((300, 600), (900, 300)):
            look(socket, viewer.start, size=size)
            messages(socket, 3)
            assert window.client.camera.fov == pytest.approx(fov_of(viewer.start, size[0] / size[1]))
