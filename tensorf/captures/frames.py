"""A video -> its sharpest frames as JPEG files, for `estimate.py` to work on.

The video is cut into as many windows as frames are wanted, and the sharpest frame of each is kept. Frames are streamed:
memory holds two of them.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image

from tensorf.captures.photos import JPEG_QUALITY, LONGEST_SIDE
from tensorf.captures.views import MINIMUM_VIEWS
from tensorf.errors import UserError
from tensorf.progress import progress
from tensorf.untrusted import MOST_PIXELS, check_pixels

log = logging.getLogger("tensorf")

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts")

# A file that calls itself a video may be a playlist, which names other files: ffmpeg would read those.
_CONTAINERS = "mov,avi,matroska,mpeg,mpegts,mpegvideo"
_THUMBNAIL = (32, 32)  # pixels, in which noise averages out
_STILL = 1.0  # mean difference of thumbnails in grey levels of 255, up to which two frames show the same
_TORN = "it is cut off or damaged; copy it from the camera once more"
_SIGNS_OF_TORN = ("moov atom not found", "error reading header", "received no packets")  # what ffmpeg tells then
# Pixels become square first. Even sides, because half-sized colour planes need them. ffmpeg turns the frames of phones
# upright by itself.
_SCALE = (
    f"scale='iw*sar':ih,setsar=1,scale='min(iw,{LONGEST_SIDE})':'min(ih,{LONGEST_SIDE})'"
    ":force_original_aspect_ratio=decrease:force_divisible_by=2:flags=area"
)
_HDR = ("arib-std-b67", "smpte2084")  # transfers: HLG, as iPhones record, and PQ
# Diffuse white is 203 nits in HDR (ITU-R BT.2408). Up to 0.7 of it nothing changes, and what is brighter, up to 1000
# nits (4.926 times white), is squeezed into the rest. HDR's primaries are BT.2020's, also where the file does not say.
_SDR = (
    "setparams=color_primaries=bt2020:colorspace=bt2020nc,zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709"
    ",tonemap=mobius:param=0.7:peak=4.926,zscale=t=bt709,format=gbrp"
)


@dataclass(eq=False)
class _Frame:
    index: int
    sharpness: float
    pixels: np.ndarray  # (height, width, 3) uint8 RGB


def choose_frames(video: Path, count: int, folder: Path, show_progress: bool = False) -> list[str]:
    """Writes about `count` frames of `video` into `folder`, upright, at most 1600 pixels a side; returns their names.

    The frames come in the video's order and are named by their place in it: 000042.jpg. A video with fewer frames gives
    all of them. HDR colours become those of ordinary videos. Raises UserError where the video cannot be read, where it
    has fewer than 3 frames, and where all of them show the same.
    """
    header = _header(video)
    total = _expected_frames(header) or _counted_frames(video)
    filters = _filters(video, header)
    names, read, moves = _write_sharpest(_stream(video, filters), max(1.0, total / count), total, folder, show_progress)
    if read >= 2 * len(names) and len(names) < count / 2:  # the header told of a far longer video than there is
        for name in names:
            (folder / name).unlink()
        names, read, moves = _write_sharpest(
            _stream(video, filters), max(1.0, read / count), read, folder, show_progress
        )
    if not names:
        raise UserError(f"{video} cannot be read as a video: {_TORN}")
    if read < MINIMUM_VIEWS:
        raise UserError(
            f"{video} has {read} {'frame' if read == 1 else 'frames'}, and at least {MINIMUM_VIEWS} are needed: give a "
            "longer video, of a walk around what is filmed"
        )
    if not moves:
        raise UserError(f"{video} shows no motion: all of its frames look the same; walk around what is filmed")
    return names


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of an image (height, width, 3) uint8 RGB: blur lowers it."""
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def _write_sharpest(
    frames: Iterable[np.ndarray], window: float, total: int, folder: Path, show_progress: bool
) -> tuple[list[str], int, bool]:
    """The sharpest frame of every `window` frames: their names, how many frames were read, and whether they differ.

    frames: (height, width, 3) uint8 RGB each. total: how many there should be, for the progress bar.
    """
    names, read, moves, first = [], 0, False, None

    def write(frame: _Frame) -> None:
        nonlocal moves, first
        names.append(f"{frame.index:06d}.jpg")
        Image.fromarray(frame.pixels).save(folder / names[-1], quality=JPEG_QUALITY)
        thumbnail = cv2.resize(frame.pixels, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        first = thumbnail if first is None else first
        moves = moves or float(np.abs(thumbnail - first).mean()) > _STILL

    best = None
    with progress(show_progress, total=total, desc="video", unit="frame") as bar:
        for index, pixels in enumerate(frames):
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


def _header(video: Path) -> dict:
    """What ffmpeg tells of a video. UserError for frames that are too large."""
    with _reading(video):
        frames = _opened(video)
        header = next(frames)
        frames.close()
    width, height = header["source_size"]
    check_pixels(video, width * height)
    return header


def _expected_frames(header: dict) -> int:
    """How many frames the header promises; 0 where it does not say."""
    return round(header["fps"] * header["duration"])


def _filters(video: Path, header: dict) -> str:
    """ffmpeg's filters for the video's frames. One line of the log tells of HDR."""
    told = header["pix_fmt"]  # such as "yuv420p10le(tv, bt2020nc/bt2020/arib-std-b67, progressive)"
    if not any(transfer in told for transfer in _HDR):
        return _SCALE
    if not _can_convert_hdr():
        log.warning(
            "%s is an HDR video, and its colours will be pale, because this ffmpeg lacks zscale: name another one in "
            "IMAGEIO_FFMPEG_EXE, or convert the video to SDR", video,
        )  # fmt: skip
        return _SCALE
    log.info("%s is an HDR video: its colours are converted to those of an ordinary one (SDR)", video)
    return f"{_SCALE},{_SDR}"  # in this order, because small frames are converted faster


def _can_convert_hdr() -> bool:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-filters"]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stdout
    return b" zscale " in told and b" tonemap " in told


def _opened(video: Path, *output: str) -> Iterator:
    """ffmpeg's frames of an ordinary video; what comes first tells of them. It starts with the first `next`."""
    limits = ["-format_whitelist", _CONTAINERS, "-max_pixels", str(MOST_PIXELS)]
    return imageio_ffmpeg.read_frames(str(video), input_params=limits, output_params=list(output))


def _counted_frames(video: Path) -> int:
    with _reading(video):
        return imageio_ffmpeg.count_frames_and_secs(str(video))[0]


def _stream(video: Path, filters: str) -> Iterator[np.ndarray]:
    """The frames, (height, width, 3) uint8 RGB each."""
    with _reading(video):
        frames = _opened(video, "-vf", filters)
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
        raise UserError(f"{video} cannot be read as a video{_cause(str(error))}") from error
    finally:
        logger.setLevel(level)


def _cause(told: str) -> str:
    """Why ffmpeg failed, from its messages, and the remedy; as the end of a sentence."""
    if "does not contain any stream" in told:
        return ": it has no picture, only sound; give the video that has one"
    guessed = "misdetection possible" in told  # that it is an MP4 file, by nothing but its name
    if not guessed and any(sign in told for sign in _SIGNS_OF_TORN):
        return f": {_TORN}"
    return "; convert it to an MP4 file and try again"
