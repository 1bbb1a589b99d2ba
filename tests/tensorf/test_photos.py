"""Copies of photos, and the frames of videos: what poses are estimated from."""

import logging
import subprocess
import sys

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from tensorf.captures import frames, photos
from tensorf.captures.frames import choose_frames, sharpness
from tensorf.captures.photos import by_lens, copy_photos, find_photos
from tensorf.errors import UserError


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def copied(tmp_path, folder):
    (tmp_path / "copies").mkdir()
    names = copy_photos(find_photos(folder), tmp_path / "copies")
    assert sorted(names) == sorted(p.name for p in (tmp_path / "copies").iterdir())
    return {name: Image.open(tmp_path / "copies" / name) for name in names}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def exif(model="Phone", full_frame=None, own=None, zoom=None):
    data = Image.Exif()
    data[0x0110] = model
    told = {0xA405: full_frame, 0x920A: own, 0xA404: zoom}
    data[0x8769] = {tag: value for tag, value in told.items() if value is not None}
    return data


# --- photos


def test_photos_are_grouped_by_the_focal_length_that_they_tell(tmp_path, folder):
    for name, data in {
        "a": exif(full_frame=26),
        "b": exif(full_frame=52),
        "c": exif(full_frame=26),
        "d": exif("Another", full_frame=26),
        "e": exif(own=4.25),  # of a sensor of unknown size
        "f": exif(own=4.3),  # within 2%
        "g": exif(own=6.0),
        "h": None,
        "i": Image.Exif(),
        "j": exif(full_frame=26, own=6.8),
        "k": exif(full_frame=26, own=2.2),  # macro: cut out of the wide lens's picture
        "l": exif(full_frame=26, own=6.8, zoom=2.0),
        "m": exif(full_frame=26, own=IFDRational(0, 0)),
        "n": exif(full_frame=26, zoom=1.0),  # none
    }.items():
        picture().save(folder / f"{name}.jpg", **({} if data is None else {"exif": data}))
    (tmp_path / "copies").mkdir()
    groups = by_lens(copy_photos(find_photos(folder), tmp_path / "copies"))
    alone = [["b.jpg"], ["d.jpg"], ["g.jpg"], ["j.jpg"], ["k.jpg"], ["l.jpg"]]
    assert sorted(groups) == sorted(
        [["a.jpg", "c.jpg", "m.jpg", "n.jpg"], ["e.jpg", "f.jpg"], ["h.jpg", "i.jpg"], *alone]
    )


def test_copies_tell_the_focal_length_and_nothing_else(tmp_path, folder):
    data = exif(full_frame=52)
    data[0x010F], data[0x0112] = "Maker", 1
    picture().save(folder / "a.jpg", exif=data)
    found = copied(tmp_path, folder)["a.jpg"].getexif()
    assert found.get_ifd(0x8769) == {0xA405: 52} and found[0x0110] == "Phone" and 0x010F not in found


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40])
def test_damaged_exif_data_tell_nothing(tmp_path, folder, damage):
    picture().save(folder / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + damage)
    assert by_lens({"a.jpg": folder / "a.jpg"}) == [["a.jpg"]]
    assert "a.jpg" in copied(tmp_path, folder)


def test_photos_are_found_in_natural_order_and_in_images_first(folder):
    for name in ("10.jpg", "9.JPG", "._9.jpg"):
        picture().save(folder / name, format="JPEG")
    (folder / "notes.txt").write_text("no photo")
    assert [p.name for p in find_photos(folder)] == ["9.JPG", "10.jpg"]
    (folder / "images").mkdir()
    assert [p.name for p in find_photos(folder)] == ["9.JPG", "10.jpg"]
    picture().save(folder / "images" / "a.png")
    assert [p.name for p in find_photos(folder)] == ["a.png"]


