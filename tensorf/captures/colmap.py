"""COLMAP models -> Listing. Poses become camera-to-world; COLMAP's camera axes are OpenCV's already.

A model is three files, `cameras`, `images` and `points3D`, each .bin or .txt (`colmap_files.py` parses them).
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from tensorf.captures.colmap_files import Model, Registered, count_images, load_model
from tensorf.captures.images import choose_image_folder, find_file, image_folders
from tensorf.captures.masks import with_masks
from tensorf.captures.views import Lens, Listing, View, checked_lens, checked_pose, natural_key, report_missing
from tensorf.errors import UserError
from tensorf.untrusted import require_inside

log = logging.getLogger("tensorf")

_DEPTH_PERCENTILES = (0.5, 99.5)  # leaves out stray points
_MINIMUM_POINTS = 16  # observed depths, below which percentiles mean nothing

# model -> (fx, fy, cx, cy, distortion...) as indices into COLMAP's parameters. The distortion is in OpenCV's order:
# k1, k2, p1, p2, k3, k4, k5, k6, and k1, k2, k3, k4 of fisheyes; the rest is zero.
_LAYOUTS = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2),
    "PINHOLE": (0, 1, 2, 3),
    "SIMPLE_RADIAL": (0, 0, 1, 2, 3),
    "RADIAL": (0, 0, 1, 2, 3, 4),
    "OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
    "FULL_OPENCV": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    "SIMPLE_FISHEYE": (0, 0, 1, 2),
    "FISHEYE": (0, 1, 2, 3),
    "SIMPLE_RADIAL_FISHEYE": (0, 0, 1, 2, 3),
    "RADIAL_FISHEYE": (0, 0, 1, 2, 3, 4),
    "OPENCV_FISHEYE": (0, 1, 2, 3, 4, 5, 6, 7),
}


def find_models(root: Path) -> list[Path]:
    """The folders of `root` that hold a COLMAP model, in natural order.

    They are `sparse/0`, `sparse`, `colmap/sparse/0` and `colmap/sparse`, and where COLMAP was told to write into the
    capture itself `0` and `root`. In place of 0 it may be any folder in `sparse`, and any number in `root`.
    """
    folders = []
    for sparse in (root / "sparse", root / "colmap" / "sparse", root):
        if sparse.is_dir():
            inner = (p for p in sparse.iterdir() if p.is_dir() and (sparse != root or p.name.isdecimal()))
            folders += sorted(inner, key=lambda p: natural_key(p.name))
            folders.append(sparse)
    return [f for f in folders if any((f / f"cameras{s}").is_file() for s in (".bin", ".txt"))]


def read_colmap(root: Path, width: int | None, outside: bool = False) -> Listing:
    """Lists the registered views of the largest model under `root`, sorted naturally by name.

    Photos come from an `images*` folder, else from `root`: of the folders with most of the model's photos, the one that
    suits `width` (pixels) best. Masks are those in `masks` (`masks.py`). Near and far are the 0.5 and 99.5 percentiles
    of the depths at which views observe points. Photos that do not exist are left out with one warning. outside: photos
    may lie outside of `root`. Raises UserError for unreadable files, camera models that cannot be undone and fewer than
    3 photos.
    """
    folder = _largest(find_models(root))
    model = load_model(folder)
    photos = _photos(root, width, model, outside)
    views, missing, depths = [], [], []
    for image in sorted(model.images, key=lambda image: natural_key(image.name)):
        pose = _pose(image, model.images_file)
        depths.append(_observed_depths(image, pose, model))
        path = find_file(photos, image.name) or find_file(root, image.name)
        if path is None:
            missing.append(image.name)
        else:
            views.append(View(image.name, path, pose, _lens(image, model)))
    report_missing(model.images_file, missing, len(model.images))
    points = model.points if len(model.points) >= _MINIMUM_POINTS else None
    return with_masks(Listing(model.images_file, views, _depth_range(np.concatenate(depths)), points), root)


def model_poses(folders: list[Path]) -> dict[str, np.ndarray]:
    """Name -> (3, 4) camera-to-world of all images in the largest of the models in `folders`."""
    model = load_model(_largest(folders))
    return {image.name: _pose(image, model.images_file) for image in model.images}


def _largest(folders: list[Path]) -> Path:
    """The model with the most registered images: COLMAP often splits a capture, and model 0 need not be the best."""
    if len(folders) == 1:
        return folders[0]
    counts = {folder: count_images(folder) for folder in folders}
    best = max(folders, key=counts.__getitem__)
    listed = ", ".join(f"{folder.name}: {count}" for folder, count in counts.items())
    log.info("%s is taken out of %d COLMAP models, it registers the most images (%s)", best, len(folders), listed)
    return best


def _photos(root: Path, width: int | None, model: Model, outside: bool) -> Path:
    """The folder of the model's photos: `root` where no `images*` folder has any.

    A folder with fewer of the photos counts as incomplete, and is not used.
    """
    found = {f: [path for i in model.images if (path := find_file(f, i.name))] for f in image_folders(root)}
    if not outside:
        require_inside((path for paths in found.values() for path in paths), root)  # before they are opened
    most = max(map(len, found.values()), default=0)
    if not most:
        return root
    fullest = {folder: paths for folder, paths in found.items() if len(paths) == most}
    return choose_image_folder(fullest, width, _calibrated_size(model))


def _calibrated_size(model: Model) -> tuple[float, float] | None:
    """(width, height) of the camera that took most of the photos."""
    (number, _), *_ = Counter(image.camera_id for image in model.images).most_common(1)
    camera = model.cameras.get(number)
    return None if camera is None else (camera.width, camera.height)


def _pose(image: Registered, source: Path) -> np.ndarray:
    """(3, 4) camera-to-world from COLMAP's world-to-camera quaternion (w, x, y, z) and translation."""
    if image.quaternion.shape != (4,) or image.translation.shape != (3,):
        raise UserError(f"{source}: the pose of {image.name} is cut off; export the COLMAP model again")
    w, x, y, z = image.quaternion / max(np.linalg.norm(image.quaternion), 1e-12)
    camera_from_world = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    rotation = camera_from_world.T
    position = -rotation @ image.translation
    return checked_pose(np.concatenate([rotation, position[:, None]], axis=1), source, image.name)


