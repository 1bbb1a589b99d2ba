"""The viewer without a browser: who may connect, pictures over its websocket, its controls, edits as processes."""

import contextlib
import http.client
import json
import math
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import PROMPTS, TINY_FIELD, TINY_SCENE, LinearPrior, TwoLatents
from omegaconf import OmegaConf

viser = pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')
import msgspec  # noqa: E402
from viewer_client import look, messages, pictures, socket_of  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.http11 import Headers, Request  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from cds3d.cli import run_command  # noqa: E402
from cds3d.commands.preparing import build_objective  # noqa: E402
from cds3d.commands.view import open_viewer  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.viewer import app  # noqa: E402
from cds3d.viewer.app import _named  # noqa: E402
from cds3d.viewer.controls import _LIVE  # noqa: E402
from cds3d.viewer.guard import COOKIE, refusal  # noqa: E402
from cds3d.viewer.looking import CameraLimits, ViewRequest, picture, point_seen  # noqa: E402
from cds3d.viewer.window import pose_of, put_back  # noqa: E402
from tensorf.cameras import Camera  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402

# --- who may connect


def request(path="/", **headers):
    return Request(path, Headers({name.capitalize(): value for name, value in headers.items()}))


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"])
def test_this_machines_own_pages_may_connect(host):
    assert refusal(request(host=host), None) is None
    assert refusal(request(host=host, origin=f"http://{host}"), None) is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://evil.example/127.0.0.1:8080",
        "http://127.0.0.1:8080.evil",
        "http://[",
    ],
)
def test_pages_of_other_addresses_may_not(origin):
    assert "other addresses" in refusal(request(host="127.0.0.1:8080", origin=origin), None)
    assert "other addresses" in refusal(request("/?token=t", host="10.0.0.1:8080", origin=origin), "t")


def test_a_foreign_name_for_this_machine_may_not():
    assert "this machine alone" in refusal(request(host="evil.example:8080", origin="http://evil.example:8080"), None)


@pytest.mark.parametrize(
    "path, cookie, allowed",
    [
        ("/?token=secret", "", True),
        ("/", f"{COOKIE}_8080=secret", True),
        ("/", f"a=b; {COOKIE}_8080=secret", True),
        ("/", "", False),
        ("/?token=wrong", "", False),
        ("/", f"{COOKIE}_8081=secret", False),  # another viewer's
        ("/?token=", f"{COOKIE}_8080=wrong", False),
    ],
)
def test_other_addresses_need_the_token(path, cookie, allowed):
    headers = {"host": "10.0.0.1:8080"} | ({"cookie": cookie} if cookie else {})
    assert (refusal(request(path, **headers), "secret") is None) == allowed


# --- a running viewer


@pytest.fixture(scope="module")
def viewer(tmp_path_factory, capture_folder, source_run):
    """A field that shows more than fog."""
    here, before = tmp_path_factory.mktemp("viewer"), os.getcwd()
    os.chdir(here)
    longer = [*TINY_SCENE, *TINY_FIELD, "field.iterations=150", "field.density_shift=-4", "field.batch=256"]
    assert run_command("train", ["--capture", str(capture_folder), *longer]) == 0
    config = load_config("view", ["scene=capture", "scene.width=64", "port=0", "width=48", "moving_width=24"])
    config.capture = str(capture_folder)
    config.options = [*TINY_SCENE[:2], *TINY_FIELD, "edit.width=48", "video_frames=0"]
    config.scene.prompt = "a yellow flower"
    running = open_viewer(config)
    yield running
    running.close()
    os.chdir(before)


def test_a_browser_gets_a_picture_of_what_it_looks_at(viewer):
    with socket_of(viewer) as socket:
        look(socket, viewer.start)
        images = pictures(messages(socket))
        assert images and images[-1].shape == (36, 48, 3)
        expected = viewer.source.render(viewer.start.resized(48, 36))["color"].numpy() * 255
        assert np.abs(images[-1] - expected).mean() < 6  # JPEG


