"""What poses are estimated from, and where estimates are kept and found again."""

import json
import os
import shutil
import sys

import pytest

from tensorf.captures.sources import find_source, folder_of, name_of, other_estimate, tell, write_record
from tensorf.errors import UserError


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(b"a photo")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a walk.MOV"
    path.write_bytes(b"a video")
    return path


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "captures"


def finish(folder, source):
    folder.mkdir(parents=True)
    write_record(source, folder, registered=4)


def test_photos_and_videos_are_sources(photos, video):
    source = find_source(photos, 60)
    assert (source.path, source.name, source.is_video) == (photos, "my photos", False)
    assert [p.name for p in source.photos] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    source = find_source(video, 60)
    assert (source.path, source.name, source.is_video, source.frames) == (video, "a walk", True, 60)


def test_names_are_as_the_user_sees_them(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert find_source(os.curdir, 60).name == "my photos"
    (photos.parent / "link").symlink_to(photos)
    assert find_source(photos.parent / "link", 60).name == "link"


@pytest.mark.parametrize("below", ["images", "Images_4", "input"])
def test_a_folder_that_only_says_images_has_the_name_of_the_one_above(photos, below):
    inside = photos / below
    inside.mkdir()
    for photo in photos.glob("*.jpg"):
        photo.rename(inside / photo.name)
    assert find_source(inside, 60).name == name_of(inside) == "my photos"
    assert name_of(photos / "my images") == "my images"


def test_an_estimate_called_images_keeps_its_name(photos, kept):
    finish(kept / "images", find_source(photos, 60))
    assert name_of(kept / "images") == "images"
    assert name_of(kept / "other" / "images") == "other"


@pytest.mark.parametrize(
    "file",
    [
        "poses_bounds.npy",
        "transforms.json",
        "transforms_train.json",
        "sparse/0/cameras.bin",
        "sparse/cameras.txt",
        "cameras.bin",
        "0/cameras.txt",
    ],
)
def test_folders_with_poses_are_no_sources(photos, file):
    (photos / file).parent.mkdir(parents=True, exist_ok=True)
    (photos / file).touch()
    assert find_source(photos, 60) is None


def test_what_is_neither(tmp_path, photos, video):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt is neither a folder nor a video; give .*\.mp4"):
        find_source(tmp_path / "notes.txt", 60)
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_source(tmp_path / "nowhere", 60)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match="empty is no capture: .*transforms.json.*convert photos of other kinds to JPEG"
    ):
        find_source(tmp_path / "empty", 60)
    for i in (2, 3):
        (photos / f"{i}.jpg").unlink()
    with pytest.raises(UserError, match="my photos holds no poses and 2 photos: .* at least 3"):
        find_source(photos, 60)
    with pytest.raises(UserError, match="frames=2 must be at least 3"):
        find_source(video, 2)


def test_estimates_are_found_again_also_elsewhere(tmp_path, photos, kept):
    source = find_source(photos, 60)
    assert folder_of(source, kept) == (kept / "my photos", False)
    finish(kept / "my photos", source)
    assert folder_of(find_source(photos, 60), kept) == (kept / "my photos", True)
    (tmp_path / "moved").mkdir()
    shutil.move(kept, tmp_path / "moved")
    shutil.move(photos, tmp_path / "moved")
    moved = find_source(tmp_path / "moved" / "my photos", 60)
    assert folder_of(moved, tmp_path / "moved" / "captures")[1]


def touched(photos):
    os.utime(photos / "1.jpg", ns=(0, 1))


