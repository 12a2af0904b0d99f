"""Opens audio files: the one place where bytes of a file become samples."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import check_regular, read_through

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4_000, 384_000
LONGEST_S = 24 * 3600
# Bytes of samples that a file is believed to hold whatever its size, and for each byte of its own:
# silence in FLAC comes to several thousand.
_SMALL, _DENSEST = 2**24, 20_000
# A decoder drops up to a frame at the end of an MP3 whose header gives no gapless trimming.
MP3_FRAME = 1152
# Length fields at or above this one are what writers into a pipe leave: length unknown.
STREAMED_WAV = 0x7FFF0000
WHOLE_COPY = "give a whole copy of the file"


def read_audio(path: str | Path) -> tuple[Float32[np.ndarray, "c t"], int]:
    """All channels of an audio file at its own rate, or a refusal that says why.

    libsndfile decodes (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF). It reads a file that was cut
    short without a word, so the container is checked first: WAV and AIFF hold as many bytes as
    their header promises, Ogg ends on a whole page that is marked as the last. FLAC and MP3 are
    held to the number of frames that their header promises; an MP3 without such a header
    (no Xing or Info tag) can be cut without a trace.

    Args:
      path: the file.

    Returns:
      Samples, full scale 1, never mixed or scaled, and the file's sample rate in Hz.

    Raises:
      InputError: the file is missing, empty, cut short, no audio, holds no samples, NaN or
        infinite ones, has a sample rate outside 4 to 384 kHz, or a header that promises more
        samples than a file of its size can hold.

    Reference: RIFF/WAVE and AIFF chunk sizes; RFC 3533 (Ogg pages). The limits are our choice.
    """
    try:
        size = check_regular(path).st_size
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: no such audio file ({told}); check the path.") from error
    try:
        if size == 0:
            raise InputError(f"{path}: the audio file is empty (0 bytes); {WHOLE_COPY}.")
        with open(path, "rb") as file:
            _refuse_cut_container(path, file, size)
            audio, rate_hz, promised, tolerance = _decoded(path, file, size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    if len(audio) == 0:
        raise InputError(f"{path}: holds no samples; {WHOLE_COPY}.")
    if promised - len(audio) > tolerance:
        raise InputError(
            f"{path}: is cut short: {len(audio)} frames where its header promises {promised}; "
            f"{WHOLE_COPY}."
        )
    if not np.isfinite(audio).all():
        count = np.size(audio) - int(np.isfinite(audio).sum())
        raise InputError(
            f"{path}: {count} of {np.size(audio)} samples are NaN or infinite; every sample must "
            "be finite: write the file again."
        )
    return np.ascontiguousarray(audio.T), rate_hz


def _decoded(
    path: str | Path, file: BinaryIO, size: int
) -> tuple[Float32[np.ndarray, "t c"], int, int, int]:
    """Samples, rate, the frames that the header promises and how many may be missing.

    Raises:
      InputError: libsndfile cannot decode them.
      OSError: the system keeps it from reading them.
    """
    # By its number: a second opening could fail for reasons that libsndfile does not tell.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            _refuse_header(path, sound.samplerate, sound.frames, sound.channels, size)
            audio = sound.read(dtype="float32", always_2d=True)
            tolerance = MP3_FRAME if sound.format in ("MP3", "MPEG") else 0
            return audio, sound.samplerate, sound.frames, tolerance
    except (soundfile.SoundFileError, MemoryError) as error:
        if isinstance(error, soundfile.SoundFileError):
            read_through(path)
        told = getattr(error, "error_string", str(error))
        raise InputError(
            f"{path}: cannot be decoded as audio ({' '.join(told.split())}); {WHOLE_COPY}, as wav, "
            "flac, ogg or mp3."
        ) from error


def resample(
    audio: Float32[np.ndarray, "*c t"], from_hz: int, to_hz: int
) -> Float32[np.ndarray, "*c u"]:
    """Band-limited resampling of every channel alike (soxr, high quality).

    Args:
      audio: samples at `from_hz`, time last.
      from_hz: rate of `audio`.
      to_hz: rate wanted.

    Returns:
      round(t * to_hz / from_hz) samples a channel; `audio` itself where the rates agree.
    """
    if from_hz == to_hz:
        return audio
    time_first = audio.reshape(-1, audio.shape[-1]).T
    resampled = soxr.resample(np.ascontiguousarray(time_first), from_hz, to_hz, quality="HQ")
    return np.ascontiguousarray(resampled.T).reshape(*audio.shape[:-1], -1)


def _refuse_header(path: str | Path, rate_hz: int, frames: int, channels: int, size: int) -> None:
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise InputError(
            f"{path}: sample rate {rate_hz} Hz; it must lie within {LOWEST_RATE_HZ} and "
            f"{HIGHEST_RATE_HZ} Hz: resample the file or correct its header."
        )
    if frames > LONGEST_S * rate_hz:
        raise InputError(
            f"{path}: its header promises {frames} frames, above {LONGEST_S // 3600} hours, or "
            "no length; cut the file or write it again."
        )
    if frames * channels * 4 > _SMALL + _DENSEST * size:
        raise InputError(
            f"{path}: its header promises {frames} frames of {channels} channel(s), more than its "
            f"{size} bytes can hold; {WHOLE_COPY}."
        )


def _refuse_cut_container(path: str | Path, file: BinaryIO, size: int) -> None:
    kind = file.read(12)
    if kind[:4] in (b"RIFF", b"RF64") and kind[8:] == b"WAVE":
        missing = _missing_wav_bytes(file, size)
    elif kind[:4] == b"FORM" and kind[8:] in (b"AIFF", b"AIFC"):
        # An odd last chunk may lack its pad byte.
        missing = 8 + struct.unpack(">I", kind[4:8])[0] - size
        missing = missing if missing > 1 else 0
    elif kind[:4] == b"OggS":
        if not _ends_on_last_ogg_page(file, size):
            raise InputError(
                f"{path}: is cut short: the Ogg stream lacks its last page; {WHOLE_COPY}, or if "
                "it is whole, write it again so that its last page is marked."
            )
        return
    else:
        return
    if missing > 0:
        raise InputError(
            f"{path}: is cut short: {size} bytes, {missing} fewer than its header promises; "
            f"{WHOLE_COPY}."
        )


def _missing_wav_bytes(file: BinaryIO, size: int) -> int:
    position, long_size = 12, None
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return 0  # No data chunk at all: the decoder has the word.
        name, length = struct.unpack("<4sI", head)
        if name == b"ds64" and len(sizes := file.read(16)) == 16:
            long_size = struct.unpack("<QQ", sizes)[1]
        if name == b"data":
            if length == 0xFFFFFFFF and long_size is not None:
                length = long_size
            elif length >= STREAMED_WAV:
                return 0
            return max(0, position + 8 + length - size)
        position += 8 + length + length % 2


def _ends_on_last_ogg_page(file: BinaryIO, size: int) -> bool:
    # A page has at most 65,307 bytes, so the last one starts within this tail.
    file.seek(max(0, size - 2**17))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    segments = page[26]
    whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    return whole and bool(page[5] & 4)
