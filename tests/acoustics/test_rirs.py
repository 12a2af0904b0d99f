"""Simulated responses against geometry and pyroomacoustics; reverberation times."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyroomacoustics as pra
import pytest
from pyroomacoustics.experimental import measure_rt60

import spatial_clap_jax
from spatial_clap_jax.acoustics.directions import direction_index
from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.rirs import (
    RIR_LENGTH_S,
    WALL_MARGIN_M,
    image_source_rirs,
    measure_t60_s,
    simulate_room,
)
from spatial_clap_jax.acoustics.rooms import Room, RoomRanges
from spatial_clap_jax.errors import InputError

RATE_HZ = 16_000
ROOM = Room("room", (8.0, 6.0, 3.5), 0.4)
DRY = Room("dry", (12.0, 12.0, 8.0), 0.99)


def _simulate(azimuth_deg, distance_m=2.0, room=ROOM):
    azimuth = np.array(azimuth_deg, np.float32)
    distance = np.full_like(azimuth, distance_m)
    return image_source_rirs(room, StereoPair(), azimuth, distance, RATE_HZ)


def _ears(azimuth_deg, distance_m):
    """Distances from a place to L and R, metres, by geometry."""
    angle = np.radians(azimuth_deg)
    place = distance_m * np.array([np.cos(angle), np.sin(angle)])
    return [np.hypot(place[0], place[1] - y) for y in (0.0849, -0.0849)]


@pytest.mark.parametrize("azimuth_deg", [-80.0, -30.0, 0.0, 45.0, 90.0])
def test_the_direct_sound_arrives_when_and_as_loud_as_geometry_says(azimuth_deg):
    direct = _simulate([azimuth_deg], 1.5, DRY)[0].astype(np.float64)[:, :200]
    bins = np.arange(30, 90)
    spectrum = np.fft.rfft(direct, 512)[:, bins]
    left_m, right_m = _ears(azimuth_deg, 1.5)
    delays = np.unwrap(-np.angle(spectrum)) * 512 / (2 * np.pi * bins)
    slope = [np.polyfit(bins, one * bins, 1)[0] for one in delays]
    np.testing.assert_allclose(slope, np.array([left_m, right_m]) / 343 * RATE_HZ, atol=0.05)
    between = np.unwrap(np.angle(spectrum[1] * spectrum[0].conj())) * 512 / (2 * np.pi * bins)
    itd = (left_m - right_m) / 343 * RATE_HZ
    assert np.median(between) == pytest.approx(itd, abs=0.02)
    level = np.abs(spectrum).mean(axis=1)
    np.testing.assert_allclose(level, [1 / left_m, 1 / right_m], rtol=0.02)


def test_responses_equal_those_of_pyroomacoustics_with_sound_at_the_place():
    azimuth_deg, distance_m = 40.0, 1.7
    angle = np.radians(azimuth_deg)
    place = np.array([4, 3, 1.5]) + distance_m * np.array([np.cos(angle), np.sin(angle), 0])
    shoebox = pra.ShoeBox(ROOM.size_m, fs=RATE_HZ, materials=pra.Material(0.4), max_order=28)
    shoebox.add_source(place)
    shoebox.add_microphone_array(np.array([[4, 4], [3.0849, 2.9151], [1.5, 1.5]]))
    shoebox.compute_rir()
    ours = _simulate([azimuth_deg], distance_m)[0]
    for channel in range(2):
        theirs = shoebox.rir[channel][0][40 : 40 + ours.shape[1]]
        np.testing.assert_allclose(ours[channel], theirs, atol=2e-4)


def test_mirrored_azimuths_swap_the_channels():
    rirs = _simulate([70.0, -70.0, 20.0, -20.0])
    np.testing.assert_allclose(rirs[0], rirs[1][::-1], atol=2e-4)
    np.testing.assert_allclose(rirs[2], rirs[3][::-1], atol=2e-4)
    assert np.abs(rirs[0] - rirs[1]).max() > 0.1


def test_a_simulated_room_is_stratified_inside_and_follows_its_seed():
    room = simulate_room(3, RoomRanges(), StereoPair(), 12, RATE_HZ, "train-3", (1.0, 5.0))
    classes = np.bincount([direction_index(float(one)) for one in room.azimuth_deg], minlength=5)
    assert set(classes) == {2, 3}
    assert room.rirs.shape == (12, 2, RIR_LENGTH_S * RATE_HZ)
    assert room.rirs.dtype == np.float32
    assert (room.elevation_deg == 0).all()
    angle = np.radians(room.azimuth_deg)
    ahead, aside = room.distance_m * np.cos(angle), room.distance_m * np.sin(angle)
    assert (room.distance_m >= 1).all()
    assert (ahead <= room.size_m[0] / 2 - WALL_MARGIN_M + 1e-5).all()
    assert (np.abs(aside) <= room.size_m[1] / 2 - WALL_MARGIN_M + 1e-5).all()
    first = np.array([np.flatnonzero(np.abs(rir[0]) > 0.05)[0] for rir in room.rirs])
    np.testing.assert_allclose(first, room.distance_m / 343 * RATE_HZ, atol=12)
    oracle = [measure_rt60(rir, RATE_HZ, decay_db=30) for rir in room.rirs.reshape(24, -1)]
    assert room.t60_s == pytest.approx(np.median(oracle), rel=0.03)
    again = simulate_room(3, RoomRanges(), StereoPair(), 12, RATE_HZ, "train-3", (1.0, 5.0))
    np.testing.assert_array_equal(again.rirs, room.rirs)
    other = simulate_room(4, RoomRanges(), StereoPair(), 2, RATE_HZ, "train-4")
    assert other.size_m != room.size_m


def test_the_number_of_cores_does_not_change_a_response():
    before = pra.constants.get("num_threads")
    try:
        rirs = []
        for threads in (1, 7):
            pra.constants.set("num_threads", threads)
            rirs.append(_simulate([10.0], 1.0))
            assert pra.constants.get("num_threads") == threads
    finally:
        pra.constants.set("num_threads", before)
    np.testing.assert_array_equal(rirs[0], rirs[1])


def test_a_room_that_cannot_hold_the_places_is_refused():
    ranges = RoomRanges(width_m=(2.0, 2.0))
    with pytest.raises(InputError, match=r"distance_range_m \(1, 3\) .* do not fit room 'tiny'"):
        simulate_room(0, ranges, StereoPair(), 5, RATE_HZ, "tiny")
    with pytest.raises(InputError, match="receiver height 4 m do not fit"):
        simulate_room(0, RoomRanges(), StereoPair(height_m=4.0), 5, RATE_HZ, "low")
    with pytest.raises(InputError, match="places 0 must be at least 1"):
        simulate_room(0, RoomRanges(), StereoPair(), 0, RATE_HZ, "none")


@pytest.mark.parametrize("t60_s", [0.2, 0.5, 0.9])
def test_t60_of_decaying_noise_is_found(t60_s):
    time_s = np.arange(int(1.2 * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(0).standard_normal(time_s.size)
    rir = noise * 10 ** (-3 * time_s / t60_s)
    measured = measure_t60_s(rir, RATE_HZ)
    assert measured == pytest.approx(t60_s, rel=0.03)
    assert measured == pytest.approx(measure_rt60(rir, RATE_HZ, decay_db=30), rel=0.02)
    assert measure_t60_s(rir[::2], RATE_HZ // 2) == pytest.approx(t60_s, rel=0.06)


@pytest.mark.parametrize(
    ("cut_db", "share"), [(24.0, 0.06), (30.0, 0.02), (36.0, 0.02), (45.0, 0.02)]
)
@pytest.mark.parametrize("t60_s", [0.2, 0.5, 2.0])
def test_t60_of_a_decay_that_is_cut_off_is_found_from_what_the_cut_leaves(t60_s, cut_db, share):
    time_s = np.arange(int(t60_s * cut_db / 60 * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(0).standard_normal((20, time_s.size))
    measured = [measure_t60_s(one, RATE_HZ) for one in noise * 10 ** (-3 * time_s / t60_s)]
    np.testing.assert_allclose(measured, t60_s, rtol=0.1 if cut_db > 24 else 0.14)
    assert np.mean(measured) == pytest.approx(t60_s, rel=share)


def test_t60_is_read_down_to_35_db_where_the_response_goes_on_below_45():
    # Energy that falls by 1 dB a sample for 24 samples and by 0.5 dB from then on.
    level_db = np.concatenate([-np.arange(24.0), -24 - 0.5 * np.arange(60)])
    decay = np.sqrt(-np.diff(10 ** (level_db / 10), append=0.0))
    of_t30 = -60 / np.polyfit(np.arange(5, 47), level_db[5:47], 1)[0] / 100
    assert measure_t60_s(decay, 100) == pytest.approx(of_t30, rel=1e-6)


def test_t60_of_an_exact_decay_is_exact_also_where_little_of_it_is_left():
    # Energy falls by 1 dB a sample for ever: 60 samples.
    decay = 10 ** (-np.arange(400) / 20)
    assert measure_t60_s(decay, 100) == pytest.approx(0.6, rel=1e-6)
    # The curve ends at -29 dB and is flatter below -26 dB, where nothing looks.
    level_db = np.concatenate([-np.arange(26.0), -26 - 0.25 * np.arange(13)])
    energy = 10 ** (level_db / 10)
    short = np.sqrt(energy - np.append(energy[1:], 0))
    assert measure_t60_s(short, 100) == pytest.approx(0.6, rel=1e-6)


@pytest.mark.parametrize(
    "rir", [np.zeros(50), np.eye(1, 50)[0], np.eye(1, 50)[0] + 0.3 * np.eye(1, 50, 49)[0]]
)
def test_t60_without_a_decay_is_zero(rir):
    assert measure_t60_s(rir, RATE_HZ) == 0


def test_the_simulator_is_imported_only_to_simulate():
    code = (
        "import sys, spatial_clap_jax.acoustics.rirs, spatial_clap_jax.acoustics.measured_rirs; "
        "assert 'pyroomacoustics' not in sys.modules"
    )
    root = Path(spatial_clap_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
