"""Video files: pictures at given times, and small files written; PyAV reads and encodes."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from spatial_clap_jax.data.sound_events import LABEL_STEP_S
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import check_regular, read_through

# In FFmpeg itself, and so in PyAV's wheels for all platforms; what the task's videos hold.
_CODEC = "mpeg4"
# Finest and coarsest quantiser: small pictures stay sharp.
_QUANTISERS = 2, 6
# A video may end this much before its audio; time stamps are rounded to milliseconds.
_LEEWAY_S = LABEL_STEP_S + 1e-3
# FFmpeg tells formats by what a file holds, and some of them are lists of other files and
# addresses, which it would open.
_CONTAINERS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,nut,m4v",
}
# What FFmpeg says of damaged files, and the system of a machine.
_OF_DAMAGE = (errno.ENOMEM, errno.EIO, errno.EAGAIN)
# Pixels of a picture: 8K, doubled.
_LARGEST = 2**26


def frames_at(
    path: str | Path,
    times_s: Sequence[float],
    size: tuple[int, int],
    at_least_s: float = 0.0,
) -> UInt8[np.ndarray, "n height width 3"]:
    """The pictures on show at given times; see `each_frame_at`, which takes the same."""
    pictures = np.zeros((len(times_s), *size, 3), np.uint8)
    for number, picture in enumerate(each_frame_at(path, times_s, size, at_least_s)):
        pictures[number] = picture
    return pictures


def each_frame_at(
    path: str | Path,
    times_s: Sequence[float],
    size: tuple[int, int] | None,
    at_least_s: float = 0.0,
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The pictures on show at given times, by the time stamps of the file, one after the other.

    Time 0 is the first picture; each is on show until the next one, whatever the frame rate or
    its changes. The file is decoded once, and only what is asked for becomes RGB.

    Args:
      path: the video.
      times_s: ascending, in seconds.
      size: height and width wanted; another size is resampled by area. None for the video's own.
      at_least_s: how long the video must last; a label step less is let pass.

    Yields:
      RGB.

    Raises:
      InputError: PyAV is not installed; the file is missing or no video, its time stamps are
        missing or do not ascend, or it is too short, which shows at its end.

    Reference: our choice.
    """
    if list(times_s) != sorted(times_s):
        raise InputError(f"times_s {list(times_s)} must ascend; sort them.")
    due, shown, end_s, step_s = 0, None, 0.0, 0.0
    with _opened(path) as stream:
        size = size or (stream.codec_context.height, stream.codec_context.width)
        for time_s, frame in _timed(path, stream):
            while shown is not None and due < len(times_s) and times_s[due] < time_s:
                yield _rgb(shown, *size)
                due += 1
            # The last picture lasts as long as the one before it, or as it says itself.
            step_s = time_s - end_s if shown is not None else _step_s(frame)
            shown, end_s = frame, time_s
        if shown is None:
            raise InputError(f"{path}: holds no pictures; give a whole copy of the video.")
        end_s += step_s
        _check_length(path, end_s, max(at_least_s, times_s[-1] if len(times_s) else 0.0))
        for _ in range(due, len(times_s)):
            yield _rgb(shown, *size)


def check_length(path: str | Path, at_least_s: float) -> None:
    """Refuses a video that is shorter than its audio, without decoding a picture.

    What is looked at is the length that the file tells of itself; where it tells none, or one that
    is too short, time stamps decide.

    Args:
      path: the video.
      at_least_s: how long it must last; a label step less is let pass.

    Raises:
      InputError: as `frames_at` does.
    """
    with _opened(path) as stream:
        if stream.duration and stream.duration * stream.time_base >= at_least_s - _LEEWAY_S:
            return
        # Packets tell when their pictures are shown, not always in that order.
        found = {x.pts: x.duration for x in stream.container.demux(stream) if x.pts is not None}
        if not found:
            return
        *_, before, last = [min(found), *sorted(found)]
        # As in `frames_at`: the last picture lasts as long as the one before it.
        step = last - before or found[last] or 0
        end_s = float((last + step - min(found)) * stream.time_base)
    _check_length(path, end_s, at_least_s)


