"""The viewer's page: taps, the rows of its panel, messages in its own words, the video to keep."""

import gzip
import http.client
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from fakes import LinearPrior

viser = pytest.importorskip("viser", reason='no viser: pip install ".[viewer]"')

from viewer_client import wait_for  # noqa: E402
from websockets.datastructures import Headers  # noqa: E402
from websockets.http11 import Response  # noqa: E402

from cds3d.cli import configured  # noqa: E402
from cds3d.commands import regions  # noqa: E402
from cds3d.commands.view import open_viewer  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.runs import RunFolder  # noqa: E402
from cds3d.viewer.taps import add_taps  # noqa: E402
from tensorf.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def viewer(tmp_path_factory, source_run):
    source = tmp_path_factory.mktemp("page") / "outputs" / "daisies" / "source"
    shutil.copytree(source_run, source)
    running = open_viewer(load_config("view", [f"run={source}", "port=0", "width=48", "moving_width=24"]))
    running.controls._src.value, running.controls._tgt.value = "a daisy", "a red daisy"
    yield running
    running.close()


@pytest.fixture
def controls(viewer):
    yield viewer.controls
    viewer.controls._kind.value = "anywhere"
    wait_for(lambda: not viewer.controls._size.visible and not viewer.controls._words.visible)
    viewer.place.show("anywhere")
    viewer.controls._words.value = ""
    viewer.controls.say("")


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_the_page_is_served_with_taps(viewer, encoding):
    """Whether they work is for `test_browser`."""
    for _ in range(2):  # the second answer is kept from the first
        door = http.client.HTTPConnection("127.0.0.1", viewer.server.get_port())
        door.request("GET", "/", headers={"Accept-Encoding": encoding})
        answer = door.getresponse()
        body = answer.read()
        assert answer.getheader("Content-Encoding") == encoding
        assert answer.headers.get_all("Content-Length") == [str(len(body))]
        page = gzip.decompress(body) if encoding == "gzip" else body
        assert page.count(b"event.target.releasePointerCapture(") == 1 and page.endswith(b"</html>\n")


def test_other_answers_are_served_as_they_are(viewer):
    door = http.client.HTTPConnection("127.0.0.1", viewer.server.get_port())
    door.request("GET", "/nothing")
    answer = door.getresponse()
    assert answer.status == 404 and answer.getheader("Content-Length") is None


def test_a_page_in_another_encoding_is_left_as_it_is():
    headers = Headers({"Content-Type": "text/html", "Content-Encoding": "br", "Content-Length": "6"})
    answer = Response(200, "OK", headers, b"<head>")
    add_taps(answer)
    assert answer.body == b"<head>" and answer.headers["Content-Length"] == "6"


# --- where


@pytest.mark.parametrize(
    "kind, rows", [("anywhere", (False, False, False)), ("ball", (False, True, True)), ("words", (True, False, False))]
)
def test_rows_are_there_once_they_say_something(viewer, controls, kind, rows):
    controls._kind.value = "box"
    wait_for(lambda: viewer.place.kind == "box")
    controls._kind.value = kind
    shown = (controls._words, controls._size, controls._point)
    wait_for(lambda: tuple(row.visible for row in shown) == rows and viewer.place.kind == kind)


def test_a_ball_asks_for_a_click_or_a_tap(viewer, controls):
    controls._kind.value = "ball"
    wait_for(lambda: "click or tap" in controls._status.content and controls._status.visible)
    assert "Photos" not in controls._status.content
    controls._photos.value, controls._kind.value = True, "box"  # where photos are shown, clicks are for them
    wait_for(lambda: "with Photos off" in controls._status.content)
    controls._photos.value = False


def test_words_are_asked_for(viewer, controls):
    viewer.place.show("words")
    controls._words.value = " "
    with pytest.raises(UserError, match="^say what the edit may change: the field Words is empty$"):
        viewer.edit_options()
    viewer.place.show("ball")
    viewer.edit_options()