def longer(photos):
    status = (photos / "1.jpg").stat()
    (photos / "1.jpg").write_bytes(b"a larger photo")
    os.utime(photos / "1.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))


def renamed(photos):
    (photos / "1.jpg").rename(photos / "9.jpg")


def one_more(photos):
    shutil.copy2(photos / "1.jpg", photos / "9.jpg")


def one_less(photos):
    (photos / "1.jpg").unlink()


def with_a_mask(photos):
    (photos / "masks").mkdir()
    (photos / "masks" / "1.jpg.png").write_bytes(b"a mask")


@pytest.mark.parametrize("change", [touched, longer, renamed, one_more, one_less, with_a_mask])
def test_changed_photos_get_a_folder_of_their_own(photos, kept, change):
    finish(kept / "my photos", find_source(photos, 60))
    change(photos)
    changed = find_source(photos, 60)
    assert folder_of(changed, kept) == (kept / "my photos-2", False)
    finish(kept / "my photos-2", changed)
    assert folder_of(changed, kept) == (kept / "my photos-2", True)


def test_a_changed_mask_gets_another_estimate(photos, kept):
    with_a_mask(photos)
    source = find_source(photos, 60)
    assert source.masks == {photos / "1.jpg": photos / "masks" / "1.jpg.png"}
    finish(kept / "my photos", source)
    assert folder_of(find_source(photos, 60), kept)[1]
    (photos / "masks" / "1.jpg.png").write_bytes(b"another mask")
    assert folder_of(find_source(photos, 60), kept) == (kept / "my photos-2", False)


def test_estimates_from_before_there_were_masks_are_found(photos, kept):
    finish(kept / "my photos", find_source(photos, 60))
    record = kept / "my photos" / "source.json"
    table = json.loads(record.read_text())
    del table["masks"]
    record.write_text(json.dumps(table))
    assert folder_of(find_source(photos, 60), kept)[1]


def test_masks_that_lead_elsewhere_are_refused(tmp_path, photos):
    (tmp_path / "mask.png").write_bytes(b"a mask")
    (photos / "masks").mkdir()
    (photos / "masks" / "1.jpg.png").symlink_to(tmp_path / "mask.png")
    with pytest.raises(UserError, match="leads out of"):
        find_source(photos, 60)
    assert find_source(photos, 60, outside=True).masks


def test_another_number_of_frames_is_another_estimate(video, kept):
    finish(kept / "a walk", find_source(video, 60))
    assert folder_of(find_source(video, 60), kept)[1]
    assert folder_of(find_source(video, 30), kept) == (kept / "a walk-2", False)


def test_estimates_of_other_numbers_of_frames_are_known(video, photos, kept):
    finish(kept / "a walk", find_source(video, 30))
    assert other_estimate(find_source(video, 60), kept) == (kept / "a walk", 30)
    assert other_estimate(find_source(video, 30), kept) is None
    finish(kept / "my photos", find_source(photos, 30))
    assert other_estimate(find_source(photos, 60), kept) is None
    video.write_bytes(b"another video")
    assert other_estimate(find_source(video, 60), kept) is None


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"frames": null}'])
def test_folders_that_are_no_estimates_are_left_alone(photos, kept, record):
    (kept / "my photos").mkdir(parents=True)
    if record is not None:
        (kept / "my photos" / "source.json").write_text(record)
    assert folder_of(find_source(photos, 60), kept) == (kept / "my photos-2", False)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["walk.mp4", "._walk.mp4"], r"it holds a video: give \S*/walk\.mp4"),
        (["input/1.jpg", "input/2.jpg", "input/3.jpg"], r"there are photos in a folder below: give \S*input$"),
        (["day/one/1.jpg", "day/one/2.jpg", "day/one/3.jpg"], r"give \S*day/one$"),
        (["scan/transforms.json"], r"there are poses in a folder below: give \S*scan$"),
        (["a/1.nef", "a/2.nef"], r"it holds 2 \.nef files, which are not read: convert them to JPEG"),
        (["a/1.heic", "a/2.heic"], r"it holds 2 \.heic files, which are not read: pip install pillow-heif, or convert"),
    ],
)
def test_what_else_is_there_is_told(tmp_path, files, told, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for file in files:
        (tmp_path / "folder" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / file).write_bytes(b"whatever")
    with pytest.raises(UserError, match=told):
        find_source(tmp_path / "folder", 60)


@pytest.mark.parametrize("place", ["colmap.out/sparse/0", "scans/today"])
def test_poses_that_are_not_used_are_told(photos, caplog, place):
    (photos / place).mkdir(parents=True)
    (photos / place / ("cameras.bin" if "sparse" in place else "transforms.json")).touch()
    tell(find_source(photos, 60))
    folder = photos / place.removesuffix("/sparse/0")
    assert f"there are poses in {folder}, which are not used" in caplog.text
    caplog.clear()
    shutil.rmtree(photos / place)
    tell(find_source(photos, 60))
    assert not caplog.records


def test_poses_beside_a_folder_of_images_are_told(tmp_path, photos, caplog):
    images = photos.rename(tmp_path / "images")
    (tmp_path / "transforms.json").touch()
    tell(find_source(images, 60))
    assert f"there are poses in {tmp_path}, which are not used" in caplog.text


def test_masks_are_told_once_and_not_by_the_search(photos, caplog):
    (photos / "masks").mkdir()
    (photos / "masks" / "1.jpg.png").touch()
    caplog.set_level("INFO", "tensorf")
    source = find_source(photos, 60)
    assert not caplog.records
    tell(source)
    assert len(caplog.records) == 1 and "1 of 4 photos have a mask" in caplog.text
