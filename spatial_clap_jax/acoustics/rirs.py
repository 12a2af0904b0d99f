"""Room impulse responses, their simulation, and the reverberation time they hold."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
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
# How far above the energy of a response's end its decay is read.
_ABOVE_END_DB = 10.0


@dataclass(frozen=True)
class RirRoom:
    """Responses from n places of one room to the c channels of its receiver.

    Azimuths are in [-90, 90] (+90 left) for a stereo pair, all round for FOA. `size_m` is
    (0, 0, 0) where it is unknown. `t30_s` is what `measure_t60_s` finds for each place (in W of
    FOA, the median of the channels of others), and `t60_s` the median over the room. The bands
    are those of `bands.BANDS_HZ`, or none.
    """

    name: str
    size_m: tuple[float, float, float]
    t60_s: float
    rirs: Float32[np.ndarray, "n c r"]
    azimuth_deg: Float32[np.ndarray, "n"]
    elevation_deg: Float32[np.ndarray, "n"]
    distance_m: Float32[np.ndarray, "n"]
    sample_rate_hz: int
    t30_s: Float32[np.ndarray, "n"]
    drr_bands_db: Float32[np.ndarray, "n bands"]
    t30_bands_s: Float32[np.ndarray, "n bands"]


def measure_t60_s(rir: Float[np.ndarray, "r"], sample_rate_hz: int) -> float:
    """Reverberation time of a response: the decay of its energy, extrapolated to 60 dB.

    A line is fitted to the backward-integrated energy from -5 dB down to -35 (T30), -25 (T20) or
    -15 (T10): the lowest that is 10 dB above what the last twentieth of the response holds. Nearer
    to it the curve falls for the response's end, and the time would come out too short. Decaying
    noise that is cut after 24, 30, 36 or 45 dB reads some 4, 1, 1 or 1 % too short in the mean (a
    single T60 of 0.2 s cut after 24 dB up to 14 %), and more where it is cut earlier. Background
    noise in a measured response is not compensated for and makes the time longer.

    Args:
      rir: impulse response.
      sample_rate_hz: rate of `rir`.

    Returns:
      Seconds; 0 for silence and for responses without a decay, such as an impulse.

    Reference: Schroeder 1965; ISO 3382-1 (T30 and T20); when which is taken is our choice.
    """
    energy = np.cumsum(np.square(rir[::-1], dtype=np.float64))[::-1]
    energy = energy[energy > 0]
    if not energy.size:
        return 0.0
    level_db = 10 * np.log10(energy / energy[0])
    floor_db = level_db[-math.ceil(energy.size / 20)] + _ABOVE_END_DB
    low_db = next((low_db for low_db in (-35.0, -25.0) if low_db >= floor_db), -15.0)
    fitted = np.flatnonzero((level_db <= -5) & (level_db >= low_db))
    if fitted.size < 2 or np.ptp(level_db[fitted]) < 1:
        return 0.0
    return -60 / float(np.polyfit(fitted / sample_rate_hz, level_db[fitted], 1)[0])


def measured_t60_s(
    rirs: Float32[np.ndarray, "n c r"], sample_rate_hz: int
) -> Float[np.ndarray, "n c"]:
    """What `measure_t60_s` finds for each place and channel."""
    return np.array([[measure_t60_s(channel, sample_rate_hz) for channel in rir] for rir in rirs])


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

    Reference: sarulab-speech/Moving-CLAP (receiver and heights); distances are our choice.
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
    times_s = measured_t60_s(rirs, sample_rate_hz)
    return RirRoom(
        name=name,
        size_m=room.size_m,
        t60_s=float(np.median(times_s)),
        rirs=rirs,
        azimuth_deg=azimuth_deg,
        elevation_deg=np.zeros_like(azimuth_deg),
        distance_m=distance_m,
        sample_rate_hz=sample_rate_hz,
        t30_s=np.median(times_s, axis=1).astype(np.float32),
        drr_bands_db=np.zeros((places, 0), np.float32),
        t30_bands_s=np.zeros((places, 0), np.float32),
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
    # Imported here, because workers that only read scenes would wait for it.
    import pyroomacoustics as pra

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
    return stack_responses([np.stack(_padded(place, lag + samples))[:, lag:] for place in by_place])


def stack_responses(responses: list[np.ndarray]) -> Float32[np.ndarray, "n c r"]:
    """Responses [c, r] of several lengths as one array; the shorter ones end in zeros."""
    longest = max(one.shape[-1] for one in responses)
    return np.ascontiguousarray(np.stack(_padded(responses, longest)), np.float32)


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
    import pyroomacoustics as pra

    before = pra.constants.get("num_threads")
    pra.constants.set("num_threads", 1)
    try:
        yield
    finally:
        pra.constants.set("num_threads", before)


def _padded(responses: list[np.ndarray], samples: int) -> list[np.ndarray]:
    cut = [response[..., :samples] for response in responses]
    return [np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, samples - one.shape[-1])]) for one in cut]