def test_copies_are_upright(tmp_path, folder):
    """Orientation 6: the stored first row is the picture's right side."""
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:10] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(folder / "phone.jpg", exif=exif, quality=95)
    copy = copied(tmp_path, folder)["phone.jpg"]
    pixels = np.asarray(copy).astype(int)
    assert copy.size == (20, 40) and copy.getexif().get(0x0112, 1) == 1
    assert pixels[:, 15].min() > 200 and pixels[:, 5].max() < 50


@pytest.mark.parametrize("size", [(2400, 1000), (1000, 2400)])
def test_large_photos_are_reduced(tmp_path, folder, size):
    picture(*size).save(folder / "large.jpg")
    assert sorted(copied(tmp_path, folder)["large.jpg"].size) == [667, 1600]


def test_deep_and_float_photos_keep_their_colours(tmp_path, folder):
    """Pillow alone makes 16-bit grey white and floats in 0 to 1 black."""
    grey = np.tile(np.linspace(0.1, 0.9, 64, dtype=np.float32), (48, 1))
    Image.fromarray((grey * 65535).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(grey).save(folder / "float.tif")
    for name, copy in copied(tmp_path, folder).items():
        assert np.abs(np.asarray(copy)[..., 1] - 255 * grey).max() < 4, name


@pytest.mark.parametrize(("name", "options"), [("a.tif", {}), ("lzw.tif", {"compression": "tiff_lzw"}), ("a.png", {})])
def test_photos_of_all_formats_are_upright(tmp_path, folder, name, options):
    """Orientation 6, as above; Pillow tells the size of TIFFs as turned already."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:10] = 250
    Image.fromarray(stored).save(folder / name, exif=exif, **options)
    copy = next(iter(copied(tmp_path, folder).values()))
    assert copy.size == (20, 40)
    pixels = np.asarray(copy).astype(int)
    assert pixels[:, 15].min() > 200 and pixels[:, 5].max() < 50


@pytest.mark.parametrize("turn", [1, 6])
def test_large_jpegs_are_decoded_smaller(tmp_path, folder, turn, monkeypatch):
    monkeypatch.setattr(photos, "LONGEST_SIDE", 100)
    exif = Image.Exif()
    exif[0x0112] = turn
    large = picture(8, 6).resize((800, 600), Image.BICUBIC)
    large.save(folder / "a.jpg", exif=exif, quality=95)
    decoded = []
    reading = lambda *args, **options: decoded.append(photos_read(*args, **options)) or decoded[-1]  # noqa: E731
    photos_read = photos.read_picture
    monkeypatch.setattr(photos, "read_picture", reading)
    copy = copied(tmp_path, folder)["a.jpg"]
    truth = large.resize((100, 75), Image.BOX)
    truth = truth if turn == 1 else truth.transpose(Image.Transpose.ROTATE_270)
    assert sorted(decoded[0].shape) == [3, 75, 100] and copy.size == truth.size
    assert np.abs(np.asarray(copy).astype(int) - np.asarray(truth)).mean() < 3


def test_photos_of_nearly_the_same_aspect_are_resized(tmp_path, folder, caplog):
    for i, size in enumerate([(40, 30), (40, 30), (40, 31), (80, 60), (20, 15)]):  # half is enough
        picture(*size).save(folder / f"{i}.png")
    assert {copy.size for copy in copied(tmp_path, folder).values()} == {(40, 30)}
    assert len(list(folder.iterdir())) == 5 and not caplog.records


def test_photos_of_an_iphone(tmp_path, folder, caplog):
    """Quadrants of four colours, turned by EXIF as a phone held upright does it; one is there as a JPEG, too."""
    pillow_heif = pytest.importorskip("pillow_heif")
    shown = picture(2, 2).resize((48, 64), Image.NEAREST)
    data = exif("iPhone 15", full_frame=26)
    data[0x0112] = 6
    stored = pillow_heif.from_pillow(shown.transpose(Image.Transpose.ROTATE_90))
    for name in ("IMG_10.HEIC", "IMG_9.heic", "IMG_8.heif", "._IMG_7.heic", "IMG_2.HEIC"):
        stored.save(folder / name, quality=95, exif=data.tobytes())
    shown.save(folder / "IMG_2.jpg", quality=95)
    assert [p.name for p in find_photos(folder)] == ["IMG_2.jpg", "IMG_8.heif", "IMG_9.heic", "IMG_10.HEIC"]
    copies = copied(tmp_path, folder)
    assert list(copies) == ["IMG_2.jpg", "IMG_8.jpg", "IMG_9.jpg", "IMG_10.jpg"] and not caplog.records
    for copy in copies.values():
        assert copy.size == (48, 64)
        difference = np.asarray(copy, float) - np.asarray(shown, float)
        assert np.abs(difference).mean() < 4
    assert copies["IMG_9.jpg"].getexif().get_ifd(0x8769)[0xA405] == 26


@pytest.fixture
def no_heic(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def test_photos_of_other_kinds_are_counted(tmp_path, folder, caplog, no_heic):
    for name in ("a.png", "b.jpg"):
        picture().save(folder / name)
    for name in ("c.HEIC", "d.heif", "e.nef", "b.CR2", "._f.dng", "@g.arw"):  # b is there as a JPEG
        (folder / name).write_bytes(b"whatever")
    copied(tmp_path, folder)
    assert len(caplog.records) == 1
    told = ("3 photos", ".heic, .heif, .nef", "c.HEIC", "pip install pillow-heif, or convert them to JPEG")
    assert all(word in caplog.text for word in told)


def test_names_become_safe_and_stay_apart(tmp_path, folder):
    for name in ("#my photo.png", "_my_photo.jpg", "#my photo.jpg", "Blüte-1.5.jpeg"):
        picture().save(folder / name)
    names = sorted(copied(tmp_path, folder))
    assert names == ["Blüte-1.5.jpg", "___my_photo.jpg", "__my_photo.jpg", "_my_photo.jpg"]


def test_names_differ_in_more_than_capitals(tmp_path, folder):
    """On most Macs the second copy would replace the first."""
    for name in ("IMG_1.png", "img_1.jpg"):
        picture().save(folder / name)
    assert len({name.lower() for name in copied(tmp_path, folder)}) == 2


def test_transparency_becomes_white(tmp_path, folder):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    assert np.asarray(copied(tmp_path, folder)["clear.jpg"]).min() > 250


def test_masks_become_as_large_as_their_photos_and_upright(tmp_path, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 30).save(folder / "my photo.jpg", exif=exif)
    picture(30, 40).save(folder / "plain.jpg")
    mask = np.full((400, 300), 255, np.uint8)
    mask[:200] = 0
    Image.fromarray(mask).save(tmp_path / "upright.png")
    (tmp_path / "work" / "copies").mkdir(parents=True)
    names = copy_photos(
        find_photos(folder),
        tmp_path / "work" / "copies",
        masks={folder / "my photo.jpg": tmp_path / "upright.png"},
    )
    assert list(names) == ["my_photo.jpg", "plain.jpg"]
    written = sorted(p.name for p in (tmp_path / "work" / "masks").iterdir())
    assert written == ["my_photo.jpg.png", "plain.jpg.png"]
    assert np.asarray(Image.open(tmp_path / "work" / "masks" / "plain.jpg.png")).min() == 255
    copy = np.asarray(Image.open(tmp_path / "work" / "masks" / "my_photo.jpg.png"))
    assert copy.shape == (40, 30) and (copy[:20] == 0).all() and (copy[20:] == 255).all()


def test_masks_of_another_shape_than_their_photos(tmp_path, folder):
    picture(40, 30).save(folder / "a.jpg")
    Image.new("L", (30, 40), 255).save(tmp_path / "mask.png")
    (tmp_path / "work" / "copies").mkdir(parents=True)
    with pytest.raises(UserError, match="mask.png is 30x40, its photo 40x30"):
        copy_photos(find_photos(folder), tmp_path / "work" / "copies", masks={folder / "a.jpg": tmp_path / "mask.png"})


def test_photos_of_other_sizes_are_counted_and_left_out(tmp_path, folder, caplog):
    for i in range(3):
        picture().save(folder / f"{i}.png")
    picture(30, 40).save(folder / "upright.png")
    with caplog.at_level(logging.WARNING):
        assert sorted(copied(tmp_path, folder)) == ["0.jpg", "1.jpg", "2.jpg"]
    assert "1 of 4 photos" in caplog.text and "another ratio" in caplog.text and "upright.png" in caplog.text


@pytest.mark.parametrize("content", [b"no image", None])
def test_unreadable_photos_are_named(tmp_path, folder, content):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(400, 300).save(folder / name)
    for name in ("b.jpg", "c.jpg"):
        (folder / name).write_bytes(content or (folder / name).read_bytes()[:9000])  # a good header
    with pytest.raises(UserError, match=r"2 photos cannot be read: \S*b\.jpg, \S*c\.jpg; replace"):
        copied(tmp_path, folder)


# --- videos


def write_video(path, pictures, size=(64, 48), **options):
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=10, macro_block_size=2, quality=10, **options)
    writer.send(None)
    for pixels in pictures:
        writer.send(np.ascontiguousarray(pixels))
    writer.close()


def run_ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *map(str, arguments)], check=True)


def moving(count, blurred=lambda i: False, size=(64, 48)):
    """A window that slides over noise, out of focus where `blurred(i)`."""
    width, height = size
    noise = np.random.default_rng(1).integers(0, 255, (height // 2, width * 4, 3), dtype=np.uint8)
    noise = cv2.resize(noise, (width * 8, height), interpolation=cv2.INTER_CUBIC)
    for i in range(count):
        view = noise[:, 3 * i : 3 * i + width]
        yield cv2.GaussianBlur(view, (0, 0), 3) if blurred(i) else view


def read(folder, name):
    return np.asarray(Image.open(folder / name))


def test_the_sharpest_frame_of_each_window_is_taken(tmp_path, folder):
    sharp = [2, 9, 10, 19]  # one in each window of 5
    write_video(tmp_path / "walk.mp4", moving(20, lambda i: i not in sharp))
    assert choose_frames(tmp_path / "walk.mp4", 4, folder) == [f"{i:06d}.jpg" for i in sharp]
    true = [view.astype(float) for view in moving(20)]
    for i in sharp:
        errors = [np.abs(read(folder, f"{i:06d}.jpg") - view).mean() for view in true]
        assert np.argmin(errors) == i
    true = next(moving(1))
    assert sharpness(true) > 5 * sharpness(cv2.GaussianBlur(true, (0, 0), 3))


def test_short_videos_give_all_frames(tmp_path, folder):
    write_video(tmp_path / "short.mp4", moving(5))
    assert len(choose_frames(tmp_path / "short.mp4", 60, folder)) == 5


@pytest.mark.parametrize("promised", [0, 400, 12])
def test_headers_that_are_wrong_about_the_length(tmp_path, folder, monkeypatch, promised):
    write_video(tmp_path / "walk.mp4", moving(40))
    monkeypatch.setattr(frames, "_expected_frames", lambda video: promised)
    names = choose_frames(tmp_path / "walk.mp4", 10, folder)
    assert names[-1] >= "000036.jpg" and 10 <= len(names) <= 40
    assert sorted(names) == sorted(p.name for p in folder.iterdir())
    if promised != 12:
        assert len(names) == 10


def test_videos_of_phones_are_upright(tmp_path, folder, caplog):
    """Stored lying, with a mark that says how to turn it, as phones do; the reader's remarks stay off the screen."""
    left_white = [np.pad(view[:, 32:], ((0, 0), (32, 0), (0, 0)), constant_values=255) for view in moving(6)]
    write_video(tmp_path / "stored.mp4", left_white)
    turned = tmp_path / "turned.mp4"
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "stored.mp4", "-c", "copy", turned)
    with caplog.at_level(logging.WARNING):
        name = choose_frames(turned, 3, folder)[0]
    pixels = read(folder, name)
    assert pixels.shape == (64, 48, 3)
    assert pixels[36:].mean() > 230 > pixels[:28].mean()  # a quarter turn to the left: the left side is below
    assert caplog.text == ""


