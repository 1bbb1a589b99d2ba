"""Files are there whole or not at all."""

import pytest

from tensorf.files import atomic, write_text


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "figure.json"
    with atomic(path) as partial:
        partial.write_text("half")
        assert partial.parent == path.parent and partial.suffix == ".json" and not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there_and_nothing_beside_it(tmp_path, before, error):
    path = tmp_path / "figure.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), atomic(path) as partial:
        partial.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if before is None else ["old"])


def test_an_exception_before_anything_is_written_is_told_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="^told$"), atomic(tmp_path / "figure.json"):
        raise ValueError("told")
    assert list(tmp_path.iterdir()) == []


def test_text_replaces_text(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "one")
    write_text(path, "two\n")
    assert path.read_text() == "two\n" and list(tmp_path.iterdir()) == [path]