def test_pictures_are_small_while_the_camera_moves(viewer):
    with socket_of(viewer) as socket:
        look(socket, viewer.start)
        messages(socket)
        look(socket, viewer.start, moved=0.01)
        sizes = [image.shape[1] for image in pictures(messages(socket))]
        assert sizes[0] == 24 and sizes[-1] == 48


def test_the_camera_is_put_back_once_it_rests(viewer, monkeypatch):
    asked = []
    monkeypatch.setattr("cds3d.viewer.window.put_back", lambda client, pose: asked.append(pose))
    with socket_of(viewer) as socket:
        look(socket, viewer.start, moved=0.01)
        messages(socket)
        assert asked and asked[-1].shape == (3, 4)


def test_two_windows_look_at_different_things(viewer):
    with socket_of(viewer) as one, socket_of(viewer) as two:
        look(one, viewer.capture.cameras[0])
        look(two, viewer.capture.cameras[-1])
        first, second = (pictures(messages(s))[-1].astype(float) for s in (one, two))
        assert np.abs(first - second).mean() > 2
        assert len(viewer.windows) >= 2
    end = time.monotonic() + 20
    while viewer.windows and time.monotonic() < end:
        time.sleep(0.1)
    assert not viewer.windows  # both are gone, and so are their threads' wishes


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_a_foreign_page_is_refused_at_the_door(viewer, headers):
    with pytest.raises(InvalidStatus) as refused:
        if "Host" in headers:
            raise_for_foreign_host(viewer)
        socket_of(viewer, **headers)
    assert refused.value.response.status_code == 403


def raise_for_foreign_host(viewer):
    port = viewer.server.get_port()
    sock = __import__("socket").create_connection(("127.0.0.1", port))
    connect(f"ws://evil.example:{port}", sock=sock, subprotocols=[f"viser-v{viser.__version__}"])


def test_no_public_address_is_asked_for(viewer, monkeypatch):
    assert viewer.server.request_share_url() is None
    monkeypatch.setattr(viser.ViserServer, "request_share_url", lambda *_: pytest.fail("asked for"))
    with socket_of(viewer) as socket:
        socket.send(msgspec.msgpack.encode({"type": "ShareUrlRequest"}))
        messages(socket, 3)


# --- its controls


@pytest.fixture
def controls(viewer):
    names = ("_src", "_tgt", "_words", "_preset", "_iterations")
    values = {name: getattr(viewer.controls, name).value for name in names}
    yield viewer.controls
    for name, value in values.items():
        getattr(viewer.controls, name).value = value
    viewer.place.show("anywhere")


def test_the_controls_are_options_of_an_edit(viewer, controls):
    controls._src.value, controls._tgt.value, controls._iterations.value = "a yellow flower", "a red flower", 7
    options, folder = viewer.edit_options()
    assert folder == viewer.shown.folder / "a-red-flower"
    assert "--src=a yellow flower" in options and "--tgt=a red flower" in options
    assert {"edit.iterations=7", "objective=cds", "edit=field", "edit.width=48", f"output={folder}"} <= set(options)
    assert f"--capture={viewer.config.capture}" in options
    viewer.place.show("ball")
    viewer.place.put(np.array([0.1, 0.2, 2.0]))
    assert f"ball=0.1,0.2,2,{viewer.place.radius:.5g}" in viewer.edit_options()[0]
    controls._words.value = "the flower"
    for kind in ("ball", "anywhere"):  # words that were written before something else was chosen
        viewer.place.show(kind)
        assert not any(o.startswith("--where") for o in viewer.edit_options()[0])
    viewer.place.show("words")
    options, folder = viewer.edit_options()
    assert "--where=the flower" in options and folder.name == "a-red-flower-where"
    assert not any(o.startswith(("ball=", "box=")) for o in options)
    viewer.place.show("box")
    half = viewer.place.half[0]
    corners = ",".join(f"{x:.5g}" for x in (0.1 - half, 0.2 - half, 2 - half, 0.1 + half, 0.2 + half, 2 + half))
    assert f"box={corners}" in viewer.edit_options()[0]


