"""Room impulse responses, simulated or measured, and the reverberation time they hold."""

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyroomacoustics as pra
import soundfile
import soxr
from jaxtyping import Float, Float32

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.rooms import Room, RoomRanges, sample_room
from spatial_clap_jax.errors import InputError

RIR_LENGTH_S = 0.5
WALL_MARGIN_M = 0.3
# Reflections are followed until the walls have taken 60 dB. The cap, which bounds time and
# memory, shortens the tail of rooms with an absorption below 0.25.
_REFLECTION_LOSS_DB = 60.0
_MAX_ORDER = 50
_COLUMNS = ("filename", "azimuth_deg", "elevation_deg", "distance_m", "room")
_MAX_SOFA_ELEVATION_DEG = 30.0


@dataclass(frozen=True)
class RirRoom:
    """Responses from n places of one room to the c channels of its receiver.

    Azimuths are in [-90, 90] (+90 left). `size_m` is (0, 0, 0) where it is unknown;
    `t60_s` is the median of what `measure_t60_s` finds in the responses.
    """

    name: str
    size_m: tuple[float, float, float]
    t60_s: float
    rirs: Float32[np.ndarray, "n c r"]
    azimuth_deg: Float32[np.ndarray, "n"]
    elevation_deg: Float32[np.ndarray, "n"]
    distance_m: Float32[np.ndarray, "n"]
    sample_rate_hz: int


def measure_t60_s(rir: Float[np.ndarray, "r"], sample_rate_hz: int) -> float:
    """Reverberation time of a response: the decay of its energy, extrapolated to 60 dB.

    A line is fitted to the backward-integrated energy between -5 and -35 dB (T30), or
    -25 dB (T20) where the response ends before. Background noise in a measured
    response is not compensated for and makes the time longer.

    Args:
      rir: impulse response.
      sample_rate_hz: rate of `rir`.

    Returns:
      Seconds; 0 for silence and for responses without a decay, such as an impulse.

    Reference: Schroeder 1965; ISO 3382-1.
    """
    energy = np.cumsum(np.square(rir[::-1], dtype=np.float64))[::-1]
    energy = energy[energy > 0]
    if not energy.size:
        return 0.0
    level_db = 10 * np.log10(energy / energy[0])
    low_db = -35.0 if level_db[-1] <= -35 else -25.0
    fitted = np.flatnonzero((level_db <= -5) & (level_db >= low_db))
    if fitted.size < 2 or np.ptp(level_db[fitted]) < 1:
        return 0.0
    return -60 / float(np.polyfit(fitted / sample_rate_hz, level_db[fitted], 1)[0])


def simulate_room(
    seed: int | np.random.SeedSequence | np.random.Generator,
    ranges: RoomRanges,
    receiver: StereoPair,
    places: int,
    sample_rate_hz: int,
    name: str,
    distance_range_m: tuple[float, float] = (1.0, 3.0),
) -> RirRoom:
    """Draw a room and places in it, and simulate the responses to a receiver in its centre.

    Every direction class gets as many places as every other, give or take one. Places are
    at the receiver's height; azimuths are uniform in their class, distances uniform
    between the lower bound and the upper one or the wall less its margin, whichever is nearer.

    Args:
      seed: equal seeds and arguments give equal rooms.
      ranges: ranges that the room is drawn from.
      receiver: microphones, which look along +x.
      places: number of places, n.
      sample_rate_hz: rate of the responses.
      name: name of the room.
      distance_range_m: lowest and highest distance of a place.

    Returns:
      The room, its responses 0.5 s long.

    Raises:
      InputError: the drawn room is too small for the height or the lowest distance.

    Reference: papers/spatial_clap.md (receiver and heights); distances are our choice.
    """
    rng = np.random.default_rng(seed)
    room = sample_room(rng, ranges, name)
    azimuth_deg = _draw_azimuths_deg(rng, places)
    low, high = distance_range_m
    reach_m = np.minimum(_reach_m(room, azimuth_deg), high)
    if not (0 < low <= reach_m.min()) or receiver.height_m > room.size_m[2] - WALL_MARGIN_M:
        size = " x ".join(f"{side:.2f}" for side in room.size_m)
        raise InputError(
            f"distance_range_m ({low:g}, {high:g}) and receiver height {receiver.height_m:g} m do "
            f"not fit room {name!r} of {size} m with {WALL_MARGIN_M:g} m to the walls; "
            "take larger rooms or a lower distance."
        )
    distance_m = rng.uniform(low, reach_m).astype(np.float32)
    rirs = image_source_rirs(room, receiver, azimuth_deg, distance_m, sample_rate_hz)
    return RirRoom(
        name=name,
        size_m=room.size_m,
        t60_s=_median_t60_s(rirs, sample_rate_hz),
        rirs=rirs,
        azimuth_deg=azimuth_deg,
        elevation_deg=np.zeros_like(azimuth_deg),
        distance_m=distance_m,
        sample_rate_hz=sample_rate_hz,
    )


