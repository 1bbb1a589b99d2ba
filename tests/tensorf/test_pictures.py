"""Picture files of every kind, written here and read back within a level of what was meant."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from tensorf import untrusted
from tensorf.captures.pictures import hidden_share, orientation, read_picture, stored_size
from tensorf.errors import UserError

GREY16 = np.linspace(0, 65535, 16 * 24).round().astype(np.uint16).reshape(16, 24)
RGB16 = np.stack([GREY16, GREY16[::-1], GREY16 // 3], axis=-1)
ALPHA16 = np.ascontiguousarray(GREY16[:, ::-1])
RGBA16 = np.concatenate([RGB16, ALPHA16[..., None]], axis=-1)
GREY8, RGB8, ALPHA8 = ((x / 257).round().astype(np.uint8) for x in (GREY16, RGB16, ALPHA16))


def read(path, white=False, upright=False):
    pixels = read_picture(path, white=white, upright=upright)
    assert pixels.dtype == np.uint8 and stored_size(path) == (24, 16)
    return pixels


def assert_close(pixels, truth, levels=1):
    """`truth` on the scale 0 to 255, (h, w) grey or (h, w, 3)."""
    truth = np.broadcast_to(truth[..., None] if np.ndim(truth) == 2 else truth, pixels.shape)
    assert np.abs(pixels.astype(float) - truth).max() <= levels


def write_png(path, samples, kind, bits, transparent=None):
    """A PNG of `samples` (h, w) or (h, w, c), which Pillow does not write at all depths. kind: PNG's colour type."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    if bits < 8:
        planes = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        rows = samples.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if transparent is not None:
        data += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *map(int, transparent)))
    data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


def write_tiff(path, samples, **options):
    """By OpenCV: Pillow writes neither 16-bit colour nor doubles."""
    order = [2, 1, 0, 3][: samples.shape[2]] if samples.ndim == 3 else slice(None)
    assert cv2.imwrite(str(path), np.ascontiguousarray(samples[..., order]))
    return path


def write_raw_tiff(path, data, tags):
    """A little-endian TIFF of 24x16 pixels in one strip. tags: the further ones, each a tuple of 16-bit numbers."""
    tags = {256: (24,), 257: (16,), 259: (1,), 278: (16,), **tags}
    strip = 8 + 2 + 12 * (len(tags) + 2) + 4 + 8 * len(tags)  # after room for numbers that do not fit their entries
    body, spare = b"", b""
    for tag, values in sorted({**tags, 273: strip, 279: len(data)}.items()):
        if isinstance(values, int):
            body += struct.pack("<HHII", tag, 4, 1, values)
            continue
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, spare = struct.pack("<I", 8 + 2 + 12 * (len(tags) + 2) + 4 + len(spare)), spare + packed
        body += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + body + bytes(4)
    path.write_bytes((head + spare).ljust(strip, b"\0") + data)
    return path


def patch_tag(path, tag, value):
    """Overwrite a little-endian TIFF's tag of one 16-bit number, which Pillow sets as it likes."""
    data = path.read_bytes()
    entry = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
    path.write_bytes(data[:entry] + struct.pack("<H", value) + data[entry + 2 :])


# --- grey and colour, without transparency


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.webp"])
def test_eight_bit_rgb(tmp_path, name):
    Image.fromarray(RGB8).save(tmp_path / name, lossless=True)
    np.testing.assert_array_equal(read(tmp_path / name), RGB8)
    assert hidden_share(tmp_path / name) == 0


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_eight_bit_grey(tmp_path, name):
    Image.fromarray(GREY8).save(tmp_path / name, quality=100)
    assert_close(read(tmp_path / name), GREY8)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(tmp_path, bits):
    levels = np.arange(16 * 24).reshape(16, 24) % 2**bits
    assert_close(read(write_png(tmp_path / "a.png", levels, 0, bits)), levels * 255 / (2**bits - 1), levels=0)
    key = write_png(tmp_path / "key.png", levels, 0, bits, transparent=[1])
    assert_close(read(key, white=True), np.where(levels == 1, 255, levels * 255 / (2**bits - 1)), levels=0)


