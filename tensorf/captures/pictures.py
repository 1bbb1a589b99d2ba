"""One picture file -> 8-bit RGB as it is meant: the first step of captures, and of editing an image.

Grey, palette, CMYK and 1-bit files, 16-bit and float samples, transparency and EXIF orientation are all dealt with
here. Embedded colour profiles are not applied: COLMAP and other trainers do not apply them either.

Pictures come from anywhere: `open_picture` refuses too many pixels before they are decoded, and all but a few formats.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from tensorf.captures.heic import INSTALL, is_heic, open_heic
from tensorf.errors import UserError, reason
from tensorf.untrusted import check_pixels

# What Pillow raises on files that are damaged, cut off or no pictures.
_DAMAGE = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, struct.error)
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 274, 256, 257, 258, 262  # tags of TIFF and EXIF
_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # every other orientation undoes itself


class UnreadablePicture(UserError):
    """A file that is damaged, cut off or no picture."""


def open_picture(path: Path) -> Image.Image:
    """Pillow's image with its header read, and its pixels not yet.

    UserError for more than `MOST_PIXELS`; UnidentifiedImageError for other formats than PNG, JPEG, TIFF, WebP, BMP and
    (with pillow-heif) HEIC, whatever the file's suffix says. Pillow hands some of the others to programs, as PostScript
    to Ghostscript.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half of what Pillow refuses
            image = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        if not is_heic(path):
            raise
        image = open_heic(path)
    except Image.DecompressionBombError as error:  # its message has the count
        check_pixels(path, int(re.search(r"\d+", str(error))[0]))
        raise
    try:
        check_pixels(path, image.width * image.height)
    except UserError:
        image.close()
        raise
    return image


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) of the pixels as stored, from the file's header alone. UserError where it is no picture."""
    with _reading(path):
        try:
            with open_picture(path) as image:
                return _stored_size(image)
        except UnidentifiedImageError:
            header = _tiff_header(path)
            return header[_WIDTH], header[_HEIGHT]


def orientation(path: Path) -> int:
    """EXIF orientation, 1 (as stored) to 8; 1 too where there is none or it cannot be read. 5 to 8 swap the sides."""
    try:
        with open_picture(path) as image:
            return _orientation(image)
    except (*_DAMAGE, UserError):
        return 1


def focal_length(path: Path) -> tuple[str, float, float, float]:
    """EXIF data: (camera model, focal length of a full-frame camera with this view in mm, the lens's own in mm, the
    ratio of the digital zoom, 1 without). "" and 0 stand for what is not told, or cannot be read.
    """
    try:
        with open_picture(path) as image:
            tags = image.getexif()
            detail = tags.get_ifd(ExifTags.IFD.Exif)
    except (*_DAMAGE, UserError):
        return "", 0.0, 0.0, 1.0
    full_frame = _number(detail, ExifTags.Base.FocalLengthIn35mmFilm)
    own = _number(detail, ExifTags.Base.FocalLength)
    zoom = _number(detail, ExifTags.Base.DigitalZoomRatio) or 1.0  # 0 means "not used"
    return str(tags.get(ExifTags.Base.Model, "")), full_frame, own, zoom


def _number(tags, tag: int) -> float:
    """A positive number below 10,000, else 0: a rational may be 0/0."""
    try:
        value = float(tags.get(tag) or 0.0)
    except (*_DAMAGE, ArithmeticError):
        return 0.0
    return value if 0 < value < 10_000 else 0.0


def hidden_share(path: Path) -> float:
    """The share of the picture's pixels that are more transparent than not. UserError where the file cannot be read."""
    with _reading(path):
        image, _ = _decoded(path, reduction=8)  # JPEGs have no transparency
    return float((np.asarray(image.getchannel("A")) < 128).mean()) if image.mode == "RGBA" else 0.0


