"""Poses of photos alone and of videos: pairs, what is refused, and pycolmap on photos whose poses are known."""

import itertools
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tensorf.captures import estimate, load_capture
from tensorf.captures.estimate import choose_pairs, estimate_capture, require_pycolmap
from tensorf.captures.sources import Source, find_source, folder_of
from tensorf.errors import UserError

SCENES = Path(__file__).resolve().parents[2] / "scenes"


def photos_of(folder, *scenes_and_counts):
    """The first photos of shipped scenes, without their poses."""
    folder.mkdir()
    for scene, count in scenes_and_counts:
        for photo in sorted((SCENES / scene / "images").iterdir())[:count]:
            shutil.copy2(photo, folder / f"{scene} {photo.name}")
    return find_source(folder, 60)


def entries(folder):
    return sorted((str(p.relative_to(folder)), p.stat().st_mtime_ns) for p in folder.rglob("*"))


# --- pairs


@pytest.mark.parametrize(("count", "ordered"), [(100, False), (101, False), (60, True), (3, True), (2, False)])
def test_pairs_are_in_order_and_come_once(count, ordered):
    pairs = choose_pairs(count, ordered)
    assert len(set(pairs)) == len(pairs) and all(0 <= i < j < count for i, j in pairs)
    assert {(i, i + 1) for i in range(count - 1)} <= set(pairs)


def test_few_photos_are_matched_exhaustively_and_others_sequentially():
    assert len(choose_pairs(100, ordered=False)) == 100 * 99 // 2
    assert len(choose_pairs(1000, ordered=False)) < 1000 * 40
    video = choose_pairs(100, ordered=True)
    assert len(video) < 100 * 20
    assert {(7, 17), (7, 23), (7, 39), (7, 71)} <= set(video) and not {(7, 18), (7, 24)} & set(video)


def test_the_ends_of_a_sequence_meet_the_middle():
    """Anchors: images that are matched with all others, so that a walk around something closes."""
    pairs = set(choose_pairs(101, ordered=True))
    for anchor in (0, 25, 50, 75, 100):
        assert all((min(i, anchor), max(i, anchor)) in pairs for i in range(101) if i != anchor)


# --- without pycolmap, and models that are not to be trusted


@pytest.fixture
def fake_colmap(monkeypatch):
    levels = SimpleNamespace(ERROR=SimpleNamespace(value=2))
    fake = SimpleNamespace(logging=SimpleNamespace(minloglevel=0, Level=levels), __version__="0")
    monkeypatch.setattr(estimate, "require_pycolmap", lambda source: fake)
    return fake


def model_of(positions, names=None, points=((0, 0, 4), (1, 0, 5), (0, 1, 6))):
    """What `estimate` asks of a pycolmap.Reconstruction."""
    images = {
        i: SimpleNamespace(name=(names or [])[i] if names else f"{i}.jpg", projection_center=lambda p=p: np.array(p))
        for i, p in enumerate(positions)
    }
    return SimpleNamespace(
        images=images,
        reg_image_ids=lambda: list(images),
        points3D={i: SimpleNamespace(xyz=np.array(p, float)) for i, p in enumerate(points)},
        write=lambda folder: (folder / "cameras.bin").touch(),
    )


def returning(monkeypatch, run):
    monkeypatch.setattr(estimate._Reconstruction, "run", run)


WALK = [(0.1 * i, 0, 0) for i in range(10)]


@pytest.mark.parametrize(("error", "said"), [(None, "is not installed"), (ImportError("libGL is missing"), "libGL")])
def test_without_the_extra(tmp_path, monkeypatch, error, said):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    if error is not None:

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "pycolmap":
                    raise error

        monkeypatch.delitem(sys.modules, "pycolmap")
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    source = Source(Path("/some/walk.mp4"), (), 60)
    with pytest.raises(UserError, match=rf"^/some/walk\.mp4 .*pycolmap.*{said}.*: pip install this$") as told:
        require_pycolmap(source, "pip install this")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="pycolmap"):
        estimate_capture(source, tmp_path / "kept" / "walk")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "no poses can be estimated"),
        (model_of(WALK[:2]), "only 2 of 12 images could be registered"),
        (model_of([(0, 0, 0.001 * i) for i in range(10)]), "turns on the spot"),
        (model_of(WALK, points=()), "turns on the spot"),
    ],
)
def test_models_that_are_not_to_be_trusted(tmp_path, fake_colmap, monkeypatch, model, said):
    source = photos_of(tmp_path / "mine", ("flower", 12))
    returning(monkeypatch, lambda self, ordered: model)
    with pytest.raises(UserError, match=rf"mine.*{said}.*; take more photos"):
        estimate_capture(source, tmp_path / "kept" / "mine")
    assert list((tmp_path / "kept").iterdir()) == [] and fake_colmap.logging.minloglevel == 0