@pytest.mark.parametrize("preset", ["shape", "pictures", "field"])
def test_a_preset_brings_its_iterations(preset, viewer, controls):
    controls._tgt.value = "a red flower"
    controls._preset.value = preset
    deadline = time.monotonic() + 10
    while controls._iterations.value != load_config("edit", [f"edit={preset}"]).edit.iterations:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert f"edit={preset}" in viewer.edit_options()[0]


@pytest.mark.parametrize(
    "control, value, told",
    [
        ("_tgt", "", "To is empty"),
        ("_src", " ", "From is empty"),
        ("_tgt", "${oc.env:HOME}", "plain text"),
        ("_tgt", "a\nb", "plain text"),
        ("_tgt", "???", "leave out"),
        ("_iterations", 0, "iterations"),
    ],
)
def test_what_a_browser_sends_is_checked(viewer, controls, control, value, told):
    controls._src.value, controls._tgt.value = "a yellow flower", "a red flower"
    getattr(controls, control).value = value
    with pytest.raises(UserError, match=told):
        viewer.edit_options()


def test_only_runs_of_the_list_are_shown(viewer):
    for name in ("../../etc", "/etc", "nothing"):
        with pytest.raises(UserError, match="no such run"):
            viewer.show(name)
    viewer.show("(source)")
    assert viewer.run is None and viewer.edited is None


def test_a_damaged_run_is_not_half_chosen(viewer):
    run = viewer.shown.folder / "a-broken-flower"
    shutil.copytree(viewer.shown.source, run)
    (run / "field.safetensors").write_bytes(b"damaged")
    try:
        viewer.show("(source)")
        with pytest.raises(UserError, match="damaged"):
            viewer.show(run.name)
        assert viewer.run is None and viewer.edited is None
    finally:
        shutil.rmtree(run)


def test_no_video_is_made_of_a_run_that_is_gone(viewer):
    viewer.run = viewer.shown.folder / "gone"
    try:
        with pytest.raises(UserError, match="gone is not there any more"):
            viewer.filming.start(4)
        assert not viewer.run.exists() and viewer.filming.job is None
    finally:
        viewer.run = None


def test_a_line_below_the_buttons_is_plain_text(viewer):
    viewer.controls.say('<img src="x"> *a* {b}')
    assert viewer.controls._status.content == r'\<img src="x"\> \*a\* \{b\}'


# --- what a window sees


def pose(eye=(0, 0, 0), forward=(0, 0, 1)):
    forward = torch.nn.functional.normalize(torch.tensor(forward, dtype=torch.float32), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1, 0]), forward), dim=0)
    return torch.stack([right, torch.linalg.cross(forward, right), forward, torch.tensor(eye, dtype=torch.float32)], 1)


def test_a_view_straight_back_is_still_a_rotation():
    limits = CameraLimits([Camera(pose((x, 0, 0)), 50, 50, 32, 24, 64, 48) for x in (0.0, 1.0)], 4.0)
    held = limits.limited(pose((0.0, 0, 0), (0, 0, -1)))
    torch.testing.assert_close(held[:, :3].T @ held[:, :3], torch.eye(3))


def test_views_stay_near_the_cameras():
    cameras = [Camera(pose((x, 0, 0)), 50, 50, 32, 24, 64, 48) for x in (0.0, 1.0, 2.0)]
    limits = CameraLimits(cameras, 4.0)
    assert limits.reach == 2.0
    inside = pose((1.2, 0.5, 0), (0.1, 0, 1))
    torch.testing.assert_close(limits.limited(inside), inside)
    far = limits.limited(pose((1.0, 9.0, 0)))
    torch.testing.assert_close(far[:, 3], torch.tensor([1.0, 2.0, 0.0]))
    back = limits.limited(pose((1.0, 0, 0), (1, 0, -0.2)))
    assert float(back[:, 2] @ torch.tensor([0.0, 0, 1])) == pytest.approx(math.cos(0.6), abs=1e-5)
    assert back[0, 2] > 0  # towards where it was meant to look
    torch.testing.assert_close(back[:, :3].T @ back[:, :3], torch.eye(3))


