"""LLFF captures: `poses_bounds.npy` beside a folder of photos -> Listing.

Each of the (n, 17) numbers' rows is a 3x5 matrix [R | t | (height, width, focal)], row by row, then the nearest and
farthest depth. Columns of R are the camera's (down, right, back) axes.

Rows have no names. The LLFF tool writes them in the order of the photos' names as text, by which image10 comes before
image2; captures made in another way follow the numbers. Where the two differ, a COLMAP model beside has the names, and
if there is none, the photos decide: their matches fit the poses in one order only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tokenize import TokenError

import numpy as np

from tensorf.captures.colmap import find_models, model_poses
from tensorf.captures.images import choose_image_folder, image_folders, is_photo
from tensorf.captures.masks import with_masks
from tensorf.captures.matching import fit
from tensorf.captures.views import MINIMUM_VIEWS, Lens, Listing, View, checked_lens, checked_pose, natural_key
from tensorf.errors import UserError
from tensorf.untrusted import require_inside

log = logging.getLogger("tensorf")

FILE_NAME = "poses_bounds.npy"
_SAME_TURN = 2.0  # degrees
_MINIMUM_MATCHES = 60


def is_llff(root: Path) -> bool:
    return (root / FILE_NAME).is_file()


def read_llff(root: Path, width: int | None, order: str = "auto", check: bool = True, outside: bool = False) -> Listing:
    """Lists the views of an LLFF folder, taking the photos from the folder that suits `width` (pixels) best.

    order: of the photos, "text", "number" or "auto" (see the module's docstring; without `check` photos are not
    matched, and "auto" falls back on "text"). outside: photos may be links that lead out of `root`. The format has no
    principal point: it is the image's centre. Masks are those in `masks` (`masks.py`). Raises UserError for an
    unreadable or malformed file, where there are not as many photos as rows, and for unusable poses, intrinsics or
    depths.
    """
    source = root / FILE_NAME
    rows = _load_rows(source)
    matrices, depths = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    folder, photos = _photos(root, width, matrices)
    if not outside:
        require_inside(photos, root)  # to find their order they may be matched
    if len(photos) != len(rows):
        raise UserError(
            f"{source} has {len(rows)} rows but {folder} holds {len(photos)} photos; "
            "remove photos without a pose, or put the missing ones back"
        )
    if len(rows) < MINIMUM_VIEWS:
        raise UserError(f"{source} has {len(rows)} views; at least {MINIMUM_VIEWS} are needed")
    poses, lenses = [], []
    for i, matrix in enumerate(matrices):
        poses.append(checked_pose(opencv_from_llff(matrix[:, :4]), source, f"row {i}"))
        height, full_width, focal = (float(x) for x in matrix[:, 4])
        lens = Lens(focal, focal, full_width / 2, height / 2, full_width, height)
        lenses.append(checked_lens(lens, source, f"row {i}"))
    bounds = _checked_depths(depths, source)
    numbered = sorted(photos, key=lambda p: natural_key(p.name))
    orders = {"text": _views(photos, poses, lenses), "number": _views(numbered, poses, lenses)}
    if order == "auto":
        order = "text" if photos == numbered else _choose_order(root, orders, check)
    return with_masks(Listing(source, sorted(orders[order], key=lambda view: natural_key(view.name)), bounds), root)


def _views(photos: list[Path], poses: list[np.ndarray], lenses: list[Lens]) -> list[View]:
    return [View(photo.name, photo, pose, lens) for photo, pose, lens in zip(photos, poses, lenses, strict=True)]


def _choose_order(root: Path, orders: dict[str, list[View]], check: bool) -> str:
    """The key of `orders` whose photos belong to the poses, told in one line."""
    words = {"text": "as text (1, 10, 2)", "number": "by their numbers (1, 2, 10)"}
    turns = {name: _turns_from_model(root, views) for name, views in orders.items()}
    if all(turn is not None for turn in turns.values()):
        best = min(turns, key=turns.__getitem__)
        if turns[best] < _SAME_TURN:
            log.info("%s: photos sorted %s, as the names in the COLMAP model beside say", root, words[best])
            return best
    if not check:
        log.info("%s: photos sorted %s, as the LLFF tool does; they were not compared", root, words["text"])
        return "text"
    fits = {name: fit(views) for name, views in orders.items()}
    # A wrong order leaves few matches, which may fit by chance: without enough of them it has no say.
    residuals = {name: f.residual for name, f in fits.items() if f.matches >= _MINIMUM_MATCHES}
    if not residuals:
        log.warning(
            "%s: photos sorted %s, as the LLFF tool does; too few of their features match to tell whether the poses' "
            "rows follow that or the numbers", root, words["text"],
        )  # fmt: skip
        return "text"
    best = min(residuals, key=residuals.__getitem__)
    told = ", ".join(f"{value:.1f} sorted {words[name]}" for name, value in residuals.items())
    log.info("%s: photos sorted %s; their matches are off by (pixels, median) %s", root, words[best], told)
    return best


def _turns_from_model(root: Path, views: list[View]) -> float | None:
    """Median angle in degrees between the turns from view to view of the poses, and of a COLMAP model of these names.

    None where there is no model or it lacks one of the names. A turn does not depend on the world's axes.
    """
    models = find_models(root)
    if not models:
        return None
    poses = {Path(name).stem: pose for name, pose in model_poses(models).items()}
    stems = [view.path.stem for view in views]
    if not set(stems) <= poses.keys():
        return None
    ours = np.stack([view.pose[:, :3] for view in views])
    theirs = np.stack([poses[stem][:, :3] for stem in stems])
    turns = (np.swapaxes(r[:-1], 1, 2) @ r[1:] for r in (ours, theirs))
    difference = np.einsum("nij,nij->n", *turns)  # the trace of one turn's inverse and the other
    return float(np.degrees(np.median(np.arccos(((difference - 1) / 2).clip(-1, 1)))))


def opencv_from_llff(pose: np.ndarray) -> np.ndarray:
    """(..., 3, 4) from columns (down, right, back, t) to (right, down, forward, t)."""
    down, right, back, position = np.moveaxis(pose, -1, 0)
    return np.stack([right, down, -back, position], axis=-1)


def _photos(root: Path, width: int | None, matrices: np.ndarray) -> tuple[Path, list[Path]]:
    """(the folder of photos that suits `width` best, its photos sorted by name).

    A folder with a photo for each of `matrices` (n, 3, 5) goes before the others. UserError where there are none.
    """
    photos = {f: sorted((p for p in f.iterdir() if is_photo(p)), key=lambda p: p.name) for f in image_folders(root)}
    photos = {folder: found for folder, found in photos.items() if found}
    if not photos:
        raise UserError(f"{root} has no photos: looked for a folder images, images_2, images_4 or images_8 in it")
    complete = {folder: found for folder, found in photos.items() if len(found) == len(matrices)}
    folder = choose_image_folder(complete or photos, width, _calibrated_size(matrices))
    return folder, photos[folder]


def _calibrated_size(matrices: np.ndarray) -> tuple[float, float] | None:
    """(width, height) that the first of `matrices` (n, 3, 5) is for."""
    return (float(matrices[0, 1, 4]), float(matrices[0, 0, 4])) if len(matrices) else None


def _load_rows(source: Path) -> np.ndarray:
    """(n, 17) float64."""
    try:
        with np.errstate(over="ignore"):  # mapped: a header may claim more than there is
            rows = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise UserError(
            f"{source} is not a plain NumPy array of numbers; write it again (LLFF's imgs2poses)"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind not in "fiu":
        found = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else "an archive"
        raise UserError(f"{source} must hold numbers of shape (views, 17), not {found}; write it again (imgs2poses)")
    return rows.astype(np.float64)


def _checked_depths(depths: np.ndarray, source: Path) -> tuple[float, float]:
    """(near, far) over all rows of `depths` (n, 2)."""
    bad = ~(np.isfinite(depths).all(1) & (depths[:, 0] > 0) & (depths[:, 0] < depths[:, 1]))
    if bad.any():
        row = int(bad.argmax())
        near, far = depths[row]
        raise UserError(
            f"{source}: row {row} has depth bounds {near:g} to {far:g}; they must satisfy 0 < near < far, "
            "so remove the view or estimate the bounds again"
        )
    return float(depths[:, 0].min()), float(depths[:, 1].max())


def nearest_depth(root: Path) -> float:
    """The nearest depth of all views of the LLFF capture in `root`, in its own units. UserError as `read_llff`."""
    source = root / FILE_NAME
    return _checked_depths(_load_rows(source)[:, 15:], source)[0]
