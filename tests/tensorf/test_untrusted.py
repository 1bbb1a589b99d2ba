"""Files made to harm: captures that lead outside, and files that claim, or unpack to, more than there is memory for."""

import json
import os
import struct
import tracemalloc
import zlib

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from shapes import write_shapes
from tiny_captures import edit_json, ring
from tiny_captures import write_transforms as write_tiny_transforms

from tensorf import untrusted
from tensorf.cameras import Camera
from tensorf.captures import images, load_capture, matching
from tensorf.captures.frames import choose_frames
from tensorf.captures.llff import FILE_NAME, read_llff
from tensorf.captures.photos import copy_photos
from tensorf.captures.pictures import read_picture, stored_size
from tensorf.captures.sources import find_source
from tensorf.captures.transforms import read_transforms
from tensorf.captures.writing import Points, capture_points, capture_poses, write_colmap, write_transforms
from tensorf.checkpoint import load_checkpoint
from tensorf.errors import UserError
from tensorf.path_files import read_camera_path
from tensorf.untrusted import load_json, read_bytes, require_inside


def refused(function, *args, **options):
    """The one line that it ends in."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- places


def test_places_inside_a_folder(tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").touch()
    (root / "link.png").symlink_to(root / "images" / "a.png")
    (tmp_path / "named").symlink_to(root)
    inside = ["images/a.png", "images/../images/a.png", "../root/images/a.png", "link.png", root / "images" / "a.png"]
    require_inside((root / name for name in inside), root)
    require_inside([tmp_path / "named" / "images" / "a.png"], tmp_path / "named")  # the user's own link
    require_inside([], root)
    last = [root / name for name in [*inside, "../other.png"]]  # all of them are looked at, and only this one is named
    text = refused(require_inside, last, root)
    assert str(last[-1]) in text and "a.png" not in text


@pytest.mark.parametrize(
    "name", ["../other.png", "images/../../other.png", "/other.png", "file.png", "folder/other.png"]
)
def test_places_outside_of_it(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "other.png").touch()
    (root / "file.png").symlink_to(tmp_path / "other.png")
    (root / "folder").symlink_to(tmp_path)
    text = refused(require_inside, [root / name], root)
    assert str(root / name) in text and "outside=true" in text


def test_a_folder_whose_name_begins_alike_is_another(tmp_path):
    (tmp_path / "root-2").mkdir()
    assert "leads out" in refused(require_inside, [tmp_path / "root-2" / "a.png"], tmp_path / "root")


# --- captures


@pytest.fixture
def shots(tmp_path, world_folder):
    """The world's capture, to be changed, and a folder beside it that is not its own: (capture, elsewhere)."""
    write_shapes(tmp_path / "mine", views=8, width=48, height=36)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "mine", tmp_path / "elsewhere"


def link_of_a_photo(root, elsewhere):
    photo = sorted((root / "images").iterdir())[3]
    photo.rename(elsewhere / photo.name)
    photo.symlink_to(elsewhere / photo.name)


def link_of_the_folder(root, elsewhere):
    (root / "images").rename(elsewhere / "images")
    (root / "images").symlink_to(elsewhere / "images")


def as_transforms(root, elsewhere):
    capture = load_capture(root)
    names = [f"images/{name}" for name in capture.image_names]
    write_transforms(root / "transforms.json", names, capture.cameras, capture_poses(capture.cameras, capture))
    (root / FILE_NAME).unlink()


def renamed(root, change):
    table = json.loads((root / "transforms.json").read_text())
    table["frames"][2]["file_path"] = change(table["frames"][2]["file_path"])
    (root / "transforms.json").write_text(json.dumps(table))


def name_with_dots(root, elsewhere):
    as_transforms(root, elsewhere)
    (root / "images" / "view002.png").rename(elsewhere / "view002.png")
    renamed(root, lambda name: f"../elsewhere/{os.path.basename(name)}")


def absolute_name(root, elsewhere):
    as_transforms(root, elsewhere)
    (root / "images" / "view002.png").rename(elsewhere / "view002.png")
    renamed(root, lambda name: str(elsewhere / os.path.basename(name)))


def colmap_name(root, elsewhere):
    capture = load_capture(root)
    poses = capture_poses(capture.cameras, capture)
    names = [f"../../elsewhere/{n}" if n == "view002.png" else n for n in capture.image_names]
    positions = capture_points(torch.zeros(1, 3), capture)
    points = Points(positions, np.zeros((1, 3), np.uint8), np.zeros(1, np.int64), np.zeros((1, 2)))
    write_colmap(root / "sparse" / "0", names, capture.cameras, poses, points)
    (root / "images" / "view002.png").rename(elsewhere / "view002.png")
    (root / FILE_NAME).unlink()