def test_a_quaternion_is_the_rotation_that_viser_means():
    rotation = viser.transforms.SO3.from_x_radians(0.3) @ viser.transforms.SO3.from_y_radians(-1.1)
    built = pose_of(rotation.wxyz, np.array([1.0, 2, 3]))
    torch.testing.assert_close(built[:, :3], torch.from_numpy(rotation.as_matrix()).float())
    assert built[:, 3].tolist() == [1, 2, 3]


@pytest.fixture()
def two_fields(source_run):
    source = load_field(source_run / "field.safetensors")
    edited = load_field(source_run / "field.safetensors")
    for p in edited.parameter_groups()["network"]:
        p.data += 0.5
    return source, edited


def test_each_side_of_the_slider_shows_its_field(two_fields, viewer):
    source, edited = two_fields
    request = ViewRequest(viewer.start.pose, 0.7, 4 / 3, "split", 0.25)
    whole = [picture(replace(request, shown=shown), 40, source, edited) for shown in ("source", "edit")]
    image = picture(request, 40, source, edited)
    assert image.shape == (30, 40, 3) and not np.array_equal(*whole)
    assert np.array_equal(image[:, :9], whole[0][:, :9]) and np.array_equal(image[:, 11:], whole[1][:, 11:])
    assert (image[:, 9:11] == 255).all()
    for split, shown in ((0.0, whole[1]), (1.0, whole[0])):
        assert np.array_equal(picture(replace(request, split=split), 40, source, edited), shown)
    assert np.array_equal(picture(request, 40, source, None), whole[0])
    depth = picture(replace(request, shown="depth"), 40, source, edited)
    assert (depth[..., 0] == depth[..., 1]).all() and not np.array_equal(depth, whole[1])
    alone = picture(replace(request, shown="depth"), 40, source, None)
    assert (alone[..., 0] == alone[..., 1]).all() and not np.array_equal(alone, whole[0])


def test_a_click_is_the_point_that_its_pixel_shows(two_fields, viewer):
    source = two_fields[0]
    source.render = _opaque(source.render)
    request = ViewRequest(viewer.start.pose, 0.7, 4 / 3)
    point = point_seen(request, 0.3, 0.6, source)
    camera = request.camera(252)
    local = (point - camera.position) @ camera.pose[:, :3]
    assert local[0] / local[2] * camera.fx + camera.cx == pytest.approx(0.3 * 252, abs=0.6)
    assert local[1] / local[2] * camera.fy + camera.cy == pytest.approx(0.6 * 189, abs=0.6)


@pytest.mark.parametrize(
    "shown, split, field",
    [("source", 0.9, "source"), ("split", 0.5, "source"), ("split", 0.2, "edited"), ("edit", 0.9, "edited")],
)
def test_a_click_is_answered_by_the_field_that_is_seen_there(viewer, monkeypatch, shown, split, field):
    asked = []
    monkeypatch.setattr(viewer, "source", "source")
    monkeypatch.setattr(viewer, "edited", "edited")
    monkeypatch.setattr(app, "point_seen", lambda request, u, v, of: asked.append(of))
    request = ViewRequest(viewer.start.pose, 0.7, 4 / 3, shown, split)
    monkeypatch.setattr(viewer, "windows", {0: SimpleNamespace(look=lambda: request)})
    monkeypatch.setattr(viewer, "controls", SimpleNamespace(pointing=True, say=lambda text: None))
    monkeypatch.setattr(viewer.place, "kind", "ball")
    client = SimpleNamespace(client_id=0, add_notification=lambda *_, **__: None)
    viewer._clicked(SimpleNamespace(client=client, screen_pos=(0.3, 0.6)))
    assert asked == [field]


