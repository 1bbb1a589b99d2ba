"""HEIC pictures, the photos of iPhones. They take pillow-heif, which is optional and imported only here."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

HEIC_SUFFIXES = (".heic", ".heif")
INSTALL = "pip install pillow-heif"
_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"hevc")


def is_heic(path: Path) -> bool:
    """Whether the file's first bytes are those of a HEIC picture."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _BRANDS


def heic_is_read() -> bool:
    """Whether pillow-heif is installed."""
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return False
    return True


def open_heic(path: Path) -> Image.Image:
    """Pillow's image with its header read, and its pixels not yet. UnidentifiedImageError without pillow-heif.

    The picture comes upright, and its EXIF data say so.
    """
    if not heic_is_read():
        raise UnidentifiedImageError(path)
    from pillow_heif import HeifImageFile

    return HeifImageFile(path)
