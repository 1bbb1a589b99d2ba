"""The viewer in a real browser: make test-browser. Needs Chromium and playwright, and is skipped where they are not.

SCREENSHOT=docs/viewer.png make test-browser keeps the picture of the page.
"""

import io
import os
import shutil
import time

import numpy as np
import pytest
import torch
from fakes import TINY_FIELD
from PIL import Image

from cds3d.bench.items import Item
from cds3d.bench.user_study import write_page
from cds3d.cli import run_command
from cds3d.commands.view import open_viewer
from cds3d.options import load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from cds3d.sweep.report import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')

LONG = 300  # seconds; much less where nothing else runs
CANVAS = (60, 200, 840, 600)  # of the page, below messages
WIDE, HIGH = 892, 720  # of the picture, left of the panel
ITERATIONS = 60


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """A yellow daisy, trained for a minute, in the viewer."""
    here, before = tmp_path_factory.mktemp("browser"), os.getcwd()
    os.chdir(here)
    daisy = Attributes(2_000_026, "flower", "daisy", "yellow", "garden")
    write_capture(here / "daisy", daisy, views=12, width=128, height=96)
    capture = ["--capture", str(here / "daisy")]
    short = [o for o in TINY_FIELD if "iterations" not in o and "density_shift" not in o and "resolution" not in o]
    options = ["scene.width=128", "video_frames=0", *short, "field.iterations=300", "field.resolution=48"]
    assert run_command("train", [*capture, *options, "field.batch=512", f"output={here}/outputs/daisy/source"]) == 0
    config = load_config("view", ["scene=capture", "port=0", "width=128"])
    config.capture, config.options = capture[1], ["edit.width=96", "edit.lr=0.1", "edit.warmup=0", "scene.width=128"]
    running = open_viewer(config)
    yield running
    running.close()
    os.chdir(before)


@pytest.fixture(scope="module")
def page(viewer):
    with sync_api.sync_playwright() as playwright:
        software = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=software)
        page = browser.new_page(viewport={"width": 1280, "height": HIGH})
        page.goto(viewer.url)
        yield page
        browser.close()


def wait_for(page, condition):
    """Let the page live until the condition holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, page.locator("body").inner_text()
        page.wait_for_timeout(100)


def still(page, viewer) -> np.ndarray:
    """The canvas, once no new picture comes any more."""
    window = next(iter(viewer.windows.values()))
    frames = -1
    while frames != window.frames:
        frames = window.frames
        page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(CANVAS)
    return np.asarray(picture).astype(float)


def moved(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Mean differences of the source's and the edit's half; the slider is in the middle of the picture."""
    apart, middle = np.abs(before - after).mean(-1), WIDE // 2 - CANVAS[0]
    return float(apart[:, : middle - 40].mean()), float(apart[:, middle + 40 :].mean())


def field(page, label: str):
    """The input beside a label."""
    return page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[1]")


def status(viewer) -> str:
    return viewer.controls._status.content


def test_an_edit_from_the_page(page, viewer):
    """Opens, moves, edits, stops, resumes; the flower changes right of the slider and stays as it was left of it."""
    began = time.monotonic()
    wait_for(page, lambda: viewer.windows and next(iter(viewer.windows.values())).frames > 0)
    assert time.monotonic() - began < 30  # five seconds where nothing else runs
    first = still(page, viewer)
    assert first.std() > 15  # a picture, not a blank page

    page.mouse.move(600, 400)
    page.mouse.down()
    page.mouse.move(620, 405, steps=4)
    page.mouse.up()
    before = still(page, viewer)
    assert np.abs(before - first).mean() > 1

    field(page, "From").fill("a yellow flower")
    field(page, "From").press("Enter")
    field(page, "To").fill("a red flower")
    field(page, "To").press("Enter")
    field(page, "Iterations").fill(str(ITERATIONS))
    field(page, "Iterations").press("Enter")
    page.get_by_role("button", name="Start").click()
    wait_for(page, lambda: viewer.job is not None and viewer.job.progress().get("iteration", 0) >= 3)
    assert page.get_by_role("button", name="Start").is_disabled()
    page.get_by_role("button", name="Stop").click()
    wait_for(page, lambda: "the state is kept" in status(viewer))
    folder = viewer.shown.folder / "a-red-flower"
    assert (folder / "state" / "state.pt").exists() and not (folder / "metrics.json").exists()
    page.get_by_text("the state is kept").wait_for(timeout=1000 * LONG)

    field(page, "To").fill("a mug")  # Resume goes on with the edit that was stopped, whatever the fields say
    field(page, "To").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Resume").click()
    wait_for(page, lambda: status(viewer) == "done")
    assert (folder / "metrics.json").exists() and viewer.run == folder
    source_half, edited_half = moved(before, still(page, viewer))
    assert source_half < 1.5 and edited_half > 4 * max(source_half, 1)
    assert page.get_by_text("gain, dB").count() == 1
    if "SCREENSHOT" in os.environ:
        page.screenshot(path=os.environ["SCREENSHOT"])