def test_palette(tmp_path):
    few = RGB8 // 128 * 255
    Image.fromarray(few).quantize(8).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), few)
    assert Image.open(tmp_path / "a.png").mode == "P"


def sixteen_bit_greys(folder):
    yield write_png(folder / "grey.png", GREY16, 0, 16)
    for name, samples in (
        ("little.tif", GREY16),
        ("big.tif", GREY16.astype(">u2")),
        ("i.tif", GREY16.astype(np.int32)),
    ):
        Image.fromarray(samples).save(folder / name)
        yield folder / name
    Image.fromarray(GREY16).save(folder / "packed.tif", compression="tiff_lzw")
    yield folder / "packed.tif"


def test_sixteen_bit_grey_is_divided_by_257(tmp_path):
    paths = list(sixteen_bit_greys(tmp_path))
    assert {Image.open(p).mode for p in paths} >= {"I;16", "I;16B", "I"}
    for path in paths:
        assert_close(read(path), (GREY16 / 257).round(), levels=0)
        assert hidden_share(path) == 0


def test_a_tiff_whose_zero_is_white(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "a.tif")
    patch_tag(tmp_path / "a.tif", 262, 0)
    assert_close(read(tmp_path / "a.tif"), 255 - GREY16 / 257, levels=0.5)


def test_twelve_bit_grey(tmp_path):
    twelve = (GREY16 >> 4).reshape(16, 12, 2).astype(int)  # two pixels in three bytes
    data = np.stack([twelve[..., 0] >> 4, twelve[..., 0] % 16 * 16 + (twelve[..., 1] >> 8), twelve[..., 1] % 256], -1)
    path = write_raw_tiff(tmp_path / "a.tif", data.astype(np.uint8).tobytes(), {258: (12,), 262: (1,)})
    assert_close(read(path), GREY16 / 257)
    assert read(path).max() == 255


def test_float_colour_that_is_not_stored_upright_is_refused(tmp_path):
    tags = {258: (32, 32, 32), 262: (2,), 277: (3,), 339: (3, 3, 3)}
    data = (RGB16 / 65535).astype("<f4").tobytes()
    assert_close(read(write_raw_tiff(tmp_path / "a.tif", data, tags)), RGB16 / 257, levels=0.51)
    assert "upright" in refused(write_raw_tiff(tmp_path / "b.tif", data, {**tags, 274: (6,)}))


def test_sixteen_bit_colour(tmp_path):
    assert_close(read(write_png(tmp_path / "a.png", RGB16, 2, 16)), RGB16 / 257)
    assert_close(read(write_tiff(tmp_path / "a.tif", RGB16)), RGB16 / 257)


def test_floats_in_zero_to_one(tmp_path):
    Image.fromarray((GREY16 / 65535).astype(np.float32)).save(tmp_path / "grey.tif")
    paths = [tmp_path / "grey.tif", write_tiff(tmp_path / "double.tif", GREY16 / 65535)]
    for path in paths:
        assert_close(read(path), GREY16 / 257, levels=0.51)
    assert_close(read(write_tiff(tmp_path / "c.tif", (RGB16 / 65535).astype(np.float32))), RGB16 / 257, levels=0.51)


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
def test_floats_of_another_range_are_refused(tmp_path, bad):
    samples = (RGB16 / 65535).astype(np.float32)
    samples[3, 4] = bad
    Image.fromarray(samples[..., 0]).save(tmp_path / "grey.tif")
    for path in (tmp_path / "grey.tif", write_tiff(tmp_path / "colour.tif", samples)):
        assert "float samples of" in refused(path)


def test_integers_of_more_than_16_bits_are_refused(tmp_path):
    Image.fromarray(GREY16.astype(np.int32) * 2).save(tmp_path / "a.tif")
    assert "0 to 131070, outside 0 to 65535" in refused(tmp_path / "a.tif")


