"""Whether a capture is still the one that a field was trained on."""

import json
import logging

import numpy as np
import pytest
from tiny_captures import edit_json, ring, write_transforms

from tensorf.captures import load_capture
from tensorf.captures.identity import change, identity


@pytest.fixture()
def folder(tmp_path):
    poses = ring(8)
    for i, pose in enumerate(poses):
        pose[:, 3] *= 1 + 0.05 * i  # the mean distance, which is the world's unit, follows from all of them
    write_transforms(tmp_path, poses)
    return tmp_path


def identity_of(folder, **options):
    return identity(load_capture(folder, check=False, **options))


def frames(folder, edit):
    edit_json(folder / "transforms.json", lambda table: edit(table["frames"]))


def test_the_same_capture_has_not_changed(folder):
    before = identity_of(folder)
    assert change(before, before) is None and "\n" not in before
    assert change(before, identity_of(folder, width=6)) is None  # resized


def test_a_photo_less_moves_the_world(folder):
    before = identity_of(folder)
    frames(folder, lambda f: f.pop(3))
    found = change(before, identity_of(folder))
    assert not found.fits and found.told == "1 of its photos gone: images/3.png"
    back = change(identity_of(folder), before)
    assert not back.fits and back.told == "1 of its photos new: images/3.png"


def test_poses_of_another_estimate_do_not_fit(folder):
    before = identity_of(folder)

    def elsewhere(entries):
        for entry in entries:
            matrix = np.array(entry["transform_matrix"])
            matrix[:3, 3] = 2 * matrix[:3, 3] + (5.0, 1.0, 0.0)
            entry["transform_matrix"] = matrix.tolist()

    frames(folder, elsewhere)
    found = change(before, identity_of(folder))
    assert not found.fits and found.told.startswith("8 of its photos posed otherwise")


def test_a_camera_that_moved_by_little_is_told_and_fits(folder):
    before = identity_of(folder)

    def shift(entries):
        entries[2]["transform_matrix"][2][3] += 0.01

    frames(folder, shift)
    found = change(before, identity_of(folder))
    assert found.fits and found.told == "1 of its photos posed otherwise: images/2.png"


def test_photos_that_swapped_their_poses_are_told(folder):
    before = identity_of(folder)

    def swap(entries):
        a, b = entries[1], entries[5]
        a["transform_matrix"], b["transform_matrix"] = b["transform_matrix"], a["transform_matrix"]

    frames(folder, swap)
    found = change(before, identity_of(folder))
    assert found.fits and found.told.startswith("2 of its photos posed otherwise")


def test_a_world_of_another_size_does_not_fit(folder):
    """As where other photos lie under the same names, and the points that they show are others."""
    before = identity_of(folder)
    table = json.loads(before)
    for row in table["world_from_capture"][:3]:
        row[:] = [1.02 * x for x in row]
    found = change(json.dumps(table), before)
    assert not found.fits and "what the photos show" in found.told
    for row in table["world_from_capture"][:3]:
        row[:] = [1.001 / 1.02 * x for x in row]
    assert change(json.dumps(table), before) is None  # another version of OpenCV


def test_coordinates_of_maps_are_kept_exactly_enough(tmp_path, caplog):
    poses = ring(8)
    for pose in poses:
        pose[:, 3] = 0.5 * pose[:, 3] + (4.4e5, 5.4e6, 300.0)
    write_transforms(tmp_path, poses)
    with caplog.at_level(logging.WARNING):
        before = identity_of(tmp_path)
        assert change(before, identity_of(tmp_path)) is None
    edit_json(tmp_path / "transforms.json", lambda t: t["frames"][0]["transform_matrix"][0].__setitem__(3, 4.4e5))
    assert change(before, identity_of(tmp_path)).told == "1 of its photos posed otherwise: images/0.png"


@pytest.mark.parametrize("before", ["", "{}", "[]", "nonsense", '{"world_from_capture": [1], "photos": []}', "null"])
def test_what_cannot_be_read_tells_nothing(folder, before):
    assert change(before, identity_of(folder)) is None