@pytest.mark.parametrize(
    "change",
    [link_of_a_photo, link_of_the_folder, name_with_dots, absolute_name, colmap_name],
    ids=lambda f: f.__name__,
)
def test_photos_outside_of_a_capture_are_refused_before_they_are_decoded(shots, change, monkeypatch):
    root, elsewhere = shots
    change(root, elsewhere)
    with monkeypatch.context() as patch:
        for module, name in ((images, "read_picture"), (matching, "fit")):
            patch.setattr(module, name, lambda *args, **options: pytest.fail("decoded"))
        text = refused(load_capture, root)
    assert "leads out of" in text and str(elsewhere) in text
    assert len(load_capture(root, outside=True).cameras) == 8


def test_files_outside_of_a_capture_are_not_asked_for_their_size(tmp_path):
    write_tiny_transforms(tmp_path / "capture", ring(), fl_x=10.0)
    (tmp_path / "secret.txt").write_text("secret")
    edit_json(tmp_path / "capture" / "transforms.json", lambda t: t["frames"][0].update(file_path="../secret.txt"))
    assert "secret.txt leads out of" in refused(load_capture, tmp_path / "capture")


def test_names_that_come_back_are_inside(shots):
    root, elsewhere = shots
    as_transforms(root, elsewhere)
    renamed(root, lambda name: f"../mine/{name}")
    assert len(load_capture(root).cameras) == 8


def test_photos_are_not_matched_before_their_place_is_known(shots, monkeypatch):
    """Which order LLFF's photos are in is decided by what they show."""
    root, elsewhere = shots
    for i in (1, 2):
        (root / "images" / f"view{i:03d}.png").rename(root / "images" / f"view{10 * i}.png")
    link_of_the_folder(root, elsewhere)
    monkeypatch.setattr("tensorf.captures.llff.fit", lambda *args: pytest.fail("matched"))
    assert "leads out" in refused(read_llff, root, None)


def test_photos_alone_that_are_links(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 12)).save(elsewhere / f"{i}.jpg")
        (folder / f"{i}.jpg").symlink_to(elsewhere / f"{i}.jpg")
    assert "leads out" in refused(find_source, folder, 60)
    assert len(find_source(folder, 60, outside=True).photos) == 4


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "Photos.TGZ", "photos.7z"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    assert "is an archive: unpack it" in refused(find_source, tmp_path / name, 60)


# --- sizes


def test_no_more_is_read_than_asked(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    os.truncate(tmp_path / "a", 2**40)  # a terabyte of nothing, which takes no place on the disk
    with pytest.raises(ValueError, match="larger than"):
        read_bytes(tmp_path / "a", 2**20)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_json_nested_too_deep(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    assert "nested" in refused(read_transforms, tmp_path)


def test_json_that_is_too_large(tmp_path):
    (tmp_path / "transforms.json").write_text("{}")
    os.truncate(tmp_path / "transforms.json", 2**36)
    assert "larger than 64 MiB" in refused(read_transforms, tmp_path)


def test_json_numbers(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([1, -7, 10**20]) + " ")
    assert load_json(path) == [1, -7, 10**20]
    path.write_text("[" + "9" * 400 + ", -" + "9" * 5000 + "]")
    assert load_json(path) == [float("inf"), -float("inf")]


def npy(path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(80))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [10**8, 10**9, 10**17, 10**30])
def test_an_array_that_claims_more_than_its_file_holds(tmp_path, rows):
    npy(tmp_path / FILE_NAME, (rows, 17))
    tracemalloc.start()
    assert "is not a plain NumPy array" in refused(read_llff, tmp_path, None)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("count", [2**60, 2**63 - 1, 2**64 - 1])
def test_a_colmap_model_that_claims_more_than_its_files_hold(tmp_path, count):
    model = tmp_path / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.bin").write_bytes(struct.pack("<Q", 0))
    (model / "images.bin").write_bytes(struct.pack("<Q", count))
    assert "images.bin is damaged, cut off or too large" in refused(load_capture, tmp_path)
    (model / "images.bin").write_bytes(
        struct.pack("<Q", 1) + struct.pack("<i7di", 1, *[0.0] * 7, 1) + b"a.png\0" + struct.pack("<Q", count)
    )
    assert "images.bin is damaged, cut off or too large" in refused(load_capture, tmp_path)
    (model / "images.bin").write_bytes(struct.pack("<Q", 0))
    (model / "points3D.bin").write_bytes(struct.pack("<QQ3d3BdQ", 2, 1, 0, 0, 0, 1, 1, 1, 0, count))
    assert "points3D.bin is damaged, cut off or too large" in refused(load_capture, tmp_path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, width, height, pixels, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rest)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [11_600, 14_000, 2**31 - 1])
