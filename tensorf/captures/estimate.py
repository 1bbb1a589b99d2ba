"""Photos or a video without poses -> a folder that `load_capture` reads: `images/` and a COLMAP model in `sparse/0`.

Photos that have masks get them in `masks/`; no feature is taken from what they hide.

SIFT features, matches of pairs and incremental mapping are pycolmap's, which is optional and imported only here. Each
stage runs in a thread of its own, so that Ctrl-C is heard at once and progress can be counted in COLMAP's database.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tensorf.captures.apart import estimate_apart, partial_folder
from tensorf.captures.frames import choose_frames
from tensorf.captures.masks import FOLDER
from tensorf.captures.photos import by_lens, copy_photos
from tensorf.captures.sources import Source, folder_of, tell, write_record
from tensorf.captures.views import MINIMUM_VIEWS
from tensorf.errors import UserError, reason
from tensorf.progress import progress

log = logging.getLogger("tensorf")

_FEATURE_SIZE = 800  # pixels, longest side that features are looked for at
_FEATURES = 4096  # at most, of an image
_EXHAUSTIVE = 100  # photos, up to which all pairs are matched
_NEIGHBOURS = 10  # after each image of a sequence that it is matched with
_LEAST_SHARE = 0.2  # of the images that have to be registered
_WARNING_SHARE = 0.5
_LEAST_BASELINE = 0.01  # largest distance between cameras over the median depth of points; less is turning on the spot
_SEED = 0


def require_pycolmap(source: Source, install: str = "pip install pycolmap") -> ModuleType:
    """pycolmap. Raises UserError that names `source` and says how to install it, in the words of `install`."""
    try:
        import pycolmap
    except ImportError as error:
        why = "which is not installed" if isinstance(error, ModuleNotFoundError) else f"which fails ({reason(error)})"
        raise UserError(f"{source.path} has no poses, and to estimate them takes pycolmap, {why}: {install}") from error
    return pycolmap


def estimate_capture(source: Source, folder: Path, threads: int | None = None, show_progress: bool = False) -> None:
    """`estimate_here`, on macOS in a process of its own (`apart.py`)."""
    do = estimate_apart if sys.platform == "darwin" else estimate_here
    do(source, folder, threads, show_progress)


def estimate_here(source: Source, folder: Path, threads: int | None = None, show_progress: bool = False) -> None:
    """Estimates the poses of `source` into `folder`, which must not exist yet and appears only once it is complete.

    threads: at most, None for all cores. The same source gives the same poses. Images that cannot be registered are
    counted and left out. Raises UserError where pycolmap is missing, images cannot be read, or no trustworthy poses
    are found. A process that is killed leaves a hidden folder `.<name>.<process>.part`, which nobody reads.
    """
    colmap = require_pycolmap(source)
    tell(source)
    start = time.monotonic()
    partial = partial_folder(folder, os.getpid())  # another process may be at the same source
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with the same number, as in containers
    try:
        images, work, sparse = partial / "images", partial / "work", partial / "sparse" / "0"
        for made in (images, work, sparse):
            made.mkdir(parents=True)
        if source.is_video:
            names = choose_frames(source.path, source.frames, images, show_progress)
            lenses = [names]
        else:
            copies = copy_photos(list(source.photos), images, show_progress, source.masks)
            names, lenses = list(copies), by_lens(copies)
            if len(lenses) > 1:
                log.info(
                    "%s: photos are of %d lenses by their EXIF data (those without any are one group), and each lens "
                    "gets a camera", source.path, len(lenses),
                )  # fmt: skip
        if len(names) < MINIMUM_VIEWS:
            raise UserError(f"{source.path}: {len(names)} images are left; at least {MINIMUM_VIEWS} are needed")
        try:
            with _quiet(colmap):
                stages = _Reconstruction(colmap, images, work, names, lenses, threads or -1, show_progress)
                model = stages.run(source.is_video)
        except (RuntimeError, ValueError) as error:  # what C++ exceptions become
            raise UserError(f"{source.path}: pycolmap cannot estimate its poses ({reason(error)})") from error
        registered = _checked(model, source, names)
        model.write(sparse)
        shutil.rmtree(work)
        for name in set(names) - registered:
            (images / name).unlink()
            (partial / FOLDER / f"{name}.png").unlink(missing_ok=True)
        write_record(source, partial, images=len(names), registered=len(registered), pycolmap=colmap.__version__)
        _publish(partial, folder, source)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info(
        "%s: poses of %d of %d images estimated in %.0f s, kept in %s",
        source.path, len(registered), len(names), time.monotonic() - start, folder,
    )  # fmt: skip


def _publish(partial: Path, folder: Path, source: Source) -> None:
    """Gives the finished estimate its name, unless another process has put one of the same source there meanwhile."""
    try:
        os.rename(partial, folder)
    except OSError:
        if folder_of(source, folder.parent) != (folder, True):
            raise


def choose_pairs(count: int, ordered: bool) -> list[tuple[int, int]]:
    """Which of `count` images to match, as pairs (i, j) with i < j.

    All pairs of up to 100 photos. For `ordered` images (a video's), and for more photos, whose names mostly follow
    their order: the next 10, those 16, 32, 64, ... further on, and some images spread evenly over the sequence with
    all others (5 of a video's, 20 of the photos), which close loops.
    """
    if not ordered and count <= _EXHAUSTIVE:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    anchors = set(np.linspace(0, count - 1, 5 if ordered else 20).round().astype(int).tolist())
    pairs = []
    for i in range(count):
        for j in range(i + 1, count):
            apart = j - i
            power_of_two = apart >= 16 and apart & (apart - 1) == 0
            if apart <= _NEIGHBOURS or power_of_two or i in anchors or j in anchors:
                pairs.append((i, j))
    return pairs


class _Reconstruction:
    """The stages of one estimate of the images `names` in `images`. `work` takes the database and the models.

    lenses: the same names, in groups of which each gets one camera.
    """

    def __init__(
        self,
        colmap: ModuleType,
        images: Path,
        work: Path,
        names: list[str],
        lenses: list[list[str]],
        threads: int,
        show_progress: bool,
    ):
        self.colmap, self.threads, self.show_progress = colmap, threads, show_progress
        self.names, self.lenses = names, lenses
        self.images, self.work = images, work
        self.database = self.work / "database.db"
        self.counts = None  # the database as we look into it while COLMAP fills it

    def run(self, ordered: bool) -> Any:
        """The largest model, a pycolmap.Reconstruction; None where there is none. ordered: as a video's frames are."""
        # By COLMAP's own SQLite, opened before the stages: Python's copy of SQLite in the same process would take away
        # the other's locks, and that ends in a crash.
        self.counts = self.colmap.Database.open(self.database)
        try:
            self._extract()
            self._match(choose_pairs(len(self.names), ordered))
        finally:
            self.counts.close()
        models = self._map().values()
        return max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)

    def _extract(self) -> None:
        colmap = self.colmap
        reader = colmap.ImageReaderOptions()
        if (masks := self.images.parent / FOLDER).is_dir():
            reader.mask_path = str(masks)
        reader.camera_model = "SIMPLE_RADIAL"  # one focal length, one coefficient: enough for phones, and stable
        # Listed first, because extraction would number the images in the order in which its threads finish.
        for names in self.lenses:
            colmap.import_images(self.database, self.images, colmap.CameraMode.SINGLE, names, reader)
        ids = [image.image_id for image in self.counts.read_all_images()]
        options = colmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu = self.threads, False
        options.max_image_size, options.sift.max_num_features = _FEATURE_SIZE, _FEATURES
        self._watch(
            "features",
            len(self.names),
            lambda: sum(map(self.counts.exists_keypoints, ids)),
            lambda token: colmap.extract_features(
                self.database,
                self.images,
                image_names=self.names,
                camera_mode=colmap.CameraMode.SINGLE,
                reader_options=reader,
                extraction_options=options,
                device=colmap.Device.cpu,
                cancellation_token=token,
            ),
        )

    def _match(self, pairs: list[tuple[int, int]]) -> None:
        colmap = self.colmap
        pairing = colmap.ImportedPairingOptions()
        pairing.match_list_path = self.work / "pairs.txt"
        listed = "".join(f"{self.names[i]} {self.names[j]}\n" for i, j in pairs)
        Path(pairing.match_list_path).write_text(listed, encoding="utf-8")
        options = colmap.FeatureMatchingOptions()
        options.num_threads, options.use_gpu = self.threads, False
        verification = colmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = _SEED
        self._watch(
            "pairs",
            len(pairs),
            self.counts.num_verified_image_pairs,
            lambda token: colmap.match_image_pairs(
                self.database,
                matching_options=options,
                pairing_options=pairing,
                verification_options=verification,
                device=colmap.Device.cpu,
                cancellation_token=token,
            ),
        )

    def _map(self) -> dict[int, Any]:
        colmap = self.colmap
        options = colmap.IncrementalPipelineOptions()
        # Several threads would add up in another order each time, and on two cores were no faster.
        options.num_threads = options.mapper.num_threads = 1
        options.random_seed = options.mapper.random_seed = _SEED
        options.triangulation.random_seed = _SEED
        options.min_model_size = MINIMUM_VIEWS
        models = self.work / "models"
        models.mkdir()
        placed = 2  # the first pair is not reported

        def next_image() -> None:
            nonlocal placed
            placed += 1

        return self._watch(
            "poses",
            len(self.names),
            lambda: placed,
            lambda token: colmap.incremental_mapping(
                self.database,
                self.images,
                models,
                options=options,
                next_image_callback=next_image,
                cancellation_token=token,
            ),
        )

    def _watch(self, stage: str, total: int, done: Callable[[], int], work: Callable[[Any], Any]) -> Any:
        """work(cancellation token), in a thread, with a bar that shows how many of `total` are `done()` meanwhile."""
        token = self.colmap.CancellationToken()
        with (
            ThreadPoolExecutor(1, thread_name_prefix=stage) as pool,  # leaving it waits for the thread
            progress(self.show_progress, total=total, desc=stage) as bar,
        ):
            future = pool.submit(work, token)
            try:
                while not wait([future], timeout=0.3).done:
                    bar.update(min(done(), total) - bar.n)
            except BaseException:  # Ctrl-C
                token.cancel()
                raise
            bar.update(min(done(), total) - bar.n)
            return future.result()


def _checked(model: Any, source: Source, names: list[str]) -> set[str]:
    """Those of the images' names that are registered. UserError where the model is not to be trusted."""
    count = len(names)
    advice = (
        "film slowly, with light, while walking around something that has texture"
        if source.is_video
        else "take more photos that overlap, sharp, from different places, of something that has texture"
    )
    if model is None:
        raise UserError(
            f"{source.path}: no poses can be estimated, as images overlap too little or the camera only turns; {advice}"
        )
    registered = [model.images[i] for i in model.reg_image_ids()]
    share = len(registered) / count
    if len(registered) < MINIMUM_VIEWS or share < _LEAST_SHARE:
        raise UserError(
            f"{source.path}: only {len(registered)} of {count} images could be registered, the others do not overlap "
            f"enough; {advice}"
        )
    if _baseline(model, registered) < _LEAST_BASELINE:
        raise UserError(f"{source.path}: the camera turns on the spot, which shows no depth; {advice}")
    found = {image.name for image in registered}
    if len(registered) < count:
        log.log(
            logging.WARNING if share < _WARNING_SHARE else logging.INFO,
            "%s: %d of %d images could not be registered and are left out, the first is %s%s",
            source.path, count - len(registered), count, next(n for n in names if n not in found),
            f"; {advice}" if share < _WARNING_SHARE else "",
        )  # fmt: skip
    return found


def _baseline(model: Any, registered: list[Any]) -> float:
    """The extent of the camera positions over the median depth of the points."""
    positions = np.array([image.projection_center() for image in registered])
    points = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    if not len(points):
        return 0.0
    centre = np.median(positions, axis=0)
    extent = np.linalg.norm(np.ptp(positions, axis=0))
    return float(extent / max(np.median(np.linalg.norm(points - centre, axis=1)), 1e-12))


@contextmanager
def _quiet(colmap: ModuleType) -> Iterator[None]:
    """COLMAP's own log says nothing below an error."""
    before = colmap.logging.minloglevel
    colmap.logging.minloglevel = colmap.logging.Level.ERROR.value
    try:
        yield
    finally:
        colmap.logging.minloglevel = before
