"""The viewer in a real browser: make test-browser. Needs Chromium and playwright, and is skipped where they are not.

SCREENSHOT=docs/viewer.png make test-browser keeps the picture of the page.
"""

import io
import os
import shutil
import time

import numpy as np
import pytest
from fakes import TINY_FIELD
from PIL import Image

from cds3d.cli import run_command
from cds3d.commands.view import open_viewer
from cds3d.options import load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')

LONG = 300  # seconds; much less where nothing else runs
CANVAS = (300, 200, 840, 600)  # of the page, left of the panel and below messages
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
        page = browser.new_page(viewport={"width": 1280, "height": 720})
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
    """Mean differences of the source's and the edit's half; the slider is in the middle of the page."""
    apart, middle = np.abs(before - after).mean(-1), 640 - CANVAS[0]
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
    page.get_by_text("holds a finished run").wait_for(timeout=1000 * LONG)


def test_a_killed_edit_is_told_and_resumed(page, viewer):
    field(page, "To").fill("a blue flower")
    field(page, "To").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    wait_for(page, lambda: viewer.job is not None and viewer.job.progress().get("iteration", 0) >= 1)
    viewer.job.process.kill()
    page.get_by_text("was killed").wait_for(timeout=1000 * LONG)
    page.get_by_role("button", name="Start").wait_for()


def test_a_click_puts_the_ball(page, viewer):
    assert viewer.place.kind == "anywhere"
    page.mouse.click(600, 250)
    wait_for(page, lambda: viewer.place.kind == "ball")
    assert viewer.place.option()[0].startswith("ball=")
    camera = next(iter(viewer.windows.values())).look().camera(128)
    local = (np.asarray(viewer.place.middle) - camera.position.numpy()) @ camera.pose[:, :3].numpy()
    assert local[2] > 0
    u, v = local[0] / local[2] * camera.fx / camera.width, local[1] / local[2] * camera.fy / camera.height
    assert abs(u + 0.5 - 600 / 1280) < 0.03 and abs(v + 0.5 - 250 / 720) < 0.03


def test_the_path_of_a_video_is_laid_by_hand(page, viewer):
    page.get_by_text("Video", exact=True).click()
    page.get_by_role("button", name="Add keyframe").click()
    page.mouse.move(600, 400)
    page.mouse.down()
    page.mouse.move(650, 405, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Add keyframe").click()
    wait_for(page, lambda: len(viewer.keyframes) == 2)
    field(page, "Frames").fill("4")
    field(page, "Frames").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Render").click()
    wait_for(page, lambda: viewer.controls._video.content.endswith("done"))
    assert (viewer.run / "keyframes.mp4").stat().st_size > 1000


def test_a_second_window_and_one_that_goes_away(page, viewer):
    other = page.context.browser.new_page()
    other.goto(viewer.url)
    wait_for(page, lambda: len(viewer.windows) == 2 and all(w.frames > 0 for w in viewer.windows.values()))
    other.close()
    wait_for(page, lambda: len(viewer.windows) == 1)