def test_the_browsers_camera_goes_where_the_picture_was_taken(viewer):
    camera = viewer.start
    wxyz = viser.transforms.SO3.from_matrix(camera.pose[:, :3].double().numpy()).wxyz
    for moved, back in ((0.0, False), (5.0, True)):
        position = camera.position.numpy() + moved
        handle = SimpleNamespace(wxyz=wxyz, position=position, look_at=position + camera.forward.numpy())
        before = handle.look_at
        held = viewer.limits.limited(pose_of(handle.wxyz, handle.position))
        put_back(SimpleNamespace(camera=handle, atomic=contextlib.nullcontext), held)
        assert (handle.look_at is not before) == back
        np.testing.assert_allclose(handle.position, held[:, 3], atol=1e-3)
        if back:
            towards = handle.look_at - handle.position
            np.testing.assert_allclose(towards / np.linalg.norm(towards), held[:, 2], atol=1e-5)


def _opaque(render):
    def opaque(camera):
        rendered = render(camera)
        return rendered | {"opacity": torch.ones_like(rendered["opacity"])}

    return opaque


# --- edits as processes


def test_two_clicks_start_one_edit(viewer, controls, monkeypatch):
    controls._tgt.value = "a red flower"
    started, together = [], threading.Barrier(2)

    class Slow:
        running, folder, lines, warnings, stopping = True, Path("nowhere"), [], [], False

        def __init__(self, *ignored):
            time.sleep(0.2)
            started.append(self)

        def progress(self):
            return {}

    def click():
        together.wait()
        with contextlib.suppress(UserError):
            viewer.start_edit()

    monkeypatch.setattr(app, "Job", Slow)
    threads = [threading.Thread(target=click) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(started) == 1
    finally:
        viewer.job = None
        viewer.controls.progress({}, "", False, False)
        viewer.show("(source)")


def test_configurations_are_read_in_many_threads_at_once():
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda n: load_config("edit", [f"seed={n}"]), range(12)))) == 12


def test_a_failed_edit_leaves_the_run_that_was_shown(python, viewer, monkeypatch):
    run, said = viewer.shown.folder / "a-blue-flower", []
    shutil.copytree(viewer.shown.source, run)
    (run / "state").mkdir(exist_ok=True)
    shutil.copy(run / "field.safetensors", run / "state" / "preview.safetensors")  # of the earlier edit
    monkeypatch.setattr(viewer.controls, "say", said.append)
    monkeypatch.setattr(viewer, "edit_options", lambda: ([], run))
    monkeypatch.setattr(app, "Job", lambda *ignored: python("import sys; sys.exit('error: finished')", run))
    loaded = []
    monkeypatch.setattr(app, "load_field", lambda path, device: loaded.append(path) or load_field(path, device))
    try:
        viewer.show("(source)")
        viewer.start_edit(overwrite=True)
        deadline = time.monotonic() + 20
        while "finished" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert viewer.edited is None and viewer.run is None and loaded == []
    finally:
        shutil.rmtree(run)


def test_a_run_that_an_edit_has_begun_to_overwrite_is_shown_no_more(python, viewer, monkeypatch):
    run, said = viewer.shown.folder / "a-green-flower", []
    shutil.copytree(viewer.shown.source, run)
    monkeypatch.setattr(viewer.controls, "say", said.append)
    monkeypatch.setattr(viewer, "edit_options", lambda: ([], run))
    monkeypatch.setattr(app, "Job", lambda *ignored: python("import sys; sys.exit('error: stopped early')", run))
    try:
        viewer.show(run.name)
        (run / "metrics.json").unlink()
        viewer.start_edit(overwrite=True)
        deadline = time.monotonic() + 20
        while "stopped early" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert viewer.run is None and viewer.edited is None and run.name not in viewer.controls._runs.options
    finally:
        shutil.rmtree(run)
        viewer.show("(source)")