def test_what_goes_wrong_is_told_in_the_page(page, viewer):
    field(page, "To").fill("")
    field(page, "To").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("say what it should become").wait_for(timeout=1000 * LONG)
    field(page, "To").fill("a red flower")
    field(page, "To").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("a-red-flower is done already: tick Overwrite").wait_for(timeout=1000 * LONG)


def test_a_killed_edit_is_told_and_resumed(page, viewer):
    field(page, "To").fill("a blue flower")
    field(page, "To").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    wait_for(page, lambda: viewer.job is not None and viewer.job.progress().get("iteration", 0) >= 1)
    viewer.job.process.kill()
    page.get_by_text("was killed").wait_for(timeout=1000 * LONG)
    page.get_by_role("button", name="Start").wait_for()


def choose_place(page, kind: str):
    field(page, "Where").click()
    page.get_by_role("option", name=kind).click()


def place_in(viewer, camera) -> tuple[float, float]:
    """Where a camera sees the ball's middle, as shares of its picture."""
    local = (np.asarray(viewer.place.middle) - camera.position.numpy()) @ camera.pose[:, :3].numpy()
    assert local[2] > 0
    u, v = local[0] / local[2] * camera.fx / camera.width, local[1] / local[2] * camera.fy / camera.height
    return float(u) + 0.5, float(v) + 0.5


def test_the_panel_covers_no_part_of_the_picture(page, viewer):
    assert page.locator("canvas").first.bounding_box() == {"x": 0, "y": 0, "width": WIDE, "height": HIGH}
    camera = next(iter(viewer.windows.values())).look().camera(WIDE)
    assert camera.width / camera.fx == pytest.approx(viewer.start.width / viewer.start.fx, rel=1e-2)  # all of a photo


def test_a_click_puts_the_ball(page, viewer):
    page.mouse.click(400, 250)
    page.wait_for_timeout(1500)
    assert viewer.place.kind == "anywhere"  # a stray click restricts nothing
    choose_place(page, "ball")
    wait_for(page, lambda: viewer.place.kind == "ball")
    page.mouse.click(400, 250)
    page.get_by_text("edits stay in this ball").wait_for(timeout=1000 * LONG)
    assert viewer.place.option()[0].startswith("ball=")
    u, v = place_in(viewer, next(iter(viewer.windows.values())).look().camera(128))
    assert abs(u - 400 / WIDE) < 0.03 and abs(v - 250 / HIGH) < 0.03


@pytest.fixture
def phone(page, viewer):
    """A touch screen as wide as a phone's, with the panel closed."""
    context = page.context.browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    other, before = context.new_page(), set(viewer.windows)
    other.goto(viewer.url)
    wait_for(other, lambda: any(w.frames > 0 for i, w in viewer.windows.items() if i not in before))
    other.get_by_text("cds3d").tap()
    wait_for(other, lambda: not other.get_by_role("button", name="Start").is_visible())
    yield other
    context.close()
    wait_for(page, lambda: len(viewer.windows) == 1)


def drag(phone, *moments):
    """moments: where the fingers are, one after the other."""
    session, fingers = phone.context.new_cdp_session(phone), 0
    for points in (*moments, ()):
        kind = "touchStart" if len(points) > fingers else "touchMove" if points else "touchEnd"
        touches, fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)], len(points)
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        phone.wait_for_timeout(50)