def image_source_rirs(
    room: Room,
    receiver: StereoPair,
    azimuth_deg: Float32[np.ndarray, "n"],
    distance_m: Float32[np.ndarray, "n"],
    sample_rate_hz: int,
) -> Float32[np.ndarray, "n c r"]:
    """Responses of a shoebox room by image sources, receiver in the centre of its floor plan.

    Reflections are followed until the walls have taken 60 dB, 50 orders at most.

    Args:
      room: the shoebox.
      receiver: microphones, which look along +x.
      azimuth_deg: azimuths of the places.
      distance_m: distances of the places from the receiver's centre, at its height.
      sample_rate_hz: rate of the responses.

    Returns:
      Responses of 0.5 s. The direct sound arrives at distance / 343 m/s with the
      amplitude 1 / distance.

    Reference: Allen and Berkley 1979, as built in pyroomacoustics.
    """
    length, width, _ = room.size_m
    center_m = np.array([length / 2, width / 2, receiver.height_m])
    angle = np.radians(azimuth_deg.astype(np.float64))
    ahead = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)
    places_m = center_m + distance_m[:, None] * ahead
    loss_db = -10 * math.log10(1 - room.absorption)
    shoebox = pra.ShoeBox(
        room.size_m,
        fs=sample_rate_hz,
        materials=pra.Material(room.absorption),
        max_order=min(math.ceil(_REFLECTION_LOSS_DB / loss_db), _MAX_ORDER),
    )
    # Responses are the same both ways. Image sources are found once a source, and there
    # are fewer microphones than places, so microphones are what sounds here.
    for microphone in receiver.positions_m(center_m):
        shoebox.add_source(microphone)
    shoebox.add_microphone_array(np.ascontiguousarray(places_m.T))
    with _one_thread():
        shoebox.compute_rir()
    # pyroomacoustics delays all responses by half of its fractional delay filter.
    lag = pra.constants.get("frac_delay_length") // 2
    samples = round(RIR_LENGTH_S * sample_rate_hz)
    by_place: Any = shoebox.rir
    return _stack([np.stack(_padded(place, lag + samples))[:, lag:] for place in by_place])


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


def _draw_azimuths_deg(rng: np.random.Generator, places: int) -> Float32[np.ndarray, "n"]:
    """Azimuths whose classes are as even as `places` allows."""
    if places < 1:
        raise InputError(f"places {places} must be at least 1 a room.")
    classes = len(STEREO_DIRECTIONS)
    rounds = [rng.permutation(classes) for _ in range(math.ceil(places / classes))]
    drawn = [STEREO_DIRECTIONS[index] for index in np.concatenate(rounds)[:places]]
    return np.array([rng.uniform(one.low_deg, one.high_deg) for one in drawn], np.float32)