def test_a_fifth_of_the_images_has_to_be_registered(tmp_path, fake_colmap, monkeypatch):
    source = photos_of(tmp_path / "mine", ("flower", 16))
    returning(monkeypatch, lambda self, ordered: model_of(WALK[:3], self.names))
    with pytest.raises(UserError, match="only 3 of 16"):
        estimate_capture(source, tmp_path / "kept" / "mine")


@pytest.mark.parametrize(("registered", "level", "said"), [(5, "WARNING", "7 of 12"), (6, "INFO", "6 of 12")])
def test_what_could_not_be_registered_is_counted(tmp_path, fake_colmap, monkeypatch, caplog, registered, level, said):
    source = photos_of(tmp_path / "mine", ("flower", 12))
    returning(monkeypatch, lambda self, ordered: model_of(WALK[:registered], self.names))
    with caplog.at_level(logging.INFO, "tensorf"):
        estimate_capture(source, tmp_path / "kept" / "mine")
    counted = next(r for r in caplog.records if "could not be registered" in r.getMessage())
    assert said in counted.getMessage() and counted.levelname == level
    assert f"poses of {registered} of 12 images" in caplog.text
    left = sorted(p.name for p in (tmp_path / "kept" / "mine" / "images").iterdir())
    assert len(left) == registered and left[0] == "flower_view000.jpg"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "the disk is full")])
def test_nothing_half_done_is_kept(tmp_path, fake_colmap, monkeypatch, stop):
    source = photos_of(tmp_path / "mine", ("flower", 4))

    def run(self, ordered):
        assert len(list(self.images.iterdir())) == 4  # work is under way
        raise stop

    returning(monkeypatch, run)
    with pytest.raises(type(stop)):
        estimate_capture(source, tmp_path / "kept" / "mine")
    assert list((tmp_path / "kept").iterdir()) == []
    assert folder_of(source, tmp_path / "kept") == (tmp_path / "kept" / "mine", False)


def test_another_process_may_finish_first(tmp_path, fake_colmap, monkeypatch):
    source, folder = photos_of(tmp_path / "mine", ("flower", 4)), tmp_path / "kept" / "mine"

    def run_late(self, ordered):
        returning(monkeypatch, lambda self, ordered: model_of(WALK[:4], self.names))
        monkeypatch.setattr(estimate.os, "getpid", lambda: 1)
        estimate_capture(source, folder)  # the other's
        return model_of(WALK[:3], self.names)

    returning(monkeypatch, run_late)
    estimate_capture(source, folder)
    assert len(list((folder / "images").iterdir())) == 4
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]


# --- pycolmap


def relative(poses):
    """Of each two cameras: the angle between them in degrees, and their distance in units of the mean distance."""
    pairs = list(itertools.combinations(poses, 2))
    traces = [np.trace(a[:, :3].T @ b[:, :3]) for a, b in pairs]
    angles = np.degrees(np.arccos(np.clip((np.array(traces) - 1) / 2, -1, 1)))
    distances = np.array([np.linalg.norm(a[:, 3] - b[:, 3]) for a, b in pairs])
    return angles, distances / distances.mean()


def poses_of(capture):
    return [camera.pose.double().numpy() for camera in capture.cameras]


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    """Ten photos of the flower and two of the mug: the folder of the estimate, and of the photos."""
    pytest.importorskip("pycolmap")
    root = tmp_path_factory.mktemp("estimate")
    source = photos_of(root / "my photos", ("flower", 10), ("mug", 2))
    before = entries(source.path)
    estimate_capture(source, root / "kept" / "my photos", threads=1)
    assert entries(source.path) == before  # nothing is written beside the photos
    return root / "kept" / "my photos", source


def test_poses_are_those_that_the_photos_were_made_with(estimated):
    capture, truth = load_capture(estimated[0], width=64), load_capture(SCENES / "flower", width=64)
    assert capture.image_names == [f"flower_view{i:03d}.jpg" for i in range(10)]
    (angles, distances), (true_angles, true_distances) = relative(poses_of(capture)), relative(poses_of(truth)[:10])
    assert np.abs(angles - true_angles).max() < 0.5
    assert np.abs(distances - true_distances).max() < 0.03
    assert len({(camera.fx, camera.cx, camera.cy) for camera in capture.cameras}) == 1
    assert capture.cameras[0].fx == pytest.approx(truth.cameras[0].fx, rel=0.05)