def _lens(image: Registered, model: Model) -> Lens:
    source = model.cameras_file
    if image.camera_id not in model.cameras:
        raise UserError(f"{source} lacks camera {image.camera_id} of {image.name}; export the whole model again")
    camera = model.cameras[image.camera_id]
    if camera.model not in _LAYOUTS:
        remedy = "run colmap image_undistorter"
        if camera.model == "EQUIRECTANGULAR":  # which that cannot undistort
            remedy = "cut perspective photos out of the panoramas and estimate their poses"
        raise UserError(
            f"{source}: camera model {camera.model} is not read; {remedy}, or use one of {', '.join(_LAYOUTS)}"
        )
    indices = _LAYOUTS[camera.model]
    if len(camera.parameters) <= max(indices):
        raise UserError(f"{source}: camera {image.camera_id} has too few parameters; export the model again")
    fx, fy, cx, cy, *distortion = (camera.parameters[i] for i in indices)
    fisheye = camera.model.endswith("FISHEYE")
    if fisheye or distortion:
        distortion += [0.0] * ((4 if fisheye else 5) - len(distortion))  # as many as OpenCV takes at least
    lens = Lens(fx, fy, cx, cy, camera.width, camera.height, tuple(distortion), fisheye)
    return checked_lens(lens, source, image.name)


def _observed_depths(image: Registered, pose: np.ndarray, model: Model) -> np.ndarray:
    """(observations,) depths along the optical axis of the points that `image` sees, positive ones only."""
    if len(model.point_ids) == 0:
        return np.empty(0)
    at = np.searchsorted(model.point_ids, image.point_ids).clip(max=len(model.point_ids) - 1)
    points = model.points[at[model.point_ids[at] == image.point_ids]]
    depths = (points - pose[:, 3]) @ pose[:, 2]
    return depths[depths > 0]


def _depth_range(depths: np.ndarray) -> tuple[float, float] | None:
    if len(depths) < _MINIMUM_POINTS:
        return None
    near, far = np.percentile(depths, _DEPTH_PERCENTILES)
    return (float(near), float(far)) if near < far else None