def test_a_tap_puts_the_ball_and_fingers_move_it_and_the_view(page, phone, viewer):
    viewer.place.show("ball")
    window, before = viewer.windows[max(viewer.windows)], viewer.place.middle.copy()
    phone.touchscreen.tap(150, 330)
    wait_for(phone, lambda: not np.allclose(viewer.place.middle, before))
    u, v = place_in(viewer, window.look().camera(128))
    assert abs(u - 150 / 390) < 0.03 and abs(v - 330 / 844) < 0.03

    phone.wait_for_timeout(2000)  # until the handles are drawn there
    put, pose = viewer.place.middle.copy(), window.look().pose
    camera = window.look().camera(390)
    away = float((viewer.place.middle - camera.position.numpy()) @ camera.pose[:, 2].numpy())
    shaft = 150 + 0.3 * viewer.place.radius * camera.fx / away  # of the handle to the right
    drag(phone, *([(shaft + step, 330)] for step in (0, 10, 25, 40)))
    wait_for(phone, lambda: not np.allclose(viewer.place.middle, put))
    assert torch.equal(window.look().pose, pose)

    moved = viewer.place.middle.copy()
    drag(phone, *([(60 + step, 700)] for step in (0, 10, 25, 40)))
    wait_for(phone, lambda: not torch.allclose(window.look().pose, pose, atol=1e-3))
    drag(phone, [(60, 330)], *([(60, 330), (330 - step, 700)] for step in (0, 10, 25, 40)))
    phone.wait_for_timeout(1500)
    assert np.array_equal(viewer.place.middle, moved)  # neither a drag nor a finger that rests beside one is a tap


def test_a_click_on_a_photo_goes_there_and_puts_nothing(page, viewer):
    before, place = still(page, viewer), viewer.place.middle.copy()
    window = next(iter(viewer.windows.values()))
    page.mouse.move(600, 400)
    for _ in range(8):
        page.mouse.wheel(0, 200)
    page.wait_for_timeout(1000)
    field(page, "Photos").click()
    still(page, viewer)
    wait_for(
        page, lambda: photo_in_sight(viewer, window) is not None
    )  # some are hidden until the view has come to rest
    page.mouse.click(*photo_in_sight(viewer, window))
    wait_for(page, lambda: any(apart(window, c) < 1e-3 for c in viewer.capture.cameras))
    assert np.array_equal(viewer.place.middle, place)
    field(page, "Photos").click()
    page.get_by_role("button", name="First view").click()
    wait_for(page, lambda: apart(window, viewer.start) < 1e-3)
    assert np.abs(still(page, viewer) - before).mean() < 40  # the scene, not what is behind it


def photo_in_sight(viewer, window) -> tuple[float, float] | None:
    """Where on the page one of the photos is drawn, if any is."""
    camera = window.look().camera(WIDE)
    for photographed, handle in zip(viewer.capture.cameras, window.photos._handles, strict=True):
        size = handle.scale  # the photo is some way in front of its camera, on its axis
        local = (photographed.position + 2 * size * photographed.forward - camera.position) @ camera.pose[:, :3]
        x, y = (float(local[i] / local[2]) * camera.fx + middle for i, middle in ((0, WIDE / 2), (1, HIGH / 2)))
        if handle.visible and local[2] > 0 and CANVAS[0] < x < CANVAS[2] and CANVAS[1] < y < CANVAS[3]:
            return x, y
    return None


def apart(window, camera) -> float:
    """How far a window's view is from a camera, as a share of how far views may go."""
    return float((window.look().pose[:, 3] - camera.position).norm()) / window._limits.reach


