"""Measured room impulse responses: a csv of sound files and SOFA files, read and checked."""

import csv
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32

from spatial_clap_jax.acoustics.rirs import RirRoom, measured_t60_s, stack_responses
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import text_of

_COLUMNS = ("filename", "azimuth_deg", "elevation_deg", "distance_m", "room")
_MAX_SOFA_ELEVATION_DEG = 30.0
_LOWEST_HZ, _HIGHEST_HZ = 4_000, 384_000
# Longer than any room sounds, and numbers in a SOFA file: 2 GiB of float64.
_LONGEST_S, _MOST_NUMBERS = 60, 2**28
# DEFLATE, HDF5's own filter, makes nothing smaller than this.
_DENSEST = 1100


def load_measured_rirs(csv_path: str | os.PathLike[str], sample_rate_hz: int) -> list[RirRoom]:
    """Read measured responses that a CSV lists.

    Columns are filename (relative to the CSV's folder), azimuth_deg (+90 left),
    elevation_deg, distance_m and room. A file is a wav or another sound file with the two
    channels L, R, or a SOFA file with two receivers, the left one first. A SOFA row
    without azimuth, elevation and distance takes every measurement of the file with an
    azimuth in [-90, 90] and an elevation in [-30, 30]; with them it takes the measurement
    at that place. Levels and delays are kept as they were measured.

    Args:
      csv_path: the CSV.
      sample_rate_hz: rate that responses are resampled to, both channels alike and with
        the gain that a filter needs.

    Returns:
      One `RirRoom` for each room, in the order of their first rows; the shorter responses
      of a room end in zeros.

    Raises:
      InputError: the CSV or a file in it cannot be used; the message names row and file.

    Reference: AES69 (SOFA); the CSV is our choice.
    """
    path = Path(csv_path)
    rooms: dict[str, list[_Place]] = {}
    for where, row in _read_rows(path):
        if not row["room"]:
            raise InputError(f"{where}: room is empty; name the room of each response.")
        file = _file_inside(path.parent, row["filename"], where)
        label = f"{where}: {row['filename']!r}"
        position = [row[column] for column in ("azimuth_deg", "elevation_deg", "distance_m")]
        if file.suffix.lower() == ".sofa":
            wanted = _position(position, where) if any(position) else None
            found, rate_hz = _read_sofa(file, wanted, label)
        else:
            azimuth, elevation, distance = _position(position, where)
            rir, rate_hz = _read_sound(file, label)
            found = [_Place(rir, azimuth, elevation, distance)]
        rooms.setdefault(row["room"], []).extend(
            place._replace(rir=_usable(place.rir, rate_hz, sample_rate_hz, label))
            for place in found
        )
    return [_measured_room(name, places, sample_rate_hz) for name, places in rooms.items()]


class _Place(NamedTuple):
    rir: Float[np.ndarray, "c r"]
    azimuth_deg: float
    elevation_deg: float
    distance_m: float


