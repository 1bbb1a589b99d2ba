"""The photos against the poses: a textured wall and a floor, photographed by cameras that are known."""

import json
import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
from tiny_captures import frame

from tensorf.captures import load_capture
from tensorf.captures.llff import read_llff
from tensorf.captures.matching import (
    Fit,
    Matches,
    Misfit,
    PairFit,
    _alike,
    _features_of,
    fit,
    sampson_distance,
    triangulate,
)
from tensorf.captures.views import Lens, View
from tensorf.errors import UserError

SIZE, FOCAL = (320, 240), 300.0


def texture(seed):
    """(600, 600) of blobs of all sizes, which SIFT finds."""
    generator = np.random.default_rng(seed)
    image = np.zeros((600, 600))
    for cells in (12, 30, 75, 150):
        image += cv2.resize(generator.random((cells, cells)), (600, 600), interpolation=cv2.INTER_CUBIC)
    return ((image - image.min()) / (image.max() - image.min()) * 255).astype(np.uint8)


WALL, FLOOR = texture(0), texture(1)


def photograph(pose):
    """What a camera at this pose sees of a wall at z = 6 and a floor at y = 1 (y is down)."""
    u, v = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    local = np.stack([(u - SIZE[0] / 2) / FOCAL, (v - SIZE[1] / 2) / FOCAL, np.ones_like(u)], -1)
    rays, eye = local @ pose[:, :3].T, pose[:, 3]
    wall = (6 - eye[2]) / rays[..., 2]
    floor = np.where(rays[..., 1] > 1e-3, (1 - eye[1]) / np.maximum(rays[..., 1], 1e-3), np.inf)
    nearest = np.minimum(wall, floor)
    x, y, z = np.moveaxis(eye + nearest[..., None] * rays, -1, 0)
    place = lambda a: (a * 60 + 300).astype(np.float32)  # noqa: E731
    seen = [
        cv2.remap(t, place(x), place(b), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        for t, b in ((WALL, y), (FLOOR, z))
    ]
    return np.where(floor < wall, seen[1], seen[0])


def poses(count=12):
    """A row of cameras with rotations, heights and depths that change from one to the next."""
    generator = np.random.default_rng(5)
    result = []
    for i in range(count):
        turn, _ = cv2.Rodrigues(generator.normal(0, 0.08, 3))
        position = np.array([0.25 * (i - count / 2), *generator.normal(0, 0.25, 2)])
        result.append(np.concatenate([turn, position[:, None]], 1))
    return result


def write(root, rows, names):
    """LLFF rows, and the photo of each under its name; wrong names make a wrong capture."""
    (root / "images").mkdir(parents=True)
    for pose, name in zip(rows, names, strict=True):
        cv2.imwrite(str(root / "images" / name), photograph(pose))
    numbers = []
    for pose in rows:
        right, down, forward = pose[:, 0], pose[:, 1], pose[:, 2]
        matrix = np.stack([down, right, -forward, pose[:, 3], (SIZE[1], SIZE[0], FOCAL)], 1)
        numbers.append([*matrix.reshape(-1), 2.0, 8.0])
    np.save(root / "poses_bounds.npy", np.array(numbers))


NAMES = [f"{i}.png" for i in range(1, 13)]  # as numbers; as text 1, 10, 11, 12, 2, ...


def views(rows, root, names):
    lens = Lens(FOCAL, FOCAL, SIZE[0] / 2, SIZE[1] / 2, *SIZE)
    return [View(name, root / "images" / name, pose, lens) for name, pose in zip(names, rows, strict=True)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbered")
    write(root, poses(), NAMES)
    return root


@pytest.fixture(scope="module")
def as_text(tmp_path_factory):
    root = tmp_path_factory.mktemp("as_text")
    write(root, poses(), sorted(NAMES))
    return root


def test_right_poses_fit_and_wrong_ones_do_not(numbered):
    good = fit(views(poses(), numbered, NAMES))
    assert good.residual < 1 and not good.unlikely and good.matches > 500 and len(good.pairs) >= 10
    bad = fit(views(poses(), numbered, sorted(NAMES)))
    assert bad.residual > 5 and bad.unlikely


def test_photos_that_were_swapped_are_named(numbered, tmp_path, caplog):
    load_capture(numbered, order="number")
    assert "does not fit its pose" not in caplog.text and fit(views(poses(), numbered, NAMES)).misfits == []
    shutil.copytree(numbered, tmp_path, dirs_exist_ok=True)
    for a, b in (("3.png", "10.png"), ("10.png", "3.png")):
        shutil.copyfile(numbered / "images" / a, tmp_path / "images" / b)
    load_capture(tmp_path, order="number", test_every=0)
    lines = [r.getMessage() for r in caplog.records if "does not fit its pose" in r.getMessage()]
    assert [line.split(" does")[0].split()[-1] for line in lines] == ["3.png", "10.png"]
    assert all("undo that" in line and "pixels" in line for line in lines)
    assert "disagree" not in caplog.text


def test_a_photo_is_wrong_if_it_fits_none_of_several_that_fit():
    def found(*pairs, alike=0.9):
        pairs = [PairFit(i, j, matches, residual, round(alike * matches)) for i, j, matches, residual in pairs]
        return Fit(0.5, 1000, pairs, np.empty((0, 3)), np.empty((0, 2), int)).misfits

    good = [(0, 1, 300, 0.4), (1, 2, 300, 0.5), (2, 3, 300, 0.5)]
    assert found(*good, (1, 4, 30, 9.0), (2, 4, 30, 12.0)) == [Misfit(4, 60, 9.0)]
    assert found(*good, (1, 4, 30, 9.0), (2, 4, 30, 12.0), alike=0.45) == []  # matched at random
    assert found(*good, (1, 4, 60, 9.0)) == []  # one pair: it could be either's fault
    assert found(*good, (1, 4, 15, 9.0), (2, 4, 15, 12.0)) == []  # too few
    assert found(*good, (1, 4, 30, 9.0), (2, 4, 30, 1.0)) == []
    wrong = [(1, 4, 30, 9.0), (2, 4, 30, 12.0), (1, 5, 30, 9.0), (2, 5, 30, 12.0)]
    assert [m.view for m in found(*good, *wrong, (4, 6, 40, 9.0), (5, 6, 40, 9.0))] == [4, 5]  # 6 had no other partners


def test_matches_of_one_relative_pose_are_told_from_random_ones():
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (60, 3))
    moved = points @ cv2.Rodrigues(np.array([0.0, 0.2, 0.05]))[0].T + (0.5, 0.1, 0.2)
    seen = Matches(0, 1, points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:])
    assert _alike(seen, 2 / 600) == 60
    mixed = Matches(0, 1, seen.first, seen.second[rng.permutation(60)])
    assert _alike(mixed, 2 / 600) < 0.5 * 60