def _reach_m(room: Room, azimuth_deg: Float32[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Distance from the room's centre to the wall less its margin, along each azimuth."""
    angle = np.radians(azimuth_deg.astype(np.float64))
    length, width, _ = room.size_m
    ahead = (length / 2 - WALL_MARGIN_M) / np.maximum(np.abs(np.cos(angle)), 1e-9)
    aside = (width / 2 - WALL_MARGIN_M) / np.maximum(np.abs(np.sin(angle)), 1e-9)
    return np.minimum(ahead, aside)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in an order that does not depend on the machine's number of cores."""
    before = pra.constants.get("num_threads")
    pra.constants.set("num_threads", 1)
    try:
        yield
    finally:
        pra.constants.set("num_threads", before)


def _padded(responses: list[np.ndarray], samples: int) -> list[np.ndarray]:
    cut = [response[..., :samples] for response in responses]
    return [np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, samples - one.shape[-1])]) for one in cut]


def _stack(responses: list[np.ndarray]) -> Float32[np.ndarray, "n c r"]:
    longest = max(one.shape[-1] for one in responses)
    return np.ascontiguousarray(np.stack(_padded(responses, longest)), np.float32)


def _median_t60_s(rirs: Float32[np.ndarray, "n c r"], sample_rate_hz: int) -> float:
    channels = rirs.reshape(-1, rirs.shape[-1])
    return float(np.median([measure_t60_s(rir, sample_rate_hz) for rir in channels]))


def _measured_room(name: str, places: list[_Place], sample_rate_hz: int) -> RirRoom:
    rirs = _stack([place.rir for place in places])
    return RirRoom(
        name=name,
        size_m=(0.0, 0.0, 0.0),
        t60_s=_median_t60_s(rirs, sample_rate_hz),
        rirs=rirs,
        azimuth_deg=np.array([place.azimuth_deg for place in places], np.float32),
        elevation_deg=np.array([place.elevation_deg for place in places], np.float32),
        distance_m=np.array([place.distance_m for place in places], np.float32),
        sample_rate_hz=sample_rate_hz,
    )


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of the CSV, each with 'file: row number' (the header is row 1) for errors."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
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
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
        inside = file.resolve().is_relative_to(folder.resolve()) and not os.path.isabs(filename)
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise InputError(
            f"{where}: filename {filename!r} leaves the csv's folder; give paths inside it."
        )
    if not file.is_file():
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
            audio = sound.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{label} cannot be read ({error}); give a whole wav file.") from error
    if len(audio) < declared:
        raise InputError(f"{label} is truncated ({len(audio)} of {declared} samples); copy anew.")
    return np.ascontiguousarray(audio.T), rate_hz


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
            rirs = np.asarray(sofa["Data.IR"][()], np.float64)
            rates_hz = np.unique(sofa["Data.SamplingRate"][()])
            delays = np.atleast_2d(sofa["Data.Delay"][()] if "Data.Delay" in sofa else [[0.0]])
            kind = sofa["SourcePosition"].attrs.get("Type", b"spherical")
            positions = np.atleast_2d(sofa["SourcePosition"][()]).astype(np.float64)
            receivers = sofa["ReceiverPosition"][()] if "ReceiverPosition" in sofa else None
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{label} cannot be read ({error}); give a whole SOFA file.") from error
    if rirs.ndim != 3 or rirs.shape[1] != 2:
        raise InputError(
            f"{label}: Data.IR of shape {rirs.shape} must be (measurements, 2 receivers, samples)."
        )
    if (kind.decode() if isinstance(kind, bytes) else str(kind)).lower() != "spherical":
        raise InputError(f"{label}: SourcePosition is {kind!r}; it must be spherical, in degrees.")
    if positions.shape not in ((1, 3), (len(rirs), 3)) or not np.isfinite(positions).all():
        raise InputError(
            f"{label}: SourcePosition of shape {positions.shape} must hold azimuth, elevation and "
            f"distance of {len(rirs)} measurements."
        )
    if rates_hz.size != 1 or not 0 < rates_hz[0] < np.inf:
        raise InputError(f"{label}: Data.SamplingRate {rates_hz} must be one rate above 0.")
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


def _usable(
    rir: Float[np.ndarray, "c r"], rate_hz: float, sample_rate_hz: int, label: str
) -> Float32[np.ndarray, "c r_out"]:
    """A checked response at the wanted rate."""
    if rir.shape[0] != 2:
        raise InputError(f"{label} has {rir.shape[0]} channels; a stereo response has 2 (L, R).")
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