def _measured_room(name: str, places: list[_Place], sample_rate_hz: int) -> RirRoom:
    rirs = stack_responses([place.rir for place in places])
    times_s = measured_t60_s(rirs, sample_rate_hz)
    return RirRoom(
        name=name,
        size_m=(0.0, 0.0, 0.0),
        t60_s=float(np.median(times_s)),
        rirs=rirs,
        azimuth_deg=np.array([place.azimuth_deg for place in places], np.float32),
        elevation_deg=np.array([place.elevation_deg for place in places], np.float32),
        distance_m=np.array([place.distance_m for place in places], np.float32),
        sample_rate_hz=sample_rate_hz,
        t30_s=np.median(times_s, axis=1).astype(np.float32),
        drr_bands_db=np.zeros((len(places), 0), np.float32),
        t30_bands_s=np.zeros((len(places), 0), np.float32),
    )


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of the CSV, each with 'file: row number' (the header is row 1) for errors."""
    try:
        reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
        missing = [one for one in _COLUMNS if one not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"{path.name}: column {missing[0]!r} is missing; the columns must be "
                f"{', '.join(_COLUMNS)}."
            )
        rows = [
            (
                f"{path.name}: row {reader.line_num}",
                {column: (row[column] or "").strip() for column in _COLUMNS},
            )
            for row in reader
        ]
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path.name}: cannot be read ({error}); give a CSV in UTF-8 with the columns "
            f"{', '.join(_COLUMNS)}."
        ) from error
    if not rows:
        raise InputError(f"{path.name}: has no rows; give at least one response.")
    yield from rows


def _file_inside(folder: Path, filename: str, where: str) -> Path:
    if not filename:
        raise InputError(f"{where}: filename is empty; give a path inside the csv's folder.")
    file = folder / filename
    try:
        # Links are followed, so that none leads out.
        real = Path(os.path.realpath(file))
    except (OSError, ValueError):
        real = None
    if real is None or os.path.isabs(filename) or not real.is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"{where}: filename {filename!r} leaves the csv's folder; give paths inside it."
        )
    # Not `Path.is_file`, which raises for a name that is too long.
    if not os.path.isfile(file):
        raise InputError(f"{where}: filename {filename!r} does not exist; correct the path.")
    return file


def _position(values: list[str], where: str) -> tuple[float, float, float]:
    """Azimuth, elevation and distance of a row."""
    rules = (("azimuth_deg", -90.0, 90.0), ("elevation_deg", -90.0, 90.0), ("distance_m", 0.0, 1e3))
    numbers = []
    for (column, low, high), value in zip(rules, values, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (column == "distance_m" and number == 0):
            bracket = "(" if column == "distance_m" else "["
            raise InputError(
                f"{where}: {column} {value!r} must be a number in {bracket}{low:g}, {high:g}]"
                + (" (+90 is left); leave out places behind." if column == "azimuth_deg" else ".")
            )
        numbers.append(number)
    return numbers[0], numbers[1], numbers[2]


def _read_sound(file: Path, label: str) -> tuple[Float32[np.ndarray, "c r"], float]:
    _refuse_truncated_wav(file, label)
    try:
        with soundfile.SoundFile(file) as sound:
            declared, rate_hz = sound.frames, float(sound.samplerate)
            _refuse_header(label, declared, sound.channels, rate_hz)
            audio = sound.read(dtype="float32", always_2d=True)
    # A name like `.raw` asks for more arguments.
    except (soundfile.SoundFileError, TypeError) as error:
        raise InputError(f"{label} cannot be read ({error}); give a whole wav file.") from error
    if len(audio) < declared:
        raise InputError(f"{label} is truncated ({len(audio)} of {declared} samples); copy anew.")
    return np.ascontiguousarray(audio.T), rate_hz


def _refuse_header(label: str, samples: int, channels: int, rate_hz: float) -> None:
    """Before anything of the size that a header says is made."""
    if not _LOWEST_HZ <= rate_hz <= _HIGHEST_HZ:
        raise InputError(
            f"{label}: sample rate {rate_hz:g} Hz must lie within {_LOWEST_HZ} and {_HIGHEST_HZ} "
            "Hz; correct the file."
        )
    if channels != 2:
        raise InputError(f"{label} has {channels} channels; a stereo response has 2 (L, R).")
    if samples > _LONGEST_S * rate_hz:
        raise InputError(
            f"{label}: {samples} samples, above {_LONGEST_S} s; cut the response where it has "
            "died away."
        )


def _refuse_truncated_wav(file: Path, label: str) -> None:
    """libsndfile reads what is left of a cut wav without a word."""
    with file.open("rb") as opened:
        header = opened.read(8)
    declared = int.from_bytes(header[4:8], "little")
    # Writers into pipes leave 0 or all ones.
    known = header[:4] == b"RIFF" and declared not in (0, 0xFFFFFFFF)
    if known and file.stat().st_size + 1 < declared + 8:
        raise InputError(
            f"{label} is truncated ({file.stat().st_size} of {declared + 8} bytes); copy it anew."
        )


def _read_sofa(
    file: Path, wanted: tuple[float, float, float] | None, label: str
) -> tuple[list[_Place], float]:
    """Measurements of a SOFA file: the frontal ones, or the one at the place `wanted`."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{label} needs h5py to be read; pip install 'spatial-clap-jax[sofa]'."
        ) from error
    try:
        with h5py.File(file, "r") as opened:
            sofa: Any = opened
            rirs = _numbers(sofa, "Data.IR")
            rates_hz = np.unique(_numbers(sofa, "Data.SamplingRate"))
            delays = _numbers(sofa, "Data.Delay") if "Data.Delay" in sofa else np.zeros(1)
            kind = sofa["SourcePosition"].attrs.get("Type", b"spherical")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            positions = np.atleast_2d(_numbers(sofa, "SourcePosition"))
            receivers = _numbers(sofa, "ReceiverPosition") if "ReceiverPosition" in sofa else None
    except InputError:
        raise
    # The library raises many kinds for a damaged file.
    except Exception as error:
        raise InputError(f"{label} cannot be read ({error}); give a whole SOFA file.") from error
    if rirs.ndim != 3 or rirs.shape[1] != 2:
        raise InputError(
            f"{label}: Data.IR of shape {rirs.shape} must be (measurements, 2 receivers, samples)."
        )
    if kind.lower() != "spherical":
        raise InputError(f"{label}: SourcePosition is {kind!r}; it must be spherical, in degrees.")
    if positions.shape not in ((1, 3), (len(rirs), 3)) or not np.isfinite(positions).all():
        raise InputError(
            f"{label}: SourcePosition of shape {positions.shape} must hold azimuth, elevation and "
            f"distance of {len(rirs)} measurements."
        )
    if rates_hz.size != 1:
        raise InputError(f"{label}: Data.SamplingRate {rates_hz} must be one rate.")
    _refuse_header(label, rirs.shape[2], rirs.shape[1], float(rates_hz[0]))
    if delays.any():
        raise InputError(f"{label}: Data.Delay is not zero; write the delays into Data.IR.")
    if receivers is not None and receivers.shape[:2] == (2, 3):
        left_y, right_y = receivers[:, 1].reshape(2, -1)[:, 0]
        if left_y < right_y:
            raise InputError(f"{label}: the left receiver must come first; swap the receivers.")
    azimuth, elevation, distance = np.broadcast_to(positions, (len(rirs), 3)).T
    # SOFA counts azimuths from 0 to 360.
    azimuth = (azimuth + 180) % 360 - 180
    if wanted is None:
        taken = (np.abs(azimuth) <= 90) & (np.abs(elevation) <= _MAX_SOFA_ELEVATION_DEG)
        missing = "has no measurement with azimuth in [-90, 90] and elevation in [-30, 30]"
    else:
        near = np.abs(np.stack([azimuth, elevation, distance], 1) - np.array(wanted))
        taken = (near <= (0.5, 0.5, 0.05)).all(axis=1)
        missing = f"has no measurement within 0.5 degrees and 5 cm of {wanted}"
    if not taken.any() or (wanted is not None and taken.sum() > 1):
        raise InputError(
            f"{label} {missing if not taken.any() else f'has several measurements at {wanted}'}; "
            "correct the row's position, or leave it empty to take all."
        )
    return [
        _Place(rirs[index], float(azimuth[index]), float(elevation[index]), float(distance[index]))
        for index in np.flatnonzero(taken)
    ], float(rates_hz[0])