def read_picture(path: Path, *, white: bool, upright: bool, reduction: int = 1) -> np.ndarray:
    """(height, width, 3) uint8 RGB. Raises UserError where the file cannot be read.

    white: transparency is composited on white, else on black. upright: apply the EXIF orientation, else keep the
    pixels as stored. 16-bit samples become value / 257; floats have to lie in [0, 1]. reduction: a JPEG may come out
    smaller, by 2, 4 or 8 but no more than this, which takes less time than decoding all of it.
    """
    with _reading(path):
        image, turn = _decoded(path, reduction)
    if upright:
        image = _turned(image, turn)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255) if white else (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image).convert("RGB")
    return np.asarray(image)


def read_mask(path: Path, *, upright: bool) -> np.ndarray:
    """(height, width) uint8, 255 where a mask is white. Raises UserError where the file cannot be read.

    Many tools write masks that are not black and white: 0 and 1, numbers of objects, or a palette's colours. So in a
    picture with colours, or with nothing brighter than a middle grey, all that is not black counts. A JPEG's noise
    does not: it is read by its brightness. upright: as in `read_picture`.
    """
    pixels = read_picture(path, white=False, upright=upright)
    brightest, grey = pixels.max(-1), pixels.mean(-1)
    labels = grey.max() <= 127.5 or (brightest != pixels.min(-1)).any()
    if labels and not _is_lossy(path):
        return np.where(brightest > 0, np.uint8(255), np.uint8(0))
    return grey.astype(np.uint8)


def hides_all(mask: Path) -> str:
    """What to tell of a mask without any white."""
    return f"{mask} hides all of its photo: white is what counts; invert it, or leave the photo out"


def _is_lossy(path: Path) -> bool:
    with _reading(path):
        try:
            with open_picture(path) as image:
                return image.format in ("JPEG", "WEBP")
        except UnidentifiedImageError:  # a TIFF that OpenCV reads
            return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what decoders raise into one line that names the file and the remedy."""
    try:
        yield
    except _DAMAGE as error:
        why = _kind_of(path) if isinstance(error, UnidentifiedImageError) else reason(error)
        why = f" ({why})" if why else ""
        raise UnreadablePicture(
            f"{path} cannot be read as an image{why}; save it again as an 8-bit PNG or JPEG, or remove it"
        ) from error


def _kind_of(path: Path) -> str:
    """What a file is that is no picture of the kinds that are read, if its first bytes tell; "" otherwise."""
    with path.open("rb") as file:
        head = file.read(64)
    if is_heic(path):
        return f"it is a HEIC picture, which is read after {INSTALL}"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "it is an AVIF picture, whatever its name says"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: get the picture itself with git lfs pull"
    return "" if head else "it is empty"


def _decoded(path: Path, reduction: int = 1) -> tuple[Image.Image, int]:
    """The picture as stored, mode RGB or (with transparency) RGBA, and its EXIF orientation.

    reduction: as in `read_picture`.
    """
    try:
        image = open_picture(path)
    except UnidentifiedImageError:
        return _decoded_by_opencv(path), 1
    with image:
        # Sizes that the factor does not divide would be rounded up, and the picture would not fill them.
        factors = [f for f in (2, 4, 8) if f <= reduction and image.width % f == image.height % f == 0]
        if factors:
            image.draft(None, (image.width // factors[-1], image.height // factors[-1]))
        bits = _sample_bits(image)
        # Pillow turns TIFFs as it loads them; of PNGs the EXIF may come after the pixels.
        before = _orientation(image) if image.format == "TIFF" else None
        image.load()
        turn = _orientation(image)
        if before not in (None, turn):  # back to how it is stored
            image, turn = _turned(image, _INVERSE.get(before, before)), before
        return _rgb(image, bits), turn


def _rgb(image: Image.Image, bits: int) -> Image.Image:
    """`image`, any mode of Pillow's, whose file has `bits` a sample, as RGB or RGBA of 8 bits."""
    if image.mode == "F":
        return _eight_bit(_unit(np.asarray(image)))
    if image.mode.startswith("I"):
        return _deep_grey(image, bits)
    key = image.info.get("transparency")
    if key is not None and image.mode in ("L", "RGB"):
        image.info["transparency"] = _eight_bit_key(key, bits)
    has_alpha = image.mode in ("RGBA", "LA", "PA") or key is not None
    return image.convert("RGBA" if has_alpha else "RGB")