def width_of(path: str | Path) -> int:
    """Pixels from left to right of a video's pictures.

    Raises:
      InputError: PyAV is not installed, or the file is missing or no video.
    """
    with _opened(path) as stream:
        return stream.codec_context.width


def has_reader() -> bool:
    """Whether PyAV is installed, without which no video can be read."""
    return importlib.util.find_spec("av") is not None


def write_video(
    path: str | Path, frames: UInt8[np.ndarray, "n height width 3"], rate_hz: Fraction | int
) -> None:
    """Writes pictures as an mp4 file (MPEG-4 part 2).

    Args:
      path: the file; one that is there is replaced.
      frames: RGB, of even height and width.
      rate_hz: pictures a second, such as 10 or Fraction(30000, 1001).

    Raises:
      InputError: PyAV is not installed, or an odd size.
    """
    av = _pyav()
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: pictures of {width} x {height}; width and height must be even.")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=Fraction(rate_hz))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.qmin, context.qmax = _QUANTISERS
        # Time stamps in the muxer's units, so that 29.97 stays what it is.
        context.time_base = 1 / Fraction(rate_hz)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check_length(path: str | Path, end_s: float, wanted_s: float) -> None:
    if end_s < wanted_s - _LEEWAY_S:
        raise InputError(
            f"{path}: the video lasts {end_s:.2f} s, shorter than the {wanted_s:.2f} s of its "
            "audio; give a video of the whole clip."
        )


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(
            "video needs PyAV, which is not installed; install the extra: "
            "pip install 'spatial-clap-jax[video]'."
        ) from error
    return av


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """The first video stream of a file; what FFmpeg says of a bad one becomes a line."""
    av = _pyav()
    try:
        check_regular(path)
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: no such video file ({told}); check the path.") from error
    try:
        # An absolute path of the protocol `file`: a name like 'concat:a|b' is a name.
        with av.open(f"file:{os.path.abspath(path)}", options=_CONTAINERS) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video stream; give a file with pictures.")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None:
                raise InputError(f"{path}: is of no known codec; write the video as mp4.")
            if codec.width * codec.height > _LARGEST:
                raise InputError(
                    f"{path}: pictures of {codec.width} x {codec.height}, above {_LARGEST} pixels; "
                    "make them smaller."
                )
            # One thread: training reads many small files at once.
            codec.thread_count = 1
            yield stream
    except InputError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path}: cannot be decoded as video ({' '.join(str(error).split())}); give a whole "
            "copy of the file, as mp4."
        ) from _cause(path, error)


def _cause(path: str | Path, error: BaseException) -> BaseException | None:
    """What led to an error of FFmpeg: it, or the system where that tells; None for damage.

    FFmpeg calls some damage a lack of memory or a failing disk.
    """
    if getattr(error, "errno", None) not in _OF_DAMAGE:
        return error
    try:
        read_through(path)
    except (OSError, MemoryError) as of_the_system:
        return of_the_system
    return None


def _timed(path: str | Path, stream: Any) -> Iterator[tuple[float, Any]]:
    """Pictures with their times, the first one at 0."""
    first, before = None, None
    for number, frame in enumerate(stream.container.decode(stream)):
        if frame.pts is None:
            raise InputError(
                f"{path}: picture {number} has no time stamp; write the video again, with one for "
                "each picture."
            )
        if before is not None and frame.pts <= before:
            raise InputError(
                f"{path}: time stamp {frame.pts} of picture {number} does not ascend from "
                f"{before}; write the video again, pictures in the order of time."
            )
        first, before = frame.pts if first is None else first, frame.pts
        yield float((frame.pts - first) * frame.time_base), frame


def _step_s(frame: Any) -> float:
    """How long a picture says that it lasts; 0 where it does not."""
    return float(frame.duration * frame.time_base) if frame.duration else 0.0


def _rgb(frame: Any, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    if (height, width) == (frame.height, frame.width):
        return frame.to_ndarray(format="rgb24")
    return frame.to_ndarray(format="rgb24", height=height, width=width, interpolation="AREA")