def _numbers(sofa: Any, name: str) -> Float[np.ndarray, "..."]:
    """A dataset of a SOFA file, which must lie in the file itself and be as large as it says."""
    held = sofa[name]
    if held.file != sofa.file or held.external or held.is_virtual:
        raise ValueError(f"{name} lies in another file")
    stored = held.id.get_storage_size()
    if held.size > _MOST_NUMBERS or held.nbytes > 2**16 + _DENSEST * stored:
        raise ValueError(f"{name} of shape {held.shape} is more than its {stored} bytes can hold")
    return np.asarray(held[()], np.float64)


def _usable(
    rir: Float[np.ndarray, "c r"], rate_hz: float, sample_rate_hz: int, label: str
) -> Float32[np.ndarray, "c r_out"]:
    """A checked response at the wanted rate."""
    if not rir.size:
        raise InputError(f"{label} has zero length; give a response that holds samples.")
    if not np.isfinite(rir).all():
        raise InputError(f"{label} holds NaN or infinite samples; give finite ones.")
    if rate_hz != sample_rate_hz:
        # A filter sums over samples: at a third of the rate each must be three times as large.
        resampled = soxr.resample(rir.T, rate_hz, sample_rate_hz)
        rir = resampled.T * (rate_hz / sample_rate_hz)
    if not rir.any():
        raise InputError(f"{label} is silent; give a response that holds sound.")
    return np.ascontiguousarray(rir, np.float32)
