"""A video -> its sharpest frames as JPEG files, for `estimate.py` to work on.

The video is cut into as many windows as frames are wanted, and the sharpest frame of each is kept. Frames are streamed:
memory holds two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image
from tqdm import tqdm

from tensorf.captures.photos import JPEG_QUALITY, LONGEST_SIDE
from tensorf.errors import UserError
from tensorf.untrusted import MOST_PIXELS, check_pixels

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts")

# A file that calls itself a video may be a playlist, which names other files: ffmpeg would read those.
_CONTAINERS = "mov,avi,matroska,mpeg,mpegts,mpegvideo"
_THUMBNAIL = (32, 32)  # pixels, in which noise averages out
_STILL = 1.0  # mean difference of thumbnails in grey levels of 255, up to which two frames show the same
# Pixels become square first. Even sides, because half-sized colour planes need them. ffmpeg turns the frames of phones
# upright by itself.
_SCALE = (
    f"scale='iw*sar':ih,setsar=1,scale='min(iw,{LONGEST_SIDE})':'min(ih,{LONGEST_SIDE})'"
    ":force_original_aspect_ratio=decrease:force_divisible_by=2:flags=area"
)


@dataclass
class _Frame:
    index: int
    sharpness: float
    pixels: np.ndarray  # (height, width, 3) uint8 RGB


def choose_frames(video: Path, count: int, folder: Path, show_progress: bool = False) -> list[str]:
    """Writes about `count` frames of `video` into `folder`, upright, at most 1600 pixels a side; returns their names.

    The frames come in the video's order and are named by their place in it: 000042.jpg. A video with fewer frames gives
    all of them. Raises UserError where the video cannot be read, and where all of its frames show the same.
    """
    total = _expected_frames(video) or _counted_frames(video)
    names, read, moves = _write_sharpest(video, max(1.0, total / count), total, folder, show_progress)
    if read >= 2 * len(names) and len(names) < count / 2:  # the header told of a far longer video than there is
        for name in names:
            (folder / name).unlink()
        names, read, moves = _write_sharpest(video, max(1.0, read / count), read, folder, show_progress)
    if not names:
        raise UserError(f"{video} cannot be read as a video: it has no frames")
    if not moves:
        raise UserError(f"{video} shows no motion: all of its frames look the same; walk around what is filmed")
    return names


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of an image (height, width, 3) uint8 RGB: blur lowers it."""
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def _write_sharpest(
    video: Path, window: float, total: int, folder: Path, show_progress: bool
) -> tuple[list[str], int, bool]:
    """The sharpest frame of every `window` frames: their names, how many frames were read, and whether they differ."""
    names, read, moves, first = [], 0, False, None

    def write(frame: _Frame) -> None:
        nonlocal moves, first
        names.append(f"{frame.index:06d}.jpg")
        Image.fromarray(frame.pixels).save(folder / names[-1], quality=JPEG_QUALITY)
        thumbnail = cv2.resize(frame.pixels, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        first = thumbnail if first is None else first
        moves = moves or float(np.abs(thumbnail - first).mean()) > _STILL

    best = None
    with tqdm(total=total, desc="video", unit="frame", disable=not show_progress) as bar:
        for index, pixels in enumerate(_stream(video)):
            frame = _Frame(index, sharpness(pixels), pixels)
            if best is not None and int(index / window) > int(best.index / window):
                write(best)
                best = None
            if best is None or frame.sharpness > best.sharpness:
                best = frame
            read += 1
            bar.update()
    if best is not None:
        write(best)
    return names, read, moves


def _expected_frames(video: Path) -> int:
    """How many frames the header promises; 0 where it does not say. UserError for frames that are too large."""
    with _reading(video):
        frames = _opened(video)
        meta = next(frames)
        frames.close()
    width, height = meta["source_size"]
    check_pixels(video, width * height)
    return round(meta["fps"] * meta["duration"])


def _opened(video: Path, *output: str) -> Iterator:
    """ffmpeg's frames of an ordinary video; what comes first tells of them. It starts with the first `next`."""
    limits = ["-format_whitelist", _CONTAINERS, "-max_pixels", str(MOST_PIXELS)]
    return imageio_ffmpeg.read_frames(str(video), input_params=limits, output_params=list(output))


def _counted_frames(video: Path) -> int:
    with _reading(video):
        return imageio_ffmpeg.count_frames_and_secs(str(video))[0]


def _stream(video: Path) -> Iterator[np.ndarray]:
    """The frames, (height, width, 3) uint8 RGB each."""
    with _reading(video):
        frames = _opened(video, "-vf", _SCALE)
        width, height = next(frames)["size"]
    try:
        while True:
            with _reading(video):
                data = next(frames, None)
            if data is None:
                return
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    finally:
        frames.close()


@contextmanager
def _reading(video: Path) -> Iterator[None]:
    """Turns what ffmpeg can fail with into a UserError, and keeps its remark on scaled frames off the screen."""
    logger = logging.getLogger("imageio_ffmpeg")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{video} cannot be read as a video; convert it to an MP4 file and try again") from error
    finally:
        logger.setLevel(level)
