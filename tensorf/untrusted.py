"""Files that somebody else has made: sizes are checked before anything is read, places before anything is opened.

SECURITY.md says what is trusted and what is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tensorf.errors import UserError

MOST_PIXELS = 2**27  # of a picture or a video's frame: 134 megapixels, half a gigabyte once it is decoded
_MOST_JSON = 2**26  # bytes; a transforms.json of 10,000 photos has 10 MB, and parsed it takes up to twenty times that


def read_bytes(path: Path, most: int) -> bytes:
    """The file's content. ValueError if it has more than `most` bytes, of which no more are read; OSError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most / 2**20:g} MiB")
    return data


def load_json(path: Path) -> object:
    """What a JSON file holds. ValueError for what is no JSON, too large or nested too deep; OSError.

    A byte order mark is skipped. Whole numbers that no float can hold become infinity, as 1e999 does.
    """
    text = read_bytes(path, _MOST_JSON).decode("utf-8-sig")
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {sys.getrecursionlimit()} deep") from None


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)


def require_inside(paths: Iterable[Path], root: Path) -> None:
    """UserError for the first of `paths` that lies outside of the folder `root`, with ../ and links followed.

    `root` itself may be a link: it is the folder that the user named.
    """
    top = root.resolve()
    for path in paths:
        place = path.resolve()
        if not place.is_relative_to(top):
            raise UserError(
                f"{path} leads out of {root}, to {place}: copy it into that folder, or, if you trust whoever made the "
                "folder, allow it with outside=true"
            )


def check_pixels(path: Path, pixels: int) -> None:
    """UserError for a picture or a video whose frames have so many pixels that decoding them could fill the memory."""
    if pixels > MOST_PIXELS:
        raise UserError(
            f"{path} has {pixels / 1e6:.0f} megapixels, and at most {MOST_PIXELS / 1e6:.0f} are read: make it smaller "
            "or remove it"
        )