def test_from_says_what_the_next_edit_starts_from(viewer, controls):
    run = viewer.shown.folder / "a-red-flower"
    shutil.copytree(viewer.shown.source, run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "tgt: a red flower\n")
    try:
        viewer.show("a-red-flower")
        for onward, prompt in ((True, "a red flower"), (False, "a yellow flower")):
            controls._onward.value = onward
            deadline = time.monotonic() + 10
            while controls._src.value != prompt:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        viewer.show("(source)")
        shutil.rmtree(run)


def test_runs_of_other_scenes_in_the_folder_are_not_listed(viewer):
    other = viewer.shown.folder / "mug-a-blue-mug"
    shutil.copytree(viewer.shown.source, other)
    config = OmegaConf.load(other / "config.yaml")
    config.capture = "elsewhere"
    OmegaConf.save(config, other / "config.yaml")
    try:
        assert other.name not in viewer.names()
        config.scene.name = "daisies"
        moved = ("moved/since/daisies", "gone/daisies/images")
        for capture in (viewer.config.capture, *moved, None):  # None: one of the scenes that ship
            config.capture = capture
            OmegaConf.save(config, other / "config.yaml")
            assert other.name in viewer.names()
    finally:
        shutil.rmtree(other)


def test_an_edit_that_ends_is_shown_and_listed_whatever_its_scene_is_called(python, viewer, monkeypatch):
    run, said = viewer.shown.folder / "a-white-flower", []
    shutil.copytree(viewer.shown.source, run)
    configure(run, capture="renamed")
    monkeypatch.setattr(viewer.controls, "say", said.append)
    try:
        viewer.watching, viewer.job = True, python("pass", run)
        deadline = time.monotonic() + 20
        while "done" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert viewer.run == run and viewer.name() == viewer.controls._runs.value == run.name
    finally:
        viewer.show("(source)")
        viewer.controls._runs.value = "(source)"
        shutil.rmtree(run)


# --- which source new edits start from


def configure(folder, **options):
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), options), folder / "config.yaml")


@pytest.fixture
def daisies(tmp_path, monkeypatch, source_run):
    """The folder of the scene's runs: its source, another source, an edit, and an edit of that edit."""
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs", "daisies")
    for name in ("source", "hires", "a-red-daisy", "a-red-daisy-then-a-blue-daisy"):
        shutil.copytree(source_run, folder / name)
    configure(folder / "a-red-daisy", src="a daisy", tgt="a red daisy", run=None)
    again = {"src": "a red daisy", "tgt": "a blue daisy", "run": str(folder / "a-red-daisy")}
    configure(folder / "a-red-daisy-then-a-blue-daisy", **again)
    return folder


@contextlib.contextmanager
def opened(*options):
    viewer = open_viewer(load_config("view", [*options, "port=0", "width=48", "moving_width=24"]))
    try:
        viewer.controls._tgt.value = "a white daisy"
        yield viewer
    finally:
        viewer.close()


def test_beside_an_edit_of_an_edit_new_edits_start_from_the_field_that_is_shown(daisies):
    with opened(f"run={daisies / 'a-red-daisy-then-a-blue-daisy'}") as viewer:
        assert viewer.shown.source == daisies / "a-red-daisy" and viewer.controls._src.value == "a red daisy"
        options, folder = viewer.edit_options()
        assert f"--run={daisies / 'a-red-daisy'}" in options and not any(o.startswith("--capture") for o in options)
        assert folder == daisies / "a-red-daisy-then-a-white-daisy"
        assert viewer.names() == ["a-red-daisy", "a-red-daisy-then-a-blue-daisy", "hires", "source"]  # each once
        assert viewer.controls._runs.value == "a-red-daisy-then-a-blue-daisy"
        viewer.show("source")
        assert viewer.run == daisies / "source"
        viewer.show("a-red-daisy")
        assert viewer.run is None and viewer.edited is None