def _deep_grey(image: Image.Image, bits: int) -> Image.Image:
    """Grey of more than 8 bits; Pillow's own conversion cuts at 255, and all but the darkest pixels become white."""
    grey, top = np.asarray(image).astype(np.int32), 2**bits - 1
    if image.mode == "I":  # 32 bits; older Pillow opens 16-bit PNGs like this
        top = 65535
    if grey.min() < 0 or grey.max() > top:
        raise ValueError(f"grey values of {grey.min()} to {grey.max()}, outside 0 to {top}")
    key = image.info.get("transparency")
    shade = _shade(image, grey.astype(np.float32) / top)
    if key is None:
        return _eight_bit(shade)
    return _eight_bit(np.stack([shade, shade, shade, grey != key], axis=-1))


def _shade(image: Image.Image, grey: np.ndarray) -> np.ndarray:
    """`grey` in [0, 1] with 0 as black; a TIFF may say that 0 is white."""
    zero_is_white = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
    return 1 - grey if zero_is_white else grey


def _unit(samples: np.ndarray) -> np.ndarray:
    """`samples` themselves. ValueError unless all lie in [0, 1]."""
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f"float samples of {low:g} to {high:g}, outside 0 to 1")
    return samples


def _eight_bit(samples: np.ndarray) -> Image.Image:
    """(h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA in [0, 1] -> RGB or RGBA."""
    image = Image.fromarray(np.rint(samples * 255.0).astype(np.uint8))
    return image if image.mode == "RGBA" else image.convert("RGB")


def _eight_bit_key(key: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """The colour that a PNG calls transparent, from the file's `bits` a sample to the 8 that Pillow has decoded.

    Of 16 bits Pillow keeps the upper 8, so colours that agree in those become transparent with it.
    """
    if isinstance(key, tuple):
        return tuple(_eight_bit_key(k, bits) for k in key)
    return key >> (bits - 8) if bits > 8 else key * 255 // (2**bits - 1)


def _sample_bits(image: Image.Image) -> int:
    """Bits a sample in the file; has to be asked before the image is loaded."""
    if image.format == "TIFF":
        return int(np.max(image.tag_v2.get(_BITS, 8)))
    if image.format == "PNG" and image.tile:
        mode = image.tile[0][3]  # such as "RGB;16B" or "L;2"
        mode = mode if isinstance(mode, str) else mode[0]
        return int(mode.partition(";")[2].rstrip("B") or 8)
    return 16 if image.mode.startswith("I") else 8


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as stored; of TIFFs Pillow's own are those of the picture turned upright."""
    if image.format == "TIFF":
        return image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    return image.size


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:  # damaged EXIF; the pixels may be sound
        return 1
    return value if value in _TURNS else 1


def _turned(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


# --- TIFFs that Pillow does not open, such as doubles and RGB floats: OpenCV reads them


def _tiff_header(path: Path) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF. UnidentifiedImageError where the file is none."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*") or len(head) < 8:
            raise UnidentifiedImageError(path)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
    width, height = tags[_WIDTH], tags[_HEIGHT]
    check_pixels(path, width * height)
    return tags


def _decoded_by_opencv(path: Path) -> Image.Image:
    """A TIFF that Pillow cannot open, RGB or RGBA."""
    tags = _tiff_header(path)
    if tags.get(_ORIENTATION, 1) != 1:
        raise ValueError("a TIFF of this kind is read only where it is stored upright")
    try:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError("its kind of TIFF is not known") from error
    if pixels is None or pixels.shape[:2] != (tags[_HEIGHT], tags[_WIDTH]):
        raise ValueError("its kind of TIFF is not known")
    if pixels.dtype in (np.uint8, np.uint16):
        samples = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    elif pixels.dtype.kind == "f":
        samples = _unit(pixels)
    else:
        raise ValueError(f"its samples are {pixels.dtype}")
    if samples.ndim == 3 and samples.shape[2] >= 3:
        samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]  # OpenCV's BGR
    return _eight_bit(np.ascontiguousarray(samples))