def test_points_lie_on_what_was_photographed(numbered):
    found = fit(views(poses(), numbered, NAMES))
    off = np.minimum(np.abs(found.points[:, 2] - 6), np.abs(found.points[:, 1] - 1))
    assert len(found.points) > 200 and np.median(off) < 0.1
    assert found.seen_by.shape == (len(found.points), 2) and found.seen_by.max() == 11


def test_sampson_distance_and_triangulation_by_hand():
    # Two cameras a unit apart, looking along +z; a point 4 ahead, halfway between. The second match is off by 0.01 of a
    # focal length across the epipolar lines, which are rows: half of that on either side, as a first-order distance.
    left = np.concatenate([np.eye(3), [[-0.5], [0], [0]]], 1)
    right = np.concatenate([np.eye(3), [[0.5], [0], [0]]], 1)
    first, second = np.array([[0.125, 0.1], [0.125, 0.1]]), np.array([[-0.125, 0.1], [-0.125, 0.11]])
    matches = Matches(0, 1, first, second)
    assert sampson_distance(matches, left, right) == pytest.approx([0, 0.01 / np.sqrt(2)], abs=1e-9)
    assert triangulate(matches, left, right)[0] == pytest.approx([0, 0.4, 4])
    behind = Matches(0, 1, second[:1], first[:1])  # the rays part
    assert np.isnan(triangulate(behind, left, right)).all()


@pytest.mark.parametrize(("folder", "expected"), [("numbered", "by their numbers"), ("as_text", "as text")])
def test_the_photos_decide_their_order(request, caplog, folder, expected):
    root = request.getfixturevalue(folder)
    with caplog.at_level(logging.INFO, "tensorf"):
        capture = load_capture(root)
    lines = [r.getMessage() for r in caplog.records if "photos sorted" in r.getMessage()]
    assert len(lines) == 1 and f"photos sorted {expected}" in lines[0] and "pixels" in lines[0]
    assert not any("disagree" in r.getMessage() for r in caplog.records)
    assert capture.image_names == NAMES  # sorted naturally afterwards, whatever the rows' order
    rows = poses() if folder == "numbered" else [poses()[sorted(NAMES).index(name)] for name in NAMES]
    ours = np.stack([v.pose for v in read_llff(root, None).views])
    assert np.allclose(ours, np.stack(rows), atol=1e-6)