def test_an_edited_field_of_another_folder_is_named_with_that_folder(daisies):
    shutil.copytree(daisies / "a-red-daisy-then-a-blue-daisy", "outputs/here/a-blue-daisy")
    shutil.copytree(daisies / "a-red-daisy", "outputs/here/a-red-daisy")  # of the same name
    with opened("run=outputs/here/a-blue-daisy") as viewer:
        assert viewer.names() == ["daisies/a-red-daisy", "a-blue-daisy", "a-red-daisy"]
        viewer.show("a-red-daisy")
        assert viewer.run == Path("outputs/here/a-red-daisy")


def test_beside_the_scenes_own_source_new_edits_name_the_scene(daisies, capture_folder):
    for run in (daisies / "a-red-daisy", daisies / "source", daisies.resolve() / "source"):
        with opened(f"run={run}") as viewer:
            options, folder = viewer.edit_options() if run.name != "source" else with_source_prompt(viewer)
            assert f"--capture={capture_folder}" in options and not any(o.startswith("--run") for o in options)
            assert folder.name == "a-white-daisy"
            others = ["a-red-daisy", "a-red-daisy-then-a-blue-daisy", "hires"]
            assert viewer.names() == ["(source)", *others]


def with_source_prompt(viewer):
    viewer.controls._src.value = "a daisy"  # a source of a capture has none
    return viewer.edit_options()


def test_edits_of_a_source_that_lies_elsewhere_start_from_that_one(daisies, tiny_folder):
    with opened(f"run={daisies / 'hires'}") as viewer:
        options, folder = with_source_prompt(viewer)
        assert f"--run={daisies / 'hires'}" in options and folder == daisies / "hires-then-a-white-daisy"
        tiny = [*TINY_SCENE[1:], "video_frames=0", f"guidance.path={tiny_folder}", "edit.iterations=2", "edit.width=48"]
        assert run_command("edit", [*options, *tiny]) == 0
        assert viewer.names()[0] == "hires" and folder.name in viewer.names()
    with opened(f"run={folder}") as viewer:
        assert viewer.shown.source == daisies / "hires" and viewer.name() == folder.name


def test_what_an_edit_started_from_is_not_trained_in_its_place(daisies):
    (daisies / "a-red-daisy" / "metrics.json").unlink()
    with pytest.raises(UserError, match="started from outputs/daisies/a-red-daisy, which is not there, or did not"):
        open_viewer(load_config("view", [f"run={daisies / 'a-red-daisy-then-a-blue-daisy'}", "port=0"]))


def test_runs_of_before_and_after_a_move_of_the_capture_are_listed(daisies, capture_folder):
    shutil.copytree(capture_folder, "moved/daisies")
    for name in ("source", "hires", "a-red-daisy-then-a-blue-daisy"):
        configure(daisies / name, capture="before/daisies")
    configure(daisies / "a-red-daisy", capture="moved/daisies")
    with opened(f"run={daisies / 'a-red-daisy'}") as viewer:
        assert viewer.names() == ["(source)", "a-red-daisy", "a-red-daisy-then-a-blue-daisy", "hires"]
        assert viewer.controls._runs.value == "a-red-daisy"
        assert "--capture=moved/daisies" in viewer.edit_options()[0]


def test_from_is_the_prompt_of_the_scene_where_a_source_is_edited_on(daisies):
    configure(daisies / "source", scene={"prompt": "a daisy"})
    with opened(f"run={daisies / 'a-red-daisy-then-a-blue-daisy'}") as viewer:
        viewer.show("source")
        viewer.controls._onward.value = True
        deadline = time.monotonic() + 10
        while viewer.controls._src.value != "a daisy":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert f"--run={daisies / 'source'}" in viewer.edit_options()[0]


