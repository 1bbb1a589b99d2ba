"""examples/: each runs, with everything tiny."""

import inspect
import runpy
from pathlib import Path

import pytest
from fakes import TINY_FIELD, TINY_SCENE

from cds3d.script import run_script
from tensorf.local import LocalField
from tensorf.renderable import load_field

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
TINY = [*TINY_SCENE, *TINY_FIELD, "edit.iterations=2", "edit.width=48", "video_frames=0"]


def example(number):
    (path,) = EXAMPLES.glob(f"{number:02d}_*.py")
    return runpy.run_path(str(path))["main"]


def test_they_are_short_and_say_how_they_are_run():
    paths = sorted(EXAMPLES.glob("*.py"))
    assert [int(p.name[:2]) for p in paths] == list(range(1, len(paths) + 1))
    for path in paths:
        text = path.read_text()
        assert len(text.splitlines()) < 60 and f"python examples/{path.name}" in text.split('"""')[1]


def test_an_image(image_file, tiny_folder, capsys):
    folder = example(1)(
        str(image_file), "a yellow flower", "a red flower", f"guidance.path={tiny_folder}", "edit.iterations=2"
    )
    assert (folder / "edited.png").exists() and "dB from the source" in capsys.readouterr().out


@pytest.fixture()
def tiny(capture_folder, tiny_folder, trained):
    return str(capture_folder), [*TINY, f"guidance.path={tiny_folder}"]


def test_a_field(tiny, capsys):
    capture, options = tiny
    for _ in range(2):  # a second run replaces the first
        folder = example(2)(capture, "a yellow flower", "a red flower", *options)
        assert (folder / "new_view.png").exists()


def test_where_you_point(tiny, capsys):
    capture, options = tiny
    folder = example(3)(capture, "a yellow flower", "a red flower", "0.4,0.5,view001", "0.3", *options)
    assert isinstance(load_field(folder / "field.safetensors"), LocalField)
    assert "of places outside, 0.0% have changed" in capsys.readouterr().out


def test_in_sequence_and_taken_along(tiny, capsys):
    capture, options = tiny
    folder = example(4)(capture, "a yellow flower", "a red flower", "a red tulip", *options)
    assert "before it: ['a red flower']" in capsys.readouterr().out
    example(5)(str(folder), "points=100")
    told = capsys.readouterr().out
    assert "5 views to train on, 1 held out" in told and "COLMAP: 6 images" in told


def test_an_objective(image_file, tmp_path):
    example(6)(str(image_file), "a cat", "a pig", "edit.iterations=2", "guidance.image_width=16")
    assert (tmp_path / "outputs" / "examples" / "06" / "descending.png").exists()


@pytest.mark.parametrize("edit", ["field", "shape"])
def test_a_field_step_by_step(tiny, edit, capsys):
    """The loop gives the field that the command gives."""
    capture, options = tiny
    steps = [*options, f"edit={edit}", "edit.iterations=3"]
    path = example(7)(capture, "a yellow flower", "a red flower", *steps)
    assert path.parent == Path("outputs/examples/07") and str(path) in capsys.readouterr().out
    folder = example(2)(capture, "a yellow flower", "a red flower", *steps)
    assert path.read_bytes() == (folder / "field.safetensors").read_bytes()


@pytest.mark.parametrize("number", range(1, len(list(EXAMPLES.glob("*.py"))) + 1))
def test_what_they_edit_is_there_from_any_folder(number):
    """Without arguments they take what ships; the fifth takes a run."""
    given = inspect.signature(example(number)).parameters
    first = next(iter(given.values())).default
    assert Path(first).exists() or number == 5


@pytest.mark.parametrize("number", range(1, len(list(EXAMPLES.glob("*.py"))) + 1))
def test_help_and_mistakes_take_a_line(number, capsys, monkeypatch):
    main = example(number)
    assert run_script(main, ["--help"]) == 0
    assert f"python examples/{number:02d}_" in capsys.readouterr().out
    monkeypatch.setattr("cds3d.guidance.loading.Prior", None)  # all of it is told before
    assert run_script(main, ["nosuch", *["a cat", "a pig", "0.5,0.5,view000", "1", "more"]]) == 1
    assert run_script(main, ["nosuch"]) == 1
    assert run_script(main, ["edit.iterationz=3"]) == 1
    for line in (told := capsys.readouterr().err.splitlines()):
        assert line.startswith("error: ")
    assert len(told) == 3 and "one word too many" in told[0] and "nosuch" in told[1] and "iterationz" in told[2]


def test_words_that_are_left_out_have_their_defaults():
    seen = []

    def main(image="x.png", src="a cat", *options):
        seen.append((image, src, *options))

    for argv in ([], ["y.png"], ["seed=1", "y.png"], ["y.png", "a dog", "seed=1", "edit.lr=2"]):
        assert run_script(main, argv) == 0
    assert seen == [
        ("x.png", "a cat"),
        ("y.png", "a cat"),
        ("y.png", "a cat", "seed=1"),
        ("y.png", "a dog", "seed=1", "edit.lr=2"),
    ]