def test_wide_pixels_become_square(tmp_path, folder):
    write_video(tmp_path / "tape.mp4", moving(6), output_params=["-aspect", "16:9"])  # of 64x48: pixels of 4:3
    assert read(folder, choose_frames(tmp_path / "tape.mp4", 3, folder)[0]).shape in ((48, 84, 3), (48, 86, 3))


def test_large_videos_are_reduced(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(frames, "_SCALE", frames._SCALE.replace(str(photos.LONGEST_SIDE), "32"))
    write_video(tmp_path / "walk.mp4", moving(6))
    assert read(folder, choose_frames(tmp_path / "walk.mp4", 3, folder)[0]).shape == (24, 32, 3)


def test_videos_without_motion(tmp_path, folder):
    """A camera's noise is no motion; two steps to the side are."""
    generator, size = np.random.default_rng(0), (640, 480)
    first, *_, last = (view.astype(float) for view in moving(3, size=size))
    noisy = [np.clip(view + generator.normal(0, 6, view.shape), 0, 255).astype(np.uint8) for view in [first] * 8]
    write_video(tmp_path / "tripod.mp4", noisy, size)
    write_video(tmp_path / "walk.mp4", [*noisy, last.astype(np.uint8)], size)
    assert len(choose_frames(tmp_path / "walk.mp4", 9, folder)) == 9
    with pytest.raises(UserError, match=r"tripod\.mp4 shows no motion"):
        choose_frames(tmp_path / "tripod.mp4", 4, folder)


@pytest.mark.parametrize("count, told", [(1, "has 1 frame, "), (2, "has 2 frames, ")])
def test_videos_of_too_few_frames(tmp_path, folder, count, told):
    write_video(tmp_path / "live.mp4", moving(count))
    with pytest.raises(UserError, match=rf"live\.mp4 {told}.* longer video"):
        choose_frames(tmp_path / "live.mp4", 4, folder)


def no_video(path):
    path.write_bytes(b"no video" * 100)


def without_table(path):
    write_video(path, moving(20))
    path.write_bytes(path.read_bytes()[:1500])


def without_end_of_table(path):
    write_video(path, moving(20), output_params=["-movflags", "faststart"])
    path.write_bytes(path.read_bytes()[:500])


def without_frames(path):
    write_video(path, moving(20), output_params=["-movflags", "faststart"])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


def audio(path):
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", path)


@pytest.mark.parametrize(
    "write, told",
    [
        (lambda path: path.touch(), "convert it to an MP4 file"),
        (no_video, "convert it to an MP4 file"),
        (without_table, "it is cut off or damaged; copy it"),
        (without_end_of_table, "it is cut off or damaged; copy it"),
        (without_frames, "it is cut off or damaged; copy it"),
        (audio, "it has no picture, only sound; give"),
    ],
)
def test_unreadable_videos(tmp_path, folder, write, told):
    write(tmp_path / "bad.mp4")
    with pytest.raises(UserError, match=rf"bad\.mp4 cannot be read as a video.*{told}") as error:
        choose_frames(tmp_path / "bad.mp4", 4, folder)
    assert "\n" not in str(error.value)


def hdr_signal(pixels, transfer):
    """uint16 RGB in BT.2020, HLG or PQ (ITU-R BT.2100), of `pixels` on a screen with a white of 203 nits."""
    to_bt2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    nits = 203 * (pixels / 255.0) ** 2.4 @ np.transpose(to_bt2020)
    if transfer == "smpte2084":
        powers = (nits / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * powers) / (1 + 18.6875 * powers)) ** 78.84375
    else:
        luminance = nits @ [[0.2627], [0.6780], [0.0593]] / 1000
        scene = nits / 1000 * luminance.clip(1e-9) ** (-0.2 / 1.2)
        bright = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)
    return (signal * 65535).round().astype(np.uint16)