def refusals(viewer):
    """What `edit.py` says of places that it refuses."""
    source, capture = viewer.source, viewer.capture
    views = [c.resized(48, 36) for c in capture.cameras]
    odd = SimpleNamespace(space=None)
    for options, field in (
        (["ball=-40.5,1e-05,90,0.02"], source),
        (["box=-40.5,-41,90,-40,-40,91"], source),
        (["ball=0,0,2,0.5"], odd),
        (["--where=the daisy", "carve.agreement=1"], source),
        (["--where=the daisy", "edit.region.mask_threshold=0"], source),
    ):
        config = configured("edit", ["--src=a daisy", "--tgt=a red daisy", *options])
        with pytest.raises(UserError) as refused:
            pointing = regions.read_pointing(config)
            regions.given_region(config, pointing, capture, field, views, LinearPrior())
        yield str(refused.value)
    with pytest.raises(UserError) as refused:
        regions.zoomed_views(configured("edit", ["--tgt=a red daisy"]), source, [], source.occupancy)
    yield str(refused.value)


def test_refused_places_are_told_in_the_names_of_the_page(viewer, controls, monkeypatch):
    monkeypatch.setattr(regions, "word_masks", lambda *_: [])
    monkeypatch.setattr(regions, "edited_volume", lambda source, *_, **__: torch.zeros_like(source.occupancy))
    starts = ("the ball has", "the box has", "Where is", 'the words "the daisy": the masks', "words need", "no photo")
    for told in refusals(viewer):
        controls.say(told)
        said = controls._status.content.replace("\\", "")
        named = re.sub(r"edit\.region\.mask_threshold", "", said)  # an option that only `options=` of view.py sets
        assert not re.search(r"--|\w=|\w+\.\w*[a-z_]{3}|view\.py", named), said
        assert said.startswith(starts), said


def test_an_edit_in_another_ball_is_told_to_be_another(viewer, controls, tmp_path):
    run = RunFolder(tmp_path / "run", configured("edit", ["--tgt=a red daisy", "ball=0.1,-0.2,2,0.5"]))
    run.begin()
    run.save_state({"iteration": 1})
    with pytest.raises(UserError) as refused:
        RunFolder(run.path, configured("edit", ["--tgt=a red daisy", "ball=0.1,1e-05,2,0.5", "resume=true"]))
    controls.say(str(refused.value))
    assert controls._status.content.endswith("run was begun with another ball: tick Overwrite to do it anew")


# --- the rest of the panel


def test_what_says_nothing_takes_no_room(viewer, controls):
    assert not controls._warnings.visible and not controls._resume.visible and not controls._figures.visible
    for text in ("starting", ""):
        controls.say(text)
        assert controls._status.visible == bool(text)
    controls.warn(["an odd word"])
    assert controls._warnings.visible
    controls.warn([])
    assert not controls._warnings.visible


def test_a_video_can_be_kept_once_it_is_made(viewer, tmp_path):
    filming, controls, sent = viewer.filming, viewer.controls, []
    client = SimpleNamespace(send_file_download=lambda name, content, save_immediately: sent.append((name, content)))
    film = tmp_path / "a-red-daisy" / "keyframes.mp4"
    film.parent.mkdir()
    film.write_bytes(b"film")
    for outcome, made in (("no codec", False), ("done", True)):
        filming._path, filming.job = film, SimpleNamespace(running=False, outcome=lambda told=outcome: told)
        wait_for(lambda: filming.job is None)  # the viewer looks at it
        wait_for(lambda told=outcome: controls._video.content.endswith(told))
        controls._send_film(client)
        assert controls._download.visible == made == bool(sent)
    assert sent == [("a-red-daisy-keyframes.mp4", b"film")]

    class Film:  # the next one is begun in another window while this one is read
        parent, name = film.parent, film.name

        def read_bytes(self):
            filming.made = None
            return b"film"

    filming.made = Film()
    controls._send_film(client)
    assert len(sent) == 2
    filming.made = film
    film.unlink()
    controls._send_film(client)
    assert "cannot be read" in controls._video.content and len(sent) == 2