def test_what_is_said_to_be_done_is_already_shown(python, viewer, monkeypatch):
    run, shown = viewer.shown.folder / "a-red-flower", []
    shutil.copytree(viewer.shown.source, run)
    say = viewer.controls.say
    monkeypatch.setattr(viewer.controls, "say", lambda text: (shown.append((text, viewer.run)), say(text)))
    try:
        for psnr in (31.25, 32.75):  # the second time the run is chosen already, and has gone on
            (run / "metrics.json").write_text(json.dumps({"edit_gain_db": psnr}))
            before, viewer.watching, viewer.job = viewer.edited, True, python("pass", run)
            deadline = time.monotonic() + 20
            while ("done", run) not in shown:
                assert time.monotonic() < deadline and ("done", None) not in shown
                time.sleep(0.02)
            assert viewer.edited is not before and f"{psnr}" in viewer.controls._figures.content
            shown.clear()
    finally:
        viewer.show("(source)")
        viewer.controls._runs.value = "(source)"
        shutil.rmtree(run)


# --- the command


@pytest.mark.parametrize(
    "options, told",
    [
        (["nowhere"], "no run folder"),
        (["--scene", "castle"], "castle"),
        (["host=", "scene=cat"], "host"),
        (["host=256.1.1.1"], "host=256.1.1.1 is no address of this machine"),
        (["port=99999"], "port=99999 has to be at most 65535"),
        (["host=0.0.0.0", "token="], "token= has to have at least 8 characters"),
        (["host=0.0.0.0", "token=secret"], "token= has to have at least 8 characters"),
        (["host=0.0.0.0", "token=pass&word#1"], "of a-z, A-Z, 0-9, - and _"),
        (["width=2"], "width"),
        (["options=[a]"], "key=value"),
        (['options=["edit.speed=3"]'], "edit.speed"),
        (['options=["objective=dds"]'], "options: objective= is set in the page"),
        (['options=["scene=mug"]'], "options: scene= is set in the page"),
        (["--capture", "nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_viewed_is_told(options, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command("view", options) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "outputs").exists()


def test_a_run_and_another_scene_contradict_each_other(tmp_path, monkeypatch, source_run, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command("view", [str(source_run), "--scene", "cat"]) == 1
    assert "has a scene of its own" in capsys.readouterr().err


def test_the_figures_of_a_running_edit_are_those_of_its_steps():
    objective, z = build_objective(load_config("edit", [])), torch.rand(1, 3, 4, 4)
    figures = objective.gradient(LinearPrior(), TwoLatents(z, z + 0.1), PROMPTS, objective.draw(z, 0.0)).figures
    assert set(_LIVE) <= figures.keys()


@pytest.mark.parametrize(
    ("host", "name"), [("::1", "[::1]"), ("localhost", "127.0.0.1"), ("0.0.0.0", socket.gethostname()), ("a.b", "a.b")]
)
def test_addresses_are_ones_that_browsers_open(host, name):
    assert _named(host) == name


def test_another_address_gets_a_token_and_a_warning(monkeypatch, tmp_path, capture_folder, source_run, caplog):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source_run, tmp_path / "outputs" / "daisies" / "source")
    config = load_config("view", ["scene=capture", "scene.width=64", "port=0", "host=0.0.0.0", "width=48"])
    config.capture = str(capture_folder)
    viewer = open_viewer(config)
    try:
        assert "nothing" in caplog.text and "token=" in viewer.url and len(viewer.url.split("token=")[1]) >= 20
        url = f"ws://127.0.0.1:{viewer.server.get_port()}/"
        protocol = [f"viser-v{viser.__version__}"]
        with pytest.raises(InvalidStatus):
            connect(url, subprotocols=protocol)
        token = viewer.url.split("token=")[1]
        port = viewer.server.get_port()
        for path, cookie, status in ((f"/?token={token}", None, 200), ("/", token, 200), ("/", None, 403)):
            door = http.client.HTTPConnection("127.0.0.1", port)
            door.request("GET", path, headers={"Cookie": f"{COOKIE}_{port}={cookie}"} if cookie else {})
            answer = door.getresponse()
            assert answer.status == status
            given = answer.getheader("Set-Cookie")
            assert given == (f"{COOKIE}_{port}={token}; HttpOnly; SameSite=Strict; Path=/" if "token" in path else None)
        connect(url, subprotocols=protocol, additional_headers={"Cookie": f"{COOKIE}_{port}={token}"}).close()
    finally:
        viewer.close()