def write_hdr_video(path, pictures, transfer, primaries="bt2020", matrix="bt2020nc"):
    tags = f"setparams=color_trc={transfer}:color_primaries={primaries}:colorspace={matrix}"
    write_video(
        path,
        [hdr_signal(pixels, transfer) for pixels in pictures],
        pix_fmt_in="rgb48le",
        pix_fmt_out="yuv420p10le",
        output_params=["-vf", f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,{tags}"],
    )


@pytest.mark.parametrize(
    "transfer, tags", [("arib-std-b67", ()), ("smpte2084", ()), ("arib-std-b67", ("unknown", "unknown"))]
)
def test_hdr_videos_keep_their_colours(tmp_path, folder, caplog, transfer, tags):
    pictures = list(moving(4, blurred=lambda i: True))
    write_hdr_video(tmp_path / "iphone.mov", pictures, transfer, *tags)
    with caplog.at_level(logging.INFO, "tensorf"):
        names = choose_frames(tmp_path / "iphone.mov", 4, folder)
    for name, pixels in zip(names, pictures, strict=True):
        assert np.abs(read(folder, name) - pixels.astype(float)).mean() < 4
    (line,) = caplog.messages
    assert "iphone.mov is an HDR video" in line and caplog.records[0].levelno == logging.INFO


def test_hdr_videos_without_zscale_are_pale(tmp_path, folder, caplog, monkeypatch):
    write_hdr_video(tmp_path / "iphone.mov", moving(4), "arib-std-b67")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "true")  # names no filters
    assert len(choose_frames(tmp_path / "iphone.mov", 4, folder)) == 4
    (line,) = caplog.messages
    assert all(word in line for word in ("iphone.mov", "pale", "zscale", "IMAGEIO_FFMPEG_EXE"))