def test_the_path_of_a_video_is_laid_by_hand(page, viewer):
    page.get_by_text("Video", exact=True).click()
    page.get_by_role("button", name="Add keyframe").click()
    page.mouse.move(600, 400)
    page.mouse.down()
    page.mouse.move(650, 405, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Add keyframe").click()
    wait_for(page, lambda: len(viewer.filming.keyframes) == 2)
    field(page, "Frames").fill("4")
    field(page, "Frames").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Render").click()
    wait_for(page, lambda: viewer.controls._video.content.endswith("done"))
    film = viewer.run / "keyframes.mp4"
    with page.expect_download(timeout=1000 * LONG) as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{viewer.run.name}-keyframes.mp4"
    assert download.value.path().read_bytes() == film.read_bytes() and film.stat().st_size > 1000


def test_a_second_window_and_one_that_goes_away(page, viewer):
    other = page.context.browser.new_page()
    other.goto(viewer.url)
    wait_for(page, lambda: len(viewer.windows) == 2 and all(w.frames > 0 for w in viewer.windows.values()))
    other.close()
    wait_for(page, lambda: len(viewer.windows) == 1)


# --- pages without a server


@pytest.fixture
def paper(page):
    """Another page, for files."""
    other = page.context.browser.new_page(viewport={"width": 390, "height": 844})
    yield other
    other.close()


def test_rows_without_a_figure_come_last_in_both_directions(paper, tmp_path):
    row = {"scene": "flower", "state": "done", "failure": None, "options": "edit.lr=0.1 " * 9}
    figures = {"a": 2.0, "b": None, "c": -1.0, "d": 10.0}
    write_report(tmp_path, [{**row, "tgt": tgt, "gain": gain, "run": f"runs/{tgt}"} for tgt, gain in figures.items()])
    paper.goto((tmp_path / "index.html").as_uri())
    order = "Array.from(document.querySelectorAll('tbody tr'), row => row.textContent.match(/[abcd](?=-?[0-9]|$)/)[0])"
    heading = paper.locator("th", has_text="gain")
    for expected in ("cadb", "dacb"):
        heading.evaluate("th => th.click()")
        assert "".join(paper.evaluate(order)) == expected
    assert paper.evaluate("innerWidth") == 390


def test_each_person_sees_the_edits_of_a_study_in_an_order_of_their_own(paper, tmp_path):
    items, edits = [], []
    for k in range(4):
        files = {name: tmp_path / f"{name}{k}.png" for name in ("source", "cds", "dds", "sds")}
        for number, file in enumerate(files.values()):
            Image.new("RGB", (40, 30), (60 * k, 60 * number, 90)).save(file)
        items.append(Item(f"cat{k}", files.pop("source"), "a cat", "a dog"))
        edits.append(files)
    write_page(tmp_path / "study.html", items, edits, 0)
    paper.goto((tmp_path / "study.html").as_uri())
    paper.on("dialog", lambda dialog: dialog.accept())
    seen = """() => [...document.querySelectorAll("fieldset:nth-of-type(1) input[value='1']")].map(input =>
        [input.name, input.closest("figure").querySelector("img").src])"""
    orders = []
    for _ in range(8):
        person, shown = paper.evaluate("participant"), paper.evaluate(seen)
        for name, picture in shown:  # an answer goes to the edit that it stands under
            i, k = name.split("-")[:2]
            assert picture == paper.evaluate(f"data.items[{i}].edits[{k}]")
        paper.reload()
        assert paper.evaluate(seen) == shown
        orders.append([name for name, _ in shown])
        paper.get_by_role("button", name="Start anew").click()
        wait_for(paper, lambda: paper.evaluate("typeof participant === 'string' && participant") != person)  # noqa: B023
    assert all(sorted(order) == sorted(orders[0]) and len(order) == 12 for order in orders)
    assert len({order[0][0] for order in orders}) > 1 and len({tuple(order) for order in orders}) > 4
    of_first = {tuple(name for name in order if name.startswith("0-")) for order in orders}
    assert len(of_first) > 1


def test_a_reload_of_a_study_keeps_the_answers(paper, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "cat.png")
    edits = [{"cds": tmp_path / "cat.png", "dds": tmp_path / "cat.png"}]
    write_page(tmp_path / "study.html", [Item("cat", tmp_path / "cat.png", "a cat", "a dog")], edits, 0)
    paper.goto((tmp_path / "study.html").as_uri())
    paper.locator("[name='0-0-text'][value='4']").check()
    participant = paper.evaluate("participant")
    paper.reload()
    assert paper.locator("[name='0-0-text'][value='4']").is_checked() and paper.evaluate("participant") == participant
    paper.get_by_role("button", name="Download my answers").click()
    assert "5 questions are left" in paper.locator("[role=status]").inner_text()
    first = paper.locator(".open").first.bounding_box()
    assert 0 <= first["y"] < 844  # scrolled to
    paper.on("dialog", lambda dialog: dialog.accept())
    paper.get_by_role("button", name="Start anew").click()
    wait_for(paper, lambda: paper.evaluate("typeof participant === 'string' && participant") != participant)
    assert paper.locator("input:checked").count() == 0
