"""Responses of shoebox rooms in first-order ambisonics."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, Int

from spatial_clap_jax.acoustics.bands import drr_bands_db, t30_bands_s
from spatial_clap_jax.acoustics.foa import TETRAHEDRON, a_to_b, foa_gains, unit_vectors
from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.render import high_pass
from spatial_clap_jax.acoustics.rirs import WALL_MARGIN_M, RirRoom, measure_t60_s
from spatial_clap_jax.acoustics.rooms import (
    SPEED_OF_SOUND_M_S,
    FloorRanges,
    Room,
    mean_decay,
    sample_floor_room,
)
from spatial_clap_jax.errors import InputError

# Every image source is heard until then: (4/3) pi (34.3 m)^3 over the room's volume, from 120 in
# 277.4 x 5 m to 4900 in 13.3 x 2.6 m. Noise goes on from there.
_IMAGES_S = 0.1
_FADE_S = 0.01
# Responses end where the mean decay has lost this much, or at the length asked for.
_DECAY_DB = 50.0
# Half of the taps of a windowed sinc, the delay filter.
_HALF_TAPS = 20
_MOST_DRAWS = 1000


def simulate_foa_room(
    seed: int | np.random.SeedSequence | np.random.Generator,
    ranges: FloorRanges,
    receiver: Foa,
    places: int,
    sample_rate_hz: int,
    name: str,
    distance_range_m: tuple[float, float],
    elevation_range_deg: tuple[float, float],
    response_s: float,
    high_pass_hz: float,
) -> RirRoom:
    """Draw a room, the receiver's position and places around it, and simulate the responses.

    Azimuths are stratified over the whole circle, elevations uniform, distances uniform between
    the lower bound and the upper one or the wall less its margin, whichever is nearer. A place
    whose elevation leaves no distance is drawn again.

    Args:
      seed: equal seeds and arguments give equal rooms.
      ranges: ranges that the room is drawn from.
      receiver: the FOA receiver, which looks along +x.
      places: number of places, n.
      sample_rate_hz: rate of the responses.
      name: name of the room.
      distance_range_m: lowest and highest distance of a place.
      elevation_range_deg: lowest and highest elevation of a place.
      response_s: most seconds of a response.
      high_pass_hz: cutoff of the high-pass that the responses get before their T30 is measured.

    Returns:
      The room; T30 and DRR are measured in W of each response.

    Raises:
      InputError: the drawn room is too small for the receiver or the places.

    Reference: ELSA, arXiv 2409.11369 (ranges); draws and positions are our choice.
    """
    rng = np.random.default_rng(seed)
    room = sample_floor_room(rng, ranges, name)
    center_m = _draw_center_m(rng, room, receiver, distance_range_m[0])
    azimuth_deg, elevation_deg, distance_m = _draw_places(
        rng, room, center_m, places, distance_range_m, elevation_range_deg
    )
    rirs = foa_rirs(
        room,
        receiver,
        center_m,
        distance_m[:, None] * unit_vectors(azimuth_deg, elevation_deg),
        sample_rate_hz,
        min(response_s, _length_s(room, distance_range_m[1])),
        rng,
    )
    arrivals_s = distance_m / SPEED_OF_SOUND_M_S
    # Before the high-pass, whose ringing would count as reverberation of the lowest bands.
    drr = [
        drr_bands_db(rir[0], sample_rate_hz, arrival_s)
        for rir, arrival_s in zip(rirs, arrivals_s.tolist(), strict=True)
    ]
    rirs = high_pass(rirs, sample_rate_hz, high_pass_hz)
    t30_s = np.array([measure_t60_s(rir[0], sample_rate_hz) for rir in rirs], np.float32)
    return RirRoom(
        name=name,
        size_m=room.size_m,
        t60_s=float(np.median(t30_s)),
        rirs=rirs,
        azimuth_deg=azimuth_deg.astype(np.float32),
        elevation_deg=elevation_deg.astype(np.float32),
        distance_m=distance_m.astype(np.float32),
        sample_rate_hz=sample_rate_hz,
        t30_s=t30_s,
        drr_bands_db=np.stack(drr),
        t30_bands_s=np.stack([t30_bands_s(rir[0], sample_rate_hz) for rir in rirs]),
    )


def foa_rirs(
    room: Room,
    receiver: Foa,
    center_m: Float[np.ndarray, "3"],
    offsets_m: Float[np.ndarray, "n 3"],
    sample_rate_hz: int,
    length_s: float,
    rng: np.random.Generator,
    images_s: float = _IMAGES_S,
) -> Float32[np.ndarray, "n 4 r"]:
    """Responses of a shoebox room: image sources first, noise with their mean decay then.

    Image sources grow with the cube of time; after 0.1 s they follow each other so closely that
    only their mean energy, which `mean_decay` gives for each axis, can be told. Gaussian noise,
    independent in the four channels, takes over with that energy, cross-faded in power.

    Args:
      room: the shoebox.
      receiver: encoding; the tetrahedron's capsules hear the image sources, not the noise.
      center_m: the receiver's position in the room.
      offsets_m: places as seen from the receiver (x, y, z).
      sample_rate_hz: rate of the responses.
      length_s: length of the responses.
      rng: draws the noise.
      images_s: how long image sources are heard; from `length_s` on there is no noise.

    Returns:
      W, Y, Z, X. The direct sound arrives at distance / 343 m/s with the amplitude 1 / distance
      in W.

    Raises:
      InputError: a place or the receiver is not inside the room.

    Reference: Allen and Berkley 1979 (image sources); Lehmann and Johansson 2008 (noise with
      their mean decay as a tail).
    """
    _check_inside(room, center_m, offsets_m)
    samples = round(length_s * sample_rate_hz)
    time_s = np.arange(samples) / sample_rate_hz
    noise_share = np.clip((time_s - images_s) / _FADE_S + 1, 0, 1)
    heard_s = min(images_s, length_s) + _HALF_TAPS / sample_rate_hz
    rirs = np.zeros((len(offsets_m), 4, samples))
    for place, offset_m in enumerate(offsets_m):
        vectors_m, bounces = image_sources(
            room, center_m, center_m + offset_m, heard_s * SPEED_OF_SOUND_M_S
        )
        gains = (1 - room.absorption) ** (bounces / 2)
        rirs[place] = _heard(receiver, vectors_m, gains, sample_rate_hz, samples)
    if noise_share.any():
        start = int(np.argmax(noise_share > 0))
        power = _mean_power(room, time_s[start:]) / sample_rate_hz
        noise = rng.standard_normal((len(offsets_m), 4, samples - start)) * np.sqrt(power)
        rirs *= np.sqrt(1 - noise_share)
        rirs[..., start:] += noise * np.sqrt(noise_share[start:])
    return rirs.astype(np.float32)


def _mean_power(room: Room, time_s: Float[np.ndarray, "t"]) -> Float[np.ndarray, "4 t"]:
    """Mean energy a second in W, Y, Z, X, its logarithm interpolated over milliseconds."""
    points_s = np.arange(time_s[0], time_s[-1] + 1e-3, 1e-3)
    x, y, z = mean_decay(room, points_s)[0].T
    logarithms = np.log(np.stack([x + y + z, y, z, x]) + np.finfo(float).tiny)
    return np.exp(np.stack([np.interp(time_s, points_s, one) for one in logarithms]))


def image_sources(
    room: Room,
    center_m: Float[np.ndarray, "3"],
    place_m: Float[np.ndarray, "3"],
    within_m: float,
) -> tuple[Float[np.ndarray, "i 3"], Int[np.ndarray, "i"]]:
    """All image sources of a place within a distance of the receiver.

    Args:
      room: the shoebox, one corner in the origin.
      center_m: the receiver's position.
      place_m: the source's position.
      within_m: the distance.

    Returns:
      Vectors from the receiver to the image sources, and how often each was reflected.

    Reference: Allen and Berkley 1979.
    """
    along, bounces = [], []
    for size, place, center in zip(room.size_m, place_m, center_m, strict=True):
        most = math.ceil(within_m / size) + 1
        cells = np.arange(-most, most + 1)
        # In every second room of the lattice the source is mirrored.
        images = np.where(cells % 2 == 0, cells * size + place, (cells + 1) * size - place)
        along.append(images - center)
        bounces.append(np.abs(cells))
    x, y, z = np.meshgrid(*along, indexing="ij", sparse=True)
    kept = np.nonzero(x**2 + y**2 + z**2 <= within_m**2)
    vectors_m = np.stack([one[index] for one, index in zip(along, kept, strict=True)], axis=1)
    walls = np.stack([one[index] for one, index in zip(bounces, kept, strict=True)])
    return vectors_m, walls.sum(axis=0)


def _heard(
    receiver: Foa,
    vectors_m: Float[np.ndarray, "i 3"],
    gains: Float[np.ndarray, "i"],
    sample_rate_hz: int,
    samples: int,
) -> Float[np.ndarray, "4 r"]:
    """W, Y, Z, X of image sources."""
    if receiver.encoding == "ideal":
        distance_m = np.linalg.norm(vectors_m, axis=1)
        amplitude = (gains / distance_m)[:, None] * foa_gains(vectors_m / distance_m[:, None])
        return delayed_sum(distance_m, amplitude, sample_rate_hz, samples)
    capsules = []
    for look in TETRAHEDRON:
        seen_m = vectors_m - receiver.radius_m * look
        distance_m = np.linalg.norm(seen_m, axis=1)
        amplitude = gains / distance_m * 0.5 * (1 + seen_m @ look / distance_m)
        capsules.append(delayed_sum(distance_m, amplitude[:, None], sample_rate_hz, samples)[0])
    return a_to_b(np.stack(capsules))


def delayed_sum(
    distance_m: Float[np.ndarray, "i"],
    amplitude: Float[np.ndarray, "i c"],
    sample_rate_hz: int,
    samples: int,
) -> Float[np.ndarray, "c r"]:
    """Impulses that arrive when sound from their distances does, between samples too.

    Args:
      distance_m: of each impulse.
      amplitude: of each impulse in each channel.
      sample_rate_hz: rate of the result.
      samples: its length; what arrives later is left out.

    Returns:
      A sum of sincs under a Hann window of 41 samples.
    """
    delay = distance_m / SPEED_OF_SOUND_M_S * sample_rate_hz
    nearest = np.rint(delay).astype(np.int64)
    taps = np.arange(-_HALF_TAPS, _HALF_TAPS + 1)
    away = taps - (delay - nearest)[:, None]
    kernel = np.sinc(away) * np.square(np.cos(np.pi / 2 * away / (_HALF_TAPS + 1)))
    position = nearest[:, None] + taps
    # What falls off either end goes to one more bin, which is dropped.
    position[(position < 0) | (position >= samples)] = samples
    position = position.ravel()
    return np.stack(
        [
            np.bincount(position, (kernel * of_channel[:, None]).ravel(), samples + 1)[:samples]
            for of_channel in amplitude.T
        ]
    )


def _length_s(room: Room, farthest_m: float) -> float:
    """Until the mean decay has lost 50 dB, the way of the direct sound added."""
    time_s = np.linspace(0, 30, 1501)
    left = mean_decay(room, time_s)[1]
    over = left < left[0] * 10 ** (-_DECAY_DB / 10)
    decay_s = float(time_s[np.argmax(over)]) if over.any() else time_s[-1]
    return max(decay_s, _IMAGES_S) + farthest_m / SPEED_OF_SOUND_M_S


def _draw_center_m(
    rng: np.random.Generator, room: Room, receiver: Foa, nearest_m: float
) -> Float[np.ndarray, "3"]:
    """Where the receiver stands; all around it there is room for the nearest place."""
    length, width, _ = room.size_m
    if receiver.position == "centre":
        return np.array([length / 2, width / 2, receiver.height_m])
    free_m = nearest_m + WALL_MARGIN_M
    if min(length, width) < 2 * free_m:
        raise InputError(
            f"distance_range_m: places {nearest_m:g} m around the receiver do not fit room "
            f"{room.name!r} of {length:.2f} x {width:.2f} m with {WALL_MARGIN_M:g} m to the walls; "
            "take larger rooms or a lower distance."
        )
    x, y = (float(rng.uniform(free_m, side - free_m)) for side in (length, width))
    return np.array([x, y, receiver.height_m])


def _draw_places(
    rng: np.random.Generator,
    room: Room,
    center_m: Float[np.ndarray, "3"],
    places: int,
    distance_range_m: tuple[float, float],
    elevation_range_deg: tuple[float, float],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Azimuths, elevations and distances of places inside the room."""
    if places < 1:
        raise InputError(f"places {places} must be at least 1 a room.")
    low, high = distance_range_m
    strata = (rng.permutation(places) + rng.uniform(size=places)) / places
    azimuth_deg = 180 - 360 * strata
    elevation_deg, distance_m = np.zeros(places), np.zeros(places)
    for place, azimuth in enumerate(azimuth_deg):
        for _ in range(_MOST_DRAWS):
            elevation = rng.uniform(*elevation_range_deg)
            direction = unit_vectors(np.array(azimuth), np.array(elevation))
            reach_m = min(high, _reach_m(room, center_m, direction))
            if reach_m >= low:
                break
        else:
            size = " x ".join(f"{side:.2f}" for side in room.size_m)
            raise InputError(
                f"distance_range_m ({low:g}, {high:g}) and elevation_range_deg "
                f"{elevation_range_deg} leave room {room.name!r} of {size} m with "
                f"{WALL_MARGIN_M:g} m to its walls, floor and ceiling from a receiver "
                f"{center_m[2]:g} m high; take larger rooms, a lower distance or elevation."
            )
        elevation_deg[place], distance_m[place] = elevation, rng.uniform(low, reach_m)
    return azimuth_deg, elevation_deg, distance_m


def _reach_m(
    room: Room, center_m: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]
) -> float:
    """Distance to the wall, floor or ceiling, less its margin, in a direction."""
    wall_m = np.where(direction > 0, np.asarray(room.size_m) - WALL_MARGIN_M, WALL_MARGIN_M)
    along = np.where(direction == 0, 1.0, direction)
    reach_m = np.where(direction == 0, np.inf, (wall_m - center_m) / along)
    return float(reach_m.min())


def _check_inside(
    room: Room, center_m: Float[np.ndarray, "3"], offsets_m: Float[np.ndarray, "n 3"]
) -> None:
    points_m = np.concatenate([center_m[None], center_m + offsets_m])
    outside = ~((points_m > 0) & (points_m < np.asarray(room.size_m))).all(axis=1)
    if outside.any():
        first = int(np.argmax(outside))
        point = ", ".join(f"{side:.2f}" for side in points_m[first])
        size = " x ".join(f"{side:.2f}" for side in room.size_m)
        what = "the receiver" if first == 0 else f"place {first - 1}"
        raise InputError(
            f"room {room.name!r} of {size} m: {what} at ({point}) m is outside; lower its height "
            "or distance, or take a larger room."
        )