def test_depth_maps_beside_the_photos_are_left_out(tmp_path, folder, caplog):
    for i in range(3):
        picture(160, 120).save(folder / f"frame{i}.jpg")
        picture(32, 24).save(folder / f"depth{i}.png")
        picture(32, 24).save(folder / f"sure{i}.png")
    copies = copied(tmp_path, folder)
    assert sorted(copies) == ["frame0.jpg", "frame1.jpg", "frame2.jpg"]
    assert {copy.size for copy in copies.values()} == {(160, 120)}
    assert "6 of 9 photos are left out" in caplog.text and "depth maps" in caplog.text and "32x24" in caplog.text


def test_a_mask_of_nothing_and_one_of_zeros_and_ones(tmp_path, folder):
    picture().save(folder / "a.jpg")
    (tmp_path / "work" / "copies").mkdir(parents=True)
    masks = {folder / "a.jpg": tmp_path / "mask.png"}
    pixels = np.zeros((30, 40), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png hides all of its photo"):
        copy_photos(find_photos(folder), tmp_path / "work" / "copies", masks=masks)
    pixels[:, 20:] = 1
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    copy_photos(find_photos(folder), tmp_path / "work" / "copies", masks=masks)
    copy = np.asarray(Image.open(tmp_path / "work" / "masks" / "a.jpg.png"))
    assert not copy[:, :20].any() and (copy[:, 20:] == 255).all()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC picture, which is read after pip install pillow-heif"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"", "it is empty"),
    ],
)
def test_what_a_file_is_that_is_no_photo(tmp_path, folder, content, told, no_heic):
    picture().save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(content)
    with pytest.raises(UserError, match=rf"b\.jpg cannot be read as an image \(.*{told}"):
        copied(tmp_path, folder)


def test_jpegs_of_other_suffixes_are_photos(folder):
    for name in ("a.jfif", "b.JPE"):
        picture().save(folder / name, format="JPEG")
    assert [p.name for p in find_photos(folder)] == ["a.jfif", "b.JPE"]