def test_cmyk_jpegs(tmp_path):
    # Smooth colours, as JPEG blurs them; r = (255 - c)(255 - k) / 255. Pillow writes Adobe's inverted samples.
    ramp = np.linspace(0, 255, 24).astype(np.uint8)[None].repeat(16, 0)
    ink = np.stack([ramp, 255 - ramp, ramp // 2, ramp // 4], axis=-1)
    truth = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert_close(read(tmp_path / "cmyk.jpg"), truth, levels=4)
    # YCCK has the same samples, and Adobe's marker says that the first three are to be turned from YCbCr.
    c, m, y, k = np.moveaxis(255 - ink, -1, 0)
    ycc = np.asarray(Image.fromarray(np.stack([255 - c, 255 - m, 255 - y], axis=-1)).convert("YCbCr"))
    inverted = 255 - np.concatenate([ycc, k[..., None]], axis=-1)  # Pillow inverts once more
    Image.fromarray(inverted, "CMYK").save(tmp_path / "ycck.jpg", quality=100, subsampling=0)
    data = bytearray((tmp_path / "ycck.jpg").read_bytes())
    data[data.index(b"Adobe") + 11] = 2
    (tmp_path / "ycck.jpg").write_bytes(data)
    assert_close(read(tmp_path / "ycck.jpg"), truth, levels=4)


# --- transparency


def over(colour, alpha, white):
    """`colour` and `alpha` in [0, 1] -> 0 to 255 on white or black."""
    alpha = alpha[..., None] if np.ndim(colour) == 3 else alpha
    return 255 * (colour * alpha + float(white) * (1 - alpha))


@pytest.mark.parametrize("white", [True, False])
def test_alpha_is_composited(tmp_path, white):
    Image.fromarray(np.concatenate([RGB8, ALPHA8[..., None]], axis=-1)).save(tmp_path / "rgba.png")
    assert_close(read(tmp_path / "rgba.png", white), over(RGB8 / 255, ALPHA8 / 255, white))
    Image.fromarray(np.stack([GREY8, ALPHA8], axis=-1), "LA").save(tmp_path / "la.png")
    assert_close(read(tmp_path / "la.png", white), over(GREY8 / 255, ALPHA8 / 255, white))
    deep = write_png(tmp_path / "deep.png", RGBA16, 6, 16)
    assert_close(read(deep, white), over(RGB16 / 65535, ALPHA16 / 65535, white), levels=2)  # Pillow cuts 8 bits off
    deep_grey = write_png(tmp_path / "deep_grey.png", np.stack([GREY16, ALPHA16], axis=-1), 4, 16)
    assert_close(read(deep_grey, white), over(GREY16 / 65535, ALPHA16 / 65535, white), levels=2)
    floats = write_tiff(tmp_path / "floats.tif", (RGBA16 / 65535).astype(np.float32))
    assert_close(read(floats, white), over(RGB16 / 65535, ALPHA16 / 65535, white), levels=1.5)  # 8 bits come first
    assert all(hidden_share(path) == pytest.approx(0.5, abs=0.01) for path in tmp_path.iterdir())


@pytest.mark.parametrize("white", [True, False])
def test_premultiplied_tiff(tmp_path, white):
    Image.fromarray(np.full((16, 24, 4), (100, 50, 25, 128), np.uint8)).save(tmp_path / "a.tif")
    patch_tag(tmp_path / "a.tif", 338, 1)
    truth = over(np.full((16, 24, 3), (200, 100, 50)) / 255, np.full((16, 24), 128 / 255), white)
    assert_close(read(tmp_path / "a.tif", white), truth, levels=2)


@pytest.mark.parametrize("white", [True, False])
def test_palette_with_transparency(tmp_path, white):
    indices = np.arange(16 * 24).reshape(16, 24).astype(np.uint8) % 3
    image = Image.fromarray(indices, "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]]) / 255
    for name, transparency, alpha in (("index.png", 1, [1, 0, 1]), ("table.png", b"\x00\x80\xff", [0, 128 / 255, 1])):
        image.save(tmp_path / name, transparency=transparency)
        truth = over(colours[indices], np.array(alpha)[indices], white)
        assert_close(read(tmp_path / name, white), truth)
        assert hidden_share(tmp_path / name) == pytest.approx((np.array(alpha)[indices] < 0.5).mean())


@pytest.mark.parametrize("white", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour(tmp_path, white, bits):
    for kind, samples in ((0, GREY16), (2, RGB16)):
        deep = samples >> (16 - bits)
        key = np.atleast_1d(deep[3, 5])
        path = write_png(tmp_path / f"{kind}.png", deep, kind, bits, transparent=key)
        hidden = (np.atleast_3d(deep) == key).all(-1)
        assert hidden.any() and not hidden.all() and hidden_share(path) == pytest.approx(hidden.mean())
        assert_close(read(path, white), np.where(hidden[..., None], 255 * white, np.atleast_3d(samples / 257)))


def test_an_opaque_alpha_channel_is_not_transparent(tmp_path):
    Image.fromarray(RGB8).convert("RGBA").save(tmp_path / "a.png")
    assert hidden_share(tmp_path / "a.png") == 0


# --- orientation


def stored_as(upright, turn):
    """The pixels that EXIF orientation `turn` makes `upright`, by where row 0 and column 0 of them belong."""
    return {
        1: upright,  # row 0 is the top, column 0 the left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[turn]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "lzw.tif", "jpg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn, suffix):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255, 60, 60  # each corner a colour of its own, in whole blocks of a JPEG
    upright[:16, 24:] = 60, 255, 60
    upright[16:, :24] = 60, 60, 255
    stored = np.ascontiguousarray(stored_as(upright, turn))
    exif = Image.Exif()
    exif[274] = turn
    options = {"jpg": {"quality": 95, "subsampling": 0}, "lzw.tif": {"compression": "tiff_lzw"}}
    options = options.get(suffix, {"lossless": True})
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    levels = 8 if suffix == "jpg" else 0
    assert orientation(path) == turn and stored_size(path) == stored.shape[1::-1]
    assert_close(read_picture(path, white=True, upright=False), stored, levels)
    assert_close(read_picture(path, white=True, upright=True), upright, levels)


def test_a_damaged_orientation_is_none(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "damaged.png", exif=b"Exif\0\0nothing of the kind")
    exif = Image.Exif()
    exif[274] = 9
    Image.fromarray(RGB8).save(tmp_path / "nine.png", exif=exif)
    for path in tmp_path.iterdir():
        assert orientation(path) == 1
        np.testing.assert_array_equal(read(path, upright=True), RGB8)


# --- what cannot be read


def refused(path):
    """The one line that all readers of `path` end in."""
    with pytest.raises(UserError) as caught:
        read_picture(path, white=True, upright=True)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("content", [b"", b"no picture", b"II*\0", b"II*\0\x08\0\0\0\1\0", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_pictures(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "cannot be read as an image" in refused(path) and "save it again as an 8-bit PNG or JPEG" in refused(path)
    with pytest.raises(UserError, match="cannot be read as an image"):
        stored_size(path)
    assert orientation(path) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_cut_off_files(tmp_path, name):
    Image.fromarray(RGB8).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    assert "cannot be read" in refused(tmp_path / name)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_pngs_with_a_damaged_byte(tmp_path, at):
    Image.fromarray(RGB8).save(tmp_path / "a.png", compress_level=0)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[int(at * len(data))] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    assert "cannot be read" in refused(tmp_path / "a.png")


def test_missing_file(tmp_path):
    assert "cannot be read as an image (" in refused(tmp_path / "none.png")


def test_decompression_bombs_are_refused_by_their_headers(tmp_path, monkeypatch):
    Image.fromarray(RGB8).save(tmp_path / "a.png")
    write_tiff(tmp_path / "a.tif", RGB16 / 65535)  # not Pillow's to open
    monkeypatch.setattr(untrusted, "MOST_PIXELS", 16 * 24 - 1)
    decoded = lambda *args: pytest.fail("decoded before its size was looked at")  # noqa: E731
    monkeypatch.setattr(cv2, "imdecode", decoded)
    monkeypatch.setattr(Image.Image, "convert", decoded)
    for path in tmp_path.iterdir():
        assert "megapixels" in refused(path)
        with pytest.raises(UserError, match="megapixels"):
            stored_size(path)
    monkeypatch.undo()
    monkeypatch.setattr(untrusted, "MOST_PIXELS", 16 * 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(read(tmp_path / "a.tif"), RGB16 / 257)