def test_the_order_may_be_said(numbered, caplog):
    with caplog.at_level(logging.WARNING, "tensorf"):
        load_capture(numbered, order="number")
        assert not caplog.records
        load_capture(numbered, order="text")
    assert "photos and poses disagree" in caplog.text and "pixels" in caplog.text
    caplog.clear()
    load_capture(numbered, order="text", check=False)
    assert not any(r.levelno >= logging.WARNING for r in caplog.records)
    with pytest.raises(UserError, match="order=names is unknown"):
        load_capture(numbered, order="names")


def test_matched_points_come_with_the_capture(numbered):
    capture = load_capture(numbered, space="box")
    seen_by, points = capture.sightings
    assert len(points) > 200 and set(seen_by.tolist()) <= set(capture.train)
    similarity = capture.world_from_capture
    back = (points - similarity[:3, 3]) @ torch.linalg.inv(similarity[:3, :3]).T
    off = torch.minimum((back[:, 2] - 6).abs(), (back[:, 1] - 1).abs())
    assert off.median() < 0.1
    for view, point in list(zip(seen_by.tolist(), points))[:50]:
        camera = capture.cameras[view]
        x, y, z = (point - camera.position) @ camera.pose[:, :3]
        assert z > 0 and 0 < camera.fx * x / z + camera.cx < SIZE[0] and 0 < camera.fy * y / z + camera.cy < SIZE[1]
    assert load_capture(numbered, check=False).sightings is None
    few = load_capture(numbered, space="box", test_every=2)  # neighbours of training photos are held out
    assert len(few.sightings[1]) > 200 and set(few.sightings[0].tolist()) <= set(few.train)
    pairs = few.sightings[0].view(-1, 2)  # the two photos of each point
    assert (pairs[:, 0] != pairs[:, 1]).all() and torch.equal(few.sightings[1][::2], few.sightings[1][1::2])


def test_photos_without_features_are_no_evidence(tmp_path, caplog):
    write(tmp_path, poses(), NAMES)
    for name in NAMES:
        cv2.imwrite(str(tmp_path / "images" / name), np.full((SIZE[1], SIZE[0]), 90, np.uint8))
    with caplog.at_level(logging.INFO, "tensorf"):
        assert load_capture(tmp_path).sightings is None
    assert "too few of their features match" in caplog.text and "disagree" not in caplog.text


def inverted(pose):
    return np.concatenate([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3:]], 1)


FLIP = np.array([1.0, -1.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        # a file of OpenGL's camera-to-world has pose * FLIP; `frame` of the captures below flips what it is given
        (lambda pose: pose * FLIP, ["OpenCV's where the format has OpenGL's"]),
        (lambda pose: inverted(pose * FLIP) * FLIP, ["world-to-camera"]),
        (inverted, ["world-to-camera", "OpenCV's"]),
        (lambda pose: pose[:, [1, 0, 2, 3]] * [1, -1, 1, 1], ["in their order"]),
    ],
)
def test_the_usual_mistakes_are_named(numbered, tmp_path, caplog, written, told):
    shutil.copytree(numbered / "images", tmp_path / "images")
    frames = [frame(f"images/{name}", written(pose)) for name, pose in zip(NAMES, poses(), strict=True)]
    keys = {"fl_x": FOCAL, "w": SIZE[0], "h": SIZE[1]}
    (tmp_path / "transforms.json").write_text(json.dumps({**keys, "frames": frames}))
    load_capture(tmp_path)
    line = next(r.getMessage() for r in caplog.records if "disagree" in r.getMessage())
    assert all(words in line for words in told), line
    assert ("if mended" in line) == (told != ["in their order"])


def test_photos_whose_names_are_not_utf8_are_matched(tmp_path):
    name = "view\udcfc.png"
    write(tmp_path, poses()[:1], ["a.png"])
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / name)
    places, words = _features_of(views(poses()[:1], tmp_path, [name])[0])
    assert len(places) == len(words) > 100


def test_photos_that_were_replaced_get_new_features(tmp_path):
    """In one process, as where somebody mends a capture and trains it again."""
    write(tmp_path, poses()[:2], NAMES[:2])
    first = _features_of(views(poses()[:2], tmp_path, NAMES[:2])[0])[0]
    photo = tmp_path / "images" / NAMES[0]
    shutil.copy(tmp_path / "images" / NAMES[1], photo)
    second = _features_of(views(poses()[:2], tmp_path, NAMES[:2])[0])[0]
    assert first.shape != second.shape or not np.allclose(first, second)
    cached = _features_of(views(poses()[:2], tmp_path, NAMES[:2])[0])[0]
    assert cached is second