def test_the_folder_holds_a_capture_and_its_record_only(estimated):
    folder, source = estimated
    assert sorted(p.name for p in folder.iterdir()) == ["images", "source.json", "sparse"]
    assert len(list((folder / "images").iterdir())) == 10  # the mugs are of another scene
    assert [p.name for p in folder.parent.iterdir()] == ["my photos"]
    assert folder_of(source, folder.parent) == (folder, True)


def test_the_same_photos_give_the_same_poses(tmp_path, estimated):
    folder, source = estimated
    estimate_capture(source, tmp_path / "again", threads=2)
    again, before = (poses_of(load_capture(f, width=64)) for f in (tmp_path / "again", folder))
    assert np.array_equal(again, before)


def test_photos_at_two_focal_lengths_have_two_cameras(tmp_path):
    """Every third photo is zoomed in by 1.6, which its EXIF data tell."""
    pytest.importorskip("pycolmap")
    (tmp_path / "mine").mkdir()
    photos = sorted((SCENES / "flower" / "images").iterdir())[:9]
    for i, photo in enumerate(photos):
        picture, zoom = Image.open(photo), 1.6 if i % 3 == 2 else 1.0
        width, height = picture.size
        left, top = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
        zoomed = picture.resize(picture.size, Image.LANCZOS, box=(left, top, width - left, height - top))
        exif = Image.Exif()
        exif[0x8769] = {0xA405: round(30 * zoom)}
        zoomed.save(tmp_path / "mine" / photo.name, quality=95, exif=exif)
    estimate_capture(find_source(tmp_path / "mine", 60), tmp_path / "kept", threads=1)
    capture, truth = load_capture(tmp_path / "kept", width=64), load_capture(SCENES / "flower", width=64)
    assert capture.image_names == [photo.name for photo in photos]
    (angles, distances), (true_angles, true_distances) = relative(poses_of(capture)), relative(poses_of(truth)[:9])
    assert np.abs(angles - true_angles).max() < 0.5
    assert np.abs(distances - true_distances).max() < 0.05
    focals = [camera.fx / truth.cameras[0].fx for camera in capture.cameras]
    assert focals == pytest.approx([1.6 if i % 3 == 2 else 1.0 for i in range(9)], rel=0.05)


def test_nothing_is_matched_where_a_mask_hides_it(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    source = photos_of(tmp_path / "mine", ("flower", 8))
    height, width = np.asarray(Image.open(source.photos[0])).shape[:2]
    mask = np.full((height, width), 255, np.uint8)
    mask[: height // 3] = 0
    (tmp_path / "mine" / "masks").mkdir()
    for photo in source.photos[:7]:  # the last one has none
        Image.fromarray(mask).save(tmp_path / "mine" / "masks" / f"{photo.name}.png")
    folder = tmp_path / "kept" / "mine"
    estimate_capture(find_source(tmp_path / "mine", 60), folder, threads=1)
    images = pycolmap.Reconstruction(folder / "sparse" / "0").images.values()
    rows = {image.name: np.array([point.xy[1] for point in image.points2D]) for image in images}
    assert len(rows) == 8
    assert all(rows[f"flower_view{i:03d}.jpg"].min() >= height // 3 for i in range(7))
    assert rows["flower_view007.jpg"].min() < height // 3
    capture = load_capture(folder)
    assert capture.masks[:7].float().mean() == pytest.approx(2 / 3, abs=0.02) and capture.mask(7).all()


def test_what_pycolmap_throws_is_one_line(tmp_path, monkeypatch):
    pycolmap = pytest.importorskip("pycolmap")

    def broken(*args, **kwargs):
        raise RuntimeError("[sift.cc:1] no luck\nstack")

    monkeypatch.setattr(pycolmap, "extract_features", broken)
    source = photos_of(tmp_path / "mine", ("flower", 3))
    with pytest.raises(UserError, match=r"mine: pycolmap cannot estimate its poses \(\[sift.cc:1\] no luck\)$"):
        estimate_capture(source, tmp_path / "kept" / "mine", threads=1)


def test_interrupts_stop_the_stage_that_runs(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    tokens = []

    def interrupted(futures, timeout):
        raise KeyboardInterrupt

    def watched(self, stage, total, done, work):
        return watch(self, stage, total, done, lambda token: tokens.append(token) or work(token))

    watch = estimate._Reconstruction._watch
    monkeypatch.setattr(estimate._Reconstruction, "_watch", watched)
    monkeypatch.setattr(estimate, "wait", interrupted)
    source = photos_of(tmp_path / "mine", ("flower", 10))
    with pytest.raises(KeyboardInterrupt):
        estimate_capture(source, tmp_path / "kept" / "mine", threads=1)
    assert len(tokens) == 1 and tokens[0].is_cancelled
    assert list((tmp_path / "kept").iterdir()) == []
