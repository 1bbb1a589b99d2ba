"""The folder `masks/` beside the photos: pictures that are white where a photo counts, and black where it does not.

COLMAP's convention: the mask of `a.jpg` is `masks/a.jpg.png`. `masks/a.png`, or any other picture of that stem, is read
too. `transforms.json` names its masks itself (`transforms.py`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tensorf.captures.images import find_by_stem, find_file
from tensorf.captures.views import Listing

log = logging.getLogger("tensorf")

FOLDER = "masks"


def masks_of(root: Path, names: list[str], tell: bool = True) -> list[Path | None]:
    """The mask in `root/masks` of each photo, by its name in the folder of photos; None where it has none.

    tell: say in one line how many photos have one, and warn if none of the pictures in `masks` is
    of a photo.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        return [None] * len(names)
    found = [_mask_of(folder, name) for name in names]
    count = len(found) - found.count(None)
    if not tell:
        return found
    if count:
        log.info("%s: %d of %d photos have a mask: what is black there does not count", folder, count, len(names))
    elif names and any(folder.iterdir()):
        log.warning(
            "%s is not used: none of it has the name of a photo, such as %s.png for %s", folder, names[0], names[0]
        )
    return found


def _mask_of(folder: Path, name: str) -> Path | None:
    return find_file(folder, f"{name}.png") or find_by_stem((folder / name).parent, Path(name).stem)


def with_masks(listing: Listing, root: Path) -> Listing:
    """The listing with each view's mask in `root/masks`."""
    masks = masks_of(root, [view.name for view in listing.views])
    return replace(listing, views=[replace(v, mask=mask) for v, mask in zip(listing.views, masks, strict=True)])