def test_pictures_with_too_many_pixels(tmp_path, side, monkeypatch):
    path = tmp_path / "photo.png"
    png(path, side, side, b"")
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded"))
    for function, options in ((stored_size, {}), (read_picture, {"white": True, "upright": True})):
        text = refused(function, path, **options)
        assert f"{path} has {side * side / 1e6:.0f} megapixels, and at most 134 are read: make it smaller" in text
    assert "megapixels" in refused(copy_photos, [path], tmp_path)


@pytest.mark.filterwarnings("error")
def test_pictures_of_the_largest_cameras_are_read(tmp_path):
    png(tmp_path / "photo.png", 12_000, 9_000, b"")  # 108 megapixels, of which Pillow warns
    assert stored_size(tmp_path / "photo.png") == (12_000, 9_000)


@pytest.mark.parametrize("kind, head", [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")])
def test_texts_in_pictures_that_unpack_to_much(tmp_path, kind, head):
    path = tmp_path / "photo.png"
    png(path, 2, 1, b"\0" + bytes(6), chunk(kind, head + zlib.compress(bytes(30 * 2**20), 9)))
    tracemalloc.start()
    assert "cannot be read as an image" in refused(read_picture, path, white=True, upright=True)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """PostScript is a language: Pillow hands it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("Ghostscript was started"))
    (tmp_path / "photo.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    assert "save it again as an 8-bit PNG" in refused(read_picture, tmp_path / "photo.png", white=True, upright=True)
    assert "photo.png cannot be read" in refused(copy_photos, [tmp_path / "photo.png"], tmp_path)


def test_a_video_that_is_a_list_of_files(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "elsewhere" / "a.mp4", noise, fps=10)
    (tmp_path / "walk.mp4").write_text("ffconcat version 1.0\nfile elsewhere/a.mp4\n")
    assert "cannot be read as a video" in refused(choose_frames, tmp_path / "walk.mp4", 3, tmp_path)
    assert len(choose_frames(tmp_path / "elsewhere" / "a.mp4", 3, tmp_path)) == 3


def test_a_video_with_too_many_pixels(tmp_path, monkeypatch):
    iio.imwrite(tmp_path / "walk.mp4", np.zeros((3, 48, 64, 3), np.uint8), fps=10)
    monkeypatch.setattr(untrusted, "MOST_PIXELS", 48 * 64 - 1)
    assert "walk.mp4 has 0 megapixels" in refused(choose_frames, tmp_path / "walk.mp4", 3, tmp_path)


@pytest.mark.parametrize("size", [{"w": 1e6, "h": 1e6}, {"w": 10**400, "h": 9}, {"w": float("inf"), "h": 9}])
def test_a_camera_path_of_giant_pictures(tmp_path, size):
    frame = {"transform_matrix": np.eye(4).tolist(), "fl_x": 10.0, **size, "cx": 4, "cy": 4, "fl_y": 10.0}
    (tmp_path / "path.json").write_text(json.dumps({"frames": [frame]}))
    like = Camera(torch.eye(3, 4), 9.0, 9.0, 4.5, 3.5, 9, 7)
    assert "at most" in refused(read_camera_path, tmp_path / "path.json", torch.eye(4), like)


@pytest.mark.parametrize("resolution", [[60_000, 5, 4], [60_000] * 3, [10**12] * 3])
def test_a_field_whose_header_asks_for_more_memory_than_its_file_holds(make_field, tmp_path, resolution, monkeypatch):
    from test_checkpoint import altered

    field, path = make_field(), tmp_path / "field.safetensors"
    altered(field, path, lambda header: header.update(resolution=resolution))
    monkeypatch.setattr("tensorf.field.grid_points_first", _small)
    assert "is damaged, or no field" in refused(load_checkpoint, path)


def _small(tensor):
    assert tensor.is_meta or tensor.numel() < 10_000
    return tensor


@pytest.mark.parametrize("steps", [0, -1, 10**9])
def test_a_field_whose_rays_have_no_end(make_field, tmp_path, steps):
    from test_checkpoint import altered

    altered(make_field(), tmp_path / "field.safetensors", lambda header: header.update(steps=steps))
    assert f"steps={steps}" in refused(load_checkpoint, tmp_path / "field.safetensors")
