"""Which folder's photos are taken, and what lies beside photos that is none."""

import logging

import numpy as np
import pytest
from tiny_captures import ring, row_of_cameras, write_colmap, write_image, write_llff, write_transforms

from tensorf.captures import load_capture
from tensorf.captures.colmap import read_colmap
from tensorf.captures.nsvf import read_nsvf
from tensorf.captures.photos import find_photos
from tensorf.errors import UserError


def litter(folder, name):
    """What macOS and a Synology leave beside a photo."""
    for path in (
        folder / f"._{name}",
        folder / ".DS_Store",
        folder / f"@{name}",
        folder / "@eaDir" / name / "thumb.jpg",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\26\7 no photo")


def write_colmap_photos(root, **folders):
    """A model of four photos of 12x8 pixels, and folders: the size of their photos, and how many of them there are."""
    write_colmap(root / "sparse" / "0", ".bin", count=4)
    for folder, (size, count) in folders.items():
        for i in range(count):
            write_image(root / folder / f"view{i + 1}.png", size)


def as_llff(root):
    write_llff(root, row_of_cameras())
    return root / "images", "image1.png"


def as_colmap(root):
    write_colmap_photos(root, images=((12, 8), 4))
    return root / "images", "view1.png"


@pytest.mark.parametrize("write", [as_llff, as_colmap], ids=lambda f: f.__name__)
def test_what_computers_leave_beside_photos_is_none(tmp_path, write):
    litter(*write(tmp_path))
    assert load_capture(tmp_path).images.shape == (4, 8, 12, 3)


def test_what_computers_leave_beside_photos_alone(tmp_path):
    write_image(tmp_path / "1.jpg")
    litter(tmp_path, "1.jpg")
    assert [path.name for path in find_photos(tmp_path)] == ["1.jpg"]


def test_what_computers_leave_beside_poses(tmp_path):
    (tmp_path / "intrinsics.txt").write_text("10 6 4 0\n")
    (tmp_path / "pose").mkdir()
    for i, pose in enumerate(row_of_cameras()):
        np.savetxt(tmp_path / "pose" / f"{i}.txt", np.concatenate([pose, [[0, 0, 0, 1]]]))
        write_image(tmp_path / "rgb" / f"{i}.png")
    for name in ("._0.txt", "@0.txt"):
        (tmp_path / "pose" / name).write_bytes(b"\0\5\26\7")
        write_image(tmp_path / "rgb" / name.replace(".txt", ".png"))
    assert [view.name for view in read_nsvf(tmp_path).views] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_folder_that_lacks_photos_of_the_model_hides_no_complete_one(tmp_path, caplog):
    write_colmap_photos(tmp_path, images=((24, 16), 4), images_2=((12, 8), 4), images_4=((6, 4), 2))
    assert load_capture(tmp_path, width=6).images.shape == (4, 4, 6, 3)
    assert not any(r.levelno >= logging.WARNING for r in caplog.records)
    (tmp_path / "images_2" / "view1.png").unlink()
    (tmp_path / "images" / "view1.png").unlink()
    assert load_capture(tmp_path, width=24).image_names == ["view2.png", "view3.png", "view4.png"]
    assert "1 of 4 photos are missing" in caplog.text


def test_photos_that_the_model_does_not_name_decide_nothing(tmp_path):
    write_colmap_photos(tmp_path, images=((12, 8), 4))
    (tmp_path / "images" / "a.png").write_bytes(b"no photo")
    write_image(tmp_path / "images" / "b.png", (80, 70))
    write_image(tmp_path / "images_2" / "view1.jpg", (12, 8))  # another suffix
    assert load_capture(tmp_path, width=6).images.shape == (4, 4, 6, 3)


def test_photos_may_lie_beside_the_model(tmp_path):
    write_colmap_photos(tmp_path, **{".": ((12, 8), 4), "images_2": ((6, 4), 0)})
    write_image(tmp_path / "images" / "other.png")
    assert len(load_capture(tmp_path).cameras) == 4


def test_a_damaged_photo_is_named(tmp_path):
    write_colmap_photos(tmp_path, images=((12, 8), 4))
    (tmp_path / "images" / "view1.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"images/view1\.png cannot be read"):
        load_capture(tmp_path)


def test_an_llff_folder_without_a_photo_for_each_row_hides_no_complete_one(tmp_path):
    write_llff(tmp_path, row_of_cameras(), hwf=(16, 24, 20), size=(24, 16))
    write_llff(tmp_path, row_of_cameras(), hwf=(16, 24, 20), images="images_2", size=(12, 8))
    (tmp_path / "images_2" / "image3.png").unlink()
    assert load_capture(tmp_path, width=12).images.shape == (4, 8, 12, 3)
    (tmp_path / "images" / "image3.png").unlink()
    with pytest.raises(UserError, match="4 rows but .* holds 3 photos"):
        load_capture(tmp_path)


def test_folders_are_compared_by_what_most_of_their_photos_are_wide(tmp_path):
    """The first photo is a portrait, and narrower than the others."""
    write_colmap_photos(tmp_path, images=((24, 16), 4), images_2=((12, 8), 4))
    for folder, size in (("images", (16, 24)), ("images_2", (8, 12))):
        write_image(tmp_path / folder / "view1.png", size)
    write_image(tmp_path / "images_8" / "view1.png", (80, 120))
    assert {view.path.parent.name for view in read_colmap(tmp_path, 12).views} == {"images_2"}


@pytest.mark.parametrize("sizes", [{"w": 24, "h": 16}, {}])
def test_smaller_copies_of_nerfstudio_are_taken(tmp_path, sizes):
    write_transforms(tmp_path, ring(), size=(24, 16), fl_x=20.0, **sizes)
    for folder, size, count in (("images_2", (12, 8), 4), ("images_4", (6, 4), 3)):  # of which one lacks a photo
        for i in range(count):
            write_image(tmp_path / folder / f"{i}.png", size, (0, 200, 0))
    for width, copies in ((None, False), (13, False), (12, True), (6, True)):
        capture = load_capture(tmp_path, width=width)
        assert (capture.images[0, 0, 0, 1] == 200).item() is copies
        assert capture.cameras[0].fx == pytest.approx(20 * capture.cameras[0].width / 24)
        assert capture.image_names == [f"images/{i}.png" for i in range(4)]


def test_photos_in_other_folders_have_no_smaller_copies(tmp_path):
    write_transforms(tmp_path, ring(), folder="rgb", size=(24, 16), fl_x=20.0)
    for i in range(4):
        write_image(tmp_path / "images_2" / f"{i}.png", (12, 8), (0, 200, 0))
    assert load_capture(tmp_path, width=12).images.max() == 9
