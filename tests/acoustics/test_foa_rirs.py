"""FOA responses: direct sound by geometry, images against pyroomacoustics, the tail, its rooms."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pyroomacoustics as pra
import pytest
import scipy.signal

from spatial_clap_jax.acoustics.foa import foa_gains, unit_vectors
from spatial_clap_jax.acoustics.foa_rirs import (
    delayed_sum,
    foa_rirs,
    image_sources,
    simulate_foa_room,
)
from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.render import high_pass
from spatial_clap_jax.acoustics.rirs import WALL_MARGIN_M, measure_t60_s
from spatial_clap_jax.acoustics.rooms import FloorRanges, Room, decay_time_s, mean_decay
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import StftConfig
from spatial_clap_jax.intensity import intensity_vectors

RATE_HZ = 16_000
IDEAL = Foa()
ROOM = Room("room", (6.0, 5.0, 3.0), 0.3)
CENTER_M = np.array([2.2, 2.0, 1.5])
OFFSET_M = np.array([1.0, 0.5, 0.2])
DRY = Room("dry", (30.0, 30.0, 30.0), 0.99)


def rirs_of(room, offsets_m, length_s, seed=0, receiver=IDEAL, center_m=CENTER_M, **kind):
    rng = np.random.default_rng(seed)
    offsets_m = np.atleast_2d(offsets_m).astype(float)
    return foa_rirs(room, receiver, center_m, offsets_m, RATE_HZ, length_s, rng, **kind)


@pytest.mark.parametrize("azimuth_deg", [90.0, 0.0, 180.0, -130.0])
@pytest.mark.parametrize("elevation_deg", [0.0, -40.0])
def test_the_direct_sound_arrives_encoded_by_its_direction(azimuth_deg, elevation_deg):
    direction = unit_vectors(np.array(azimuth_deg), np.array(elevation_deg))
    (rir,) = rirs_of(DRY, 2.0 * direction, 0.04, center_m=np.full(3, 15.0))
    spectrum = np.fft.rfft(rir.astype(float), 1024)[:, 60:300]
    # +90 degrees: Y is +W, X and Z are nothing.
    np.testing.assert_allclose(
        np.real(spectrum / spectrum[0]).mean(axis=1), foa_gains(direction), atol=2e-3
    )
    np.testing.assert_allclose(np.abs(spectrum[0]), 1 / 2.0, rtol=0.01)
    delay = np.polyfit(np.arange(60, 300), -np.unwrap(np.angle(spectrum[0])), 1)[0]
    assert delay * 1024 / (2 * np.pi) == pytest.approx(2.0 / 343 * RATE_HZ, abs=0.02)


def test_the_active_intensity_of_an_anechoic_source_points_at_it():
    """From the geometry to what the network hears, at every azimuth and elevation."""
    azimuth_deg, elevation_deg = (
        grid.ravel()
        for grid in np.meshgrid(np.arange(-180.0, 180.0, 30.0), np.arange(-90.0, 91.0, 22.5))
    )
    directions = unit_vectors(azimuth_deg, elevation_deg)
    # No wall is heard within the response.
    rirs = rirs_of(DRY, 1.5 * directions, 0.02, center_m=np.full(3, 15.0))
    sound = np.random.default_rng(1).standard_normal(4000)
    audio = scipy.signal.fftconvolve(rirs, sound[None, None], axes=-1).astype(np.float32)
    config = StftConfig(sample_rate_hz=RATE_HZ, n_fft=400, hop=100)
    heard = intensity_vectors(jnp.asarray(audio), config, "active")
    power = 10 ** (np.asarray(heard.level_db) / 10)
    mean = np.einsum("blf,blfv->bv", power, np.asarray(heard.active))
    assert angle_deg(mean, directions).max() < 1.0


def angle_deg(one, other):
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def test_delays_between_samples_and_what_is_too_late():
    out = delayed_sum(np.array([343.0 * 100.4 / RATE_HZ, 1000.0]), np.ones((2, 1)), RATE_HZ, 256)
    spectrum = np.fft.rfft(out[0])[5:80]
    delay = np.polyfit(np.arange(5, 80), -np.unwrap(np.angle(spectrum)), 1)[0] * 256 / (2 * np.pi)
    assert delay == pytest.approx(100.4, abs=1e-3)
    np.testing.assert_allclose(np.abs(spectrum), 1, atol=5e-3)


def test_images_are_those_of_pyroomacoustics():
    place_m = CENTER_M + OFFSET_M
    vectors_m, bounces = image_sources(ROOM, CENTER_M, place_m, 8.0)
    box = pra.ShoeBox(ROOM.size_m, fs=RATE_HZ, materials=pra.Material(0.3), max_order=8)
    box.add_source(place_m)
    box.add_microphone(CENTER_M)
    box.image_source_model()
    theirs_m = box.sources[0].images.T - CENTER_M
    near = np.linalg.norm(theirs_m, axis=1) <= 8.0
    order = np.lexsort(theirs_m[near].round(4).T), np.lexsort(vectors_m.round(4).T)
    np.testing.assert_allclose(vectors_m[order[1]], theirs_m[near][order[0]], atol=1e-4)
    damping = np.ravel(box.sources[0].damping)[near]
    np.testing.assert_allclose(0.7 ** (bounces[order[1]] / 2), damping[order[0]], rtol=1e-4)


def test_noise_goes_on_where_and_as_image_sources_would():
    """The same room with image sources alone, where that is feasible."""
    offsets_m = [[1.0, 0.5, 0.2], [-0.8, 0.9, -0.3]]
    room = Room("dull", (6.0, 5.0, 3.0), 0.45)
    seconds = decay_time_s(room, (-5.0, -35.0))
    whole, tailed = (
        high_pass(rirs_of(room, offsets_m, seconds, images_s=images_s), RATE_HZ)
        for images_s in (1.0, 0.1)
    )
    start = round(0.08 * RATE_HZ)
    np.testing.assert_array_equal(tailed[..., :start], whole[..., :start])
    for low_s, high_s in ((0.1, 0.15), (0.15, 0.23)):
        part = slice(round(low_s * RATE_HZ), round(high_s * RATE_HZ))
        levels = [np.square(one[..., part]).mean(axis=(0, 2)) for one in (tailed, whole)]
        np.testing.assert_allclose(10 * np.log10(levels[0] / levels[1]), 0, atol=1.0)
    for ours, theirs in zip(tailed, whole, strict=True):
        for channel in range(4):
            found, expected = (measure_t60_s(one[channel], RATE_HZ) for one in (ours, theirs))
            assert found == pytest.approx(expected, rel=0.06)


def test_noise_goes_on_in_the_mean_in_the_largest_room():
    """With 120 images before the noise, single responses are too uneven to be held against it."""
    hall = Room("hall", (20.0, 13.87, 5.0), 0.3)
    rng = np.random.default_rng(0)
    energy = []
    for _ in range(12):
        center_m = np.array([rng.uniform(2.3, 17.7), rng.uniform(2.3, 11.5), 1.5])
        azimuth_deg, elevation_deg = rng.uniform(-180, 180, 1), rng.uniform(-35, 35, 1)
        offset_m = rng.uniform(0.5, 2.0) * unit_vectors(azimuth_deg, elevation_deg)
        pair = [
            rirs_of(hall, offset_m, 0.3, len(energy), center_m=center_m, images_s=images_s)[0]
            for images_s in (1.0, 0.1)
        ]
        energy.append(np.square(high_pass(np.stack(pair), RATE_HZ)))
    whole, tailed = np.mean(energy, axis=0)
    for low_s, high_s in ((0.1, 0.2), (0.2, 0.3)):
        part = slice(round(low_s * RATE_HZ), round(high_s * RATE_HZ))
        levels = 10 * np.log10(tailed[:, part].mean(axis=1) / whole[:, part].mean(axis=1))
        np.testing.assert_allclose(levels[0], 0, atol=0.5)
        np.testing.assert_allclose(levels, 0, atol=1.0)


def test_noise_is_independent_in_the_channels_and_diffuse_in_a_cube():
    cube = Room("cube", (5.0, 5.0, 5.0), 0.2)
    rirs = rirs_of(cube, np.eye(3)[[0] * 20], 0.2, images_s=0.02)
    tail = np.moveaxis(rirs[..., round(0.03 * RATE_HZ) :], 1, 0).reshape(4, -1)
    np.testing.assert_allclose(np.corrcoef(tail), np.eye(4), atol=0.05)
    power = np.square(tail).mean(axis=1)
    np.testing.assert_allclose(power[1:] / power[0], 1 / 3, rtol=0.06)


def test_mean_decay_counts_the_energy_of_image_sources():
    vectors_m, bounces = image_sources(ROOM, CENTER_M, CENTER_M + OFFSET_M, 60.0)
    distance_m = np.linalg.norm(vectors_m, axis=1)
    energy = 0.7**bounces / distance_m**2
    along = energy[:, None] * np.square(vectors_m / distance_m[:, None])
    for low_s, high_s in ((0.03, 0.06), (0.1, 0.15)):
        heard = (distance_m > 343 * low_s) & (distance_m <= 343 * high_s)
        time_s = np.linspace(low_s, high_s, 50)
        expected = mean_decay(ROOM, time_s)[0].mean(axis=0) * (high_s - low_s)
        np.testing.assert_allclose(10 * np.log10(along[heard].sum(axis=0) / expected), 0, atol=0.6)
    left = mean_decay(ROOM, np.array([0.0, 0.1, 0.2]))[1]
    time_s = np.linspace(0.1, 0.2, 500)
    rate = mean_decay(ROOM, time_s)[0].sum(axis=1)
    assert left[1] - left[2] == pytest.approx(np.trapezoid(rate, time_s), rel=1e-3)


def test_the_tetrahedron_hears_what_the_ideal_receiver_does_at_low_frequencies():
    # Capsules 1.47 cm apart from the middle are together for a wave of a metre.
    offsets_m = [[1.2, 0.7, 0.3]]
    ideal, array = (
        rirs_of(ROOM, offsets_m, 0.09, receiver=Foa(encoding=encoding))[0]
        for encoding in ("ideal", "tetrahedron")
    )
    one, other = (np.fft.rfft(rir.astype(float), 2048)[:, 10:40] for rir in (ideal, array))
    assert np.linalg.norm(one - other) < 0.12 * np.linalg.norm(one)
    assert not np.allclose(ideal, array, atol=1e-3)


RANGES = FloorRanges(t30_s=(0.15, 0.5))


def simulated(
    seed=0,
    ranges=RANGES,
    receiver=IDEAL,
    places=8,
    distances=(0.5, 4.0),
    up=(-45.0, 45.0),
    high_pass_hz=50.0,
):
    return simulate_foa_room(
        seed, ranges, receiver, places, RATE_HZ, f"room{seed}", distances, up, 0.4, high_pass_hz
    )


def test_a_room_is_within_its_ranges_and_measured_from_its_responses():
    room = simulated(3)
    length, width, height = room.size_m
    assert 13.3 <= length * width <= 277.4
    assert 2.6 <= height <= 5.0
    # One place in each eighth of the circle.
    np.testing.assert_array_equal(np.sort(np.floor((room.azimuth_deg + 180) / 45 - 1e-6)), range(8))
    assert (np.abs(room.elevation_deg) <= 45).all()
    assert ((room.distance_m >= 0.5) & (room.distance_m <= 4)).all()
    assert room.rirs.shape[1] == 4
    assert room.rirs.shape[2] <= 0.4 * RATE_HZ
    aims = unit_vectors(room.azimuth_deg, room.elevation_deg)
    for place, rir in enumerate(room.rirs):
        assert room.t30_s[place] == np.float32(measure_t60_s(rir[0], RATE_HZ))
        onset = np.flatnonzero(np.abs(rir[0]) > 0.3 * np.abs(rir[0]).max())[0]
        assert onset / RATE_HZ * 343 == pytest.approx(room.distance_m[place], abs=0.06)
        # The direct sound, less what the high-pass takes, points at the place.
        direct = rir[:, onset - 3 : onset + 5].astype(float)
        vector = direct[[3, 1, 2]] @ direct[0]
        assert vector @ aims[place] > 0.97 * np.linalg.norm(vector)
    assert room.t60_s == pytest.approx(float(np.median(room.t30_s)))
    assert room.drr_bands_db.shape == room.t30_bands_s.shape == (8, 20)
    assert np.nanmedian(room.t30_bands_s) == pytest.approx(room.t60_s, rel=0.25)


def test_the_high_pass_is_no_reverberation():
    """Its ringing would be most of what follows the direct sound in the lowest bands."""
    usual, other = (simulated(3, places=1, high_pass_hz=hz) for hz in (50.0, 5.0))
    assert not np.array_equal(usual.rirs, other.rirs)
    np.testing.assert_array_equal(usual.drr_bands_db, other.drr_bands_db)


def test_rooms_follow_their_seeds_and_reach_over_the_ranges():
    one, again = simulated(5, places=2), simulated(5, places=2)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(again, field.name))
    rooms = [simulated(seed, places=1) for seed in range(14)]
    areas = np.array([room.size_m[0] * room.size_m[1] for room in rooms])
    assert areas.min() < 35
    assert areas.max() > 120
    times_s = np.array([room.t60_s for room in rooms])
    assert times_s.min() < 0.2
    assert times_s.max() > 0.35
    assert max(float(room.distance_m[0]) for room in rooms) > 2.5


@pytest.mark.parametrize("t30_s", [0.2, 0.6, 1.5])
def test_measured_times_are_near_the_drawn_ones(t30_s):
    ranges = FloorRanges(t30_s=(t30_s, t30_s))
    found = [
        simulate_foa_room(
            seed, ranges, Foa(), 2, 8000, "room", (1.0, 4.0), (0.0, 0.0), 2.0, 50.0
        ).t60_s
        for seed in range(4)
    ]
    assert np.mean(found) == pytest.approx(t30_s, rel=0.15)
    assert len(set(found)) == 4


def test_places_keep_from_the_walls():
    for seed in range(3):
        room = simulated(seed, places=6, receiver=Foa(position="centre"))
        offsets_m = room.distance_m[:, None] * unit_vectors(room.azimuth_deg, room.elevation_deg)
        points_m = np.array([room.size_m[0] / 2, room.size_m[1] / 2, 1.5]) + offsets_m
        assert (points_m >= WALL_MARGIN_M - 1e-4).all()
        assert (points_m <= np.array(room.size_m) - WALL_MARGIN_M + 1e-4).all()


def test_what_leaves_the_room_is_refused():
    with pytest.raises(InputError, match=r"room 'room' of 6.00 x 5.00 x 3.00 m: place 1 at .* out"):
        rirs_of(ROOM, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.6]], 0.1)
    with pytest.raises(
        InputError, match=r"the receiver at \(2.00, 2.00, 3.20\) m is outside; lower"
    ):
        rirs_of(ROOM, [1.0, 0.0, -1.0], 0.1, center_m=np.array([2.0, 2.0, 3.2]))
    low = FloorRanges(height_m=(2.5, 2.5), t30_s=(0.2, 0.2))
    with pytest.raises(InputError, match=r"elevation_range_deg \(60.0, 60.0\) leave room"):
        simulated(0, low, distances=(1.5, 4.0), up=(60.0, 60.0))
    with pytest.raises(InputError, match=r"places 3 m around the receiver do not fit room 'room0'"):
        simulated(0, FloorRanges(floor_area_m2=(14.0, 14.0)), distances=(3.0, 4.0))
    with pytest.raises(InputError, match="places 0 must be at least 1"):
        simulated(0, places=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Foa(height_m=0.0), r"Foa.height_m 0 must be above 0 metres"),
        (
            lambda: FloorRanges(t30_s=(0.5, 0.1)),
            r"FloorRanges.t30_s \(0.5, 0.1\) must hold 0 < low",
        ),
        (lambda: FloorRanges(aspect=(0.0, 1.0)), r"FloorRanges.aspect \(0, 1\) must hold 0 < low"),
    ],
)
def test_ranges_and_receivers_that_cannot_be(make, message):
    with pytest.raises(InputError, match=message):
        make()
