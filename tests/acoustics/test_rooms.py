"""Rooms and receivers: ranges, Sabine's law, geometry."""

import numpy as np
import pyroomacoustics as pra
import pytest

from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.rooms import Room, RoomRanges, sabine_t60_s, sample_room
from spatial_clap_jax.errors import InputError

SHEET_SIZES = [(6.0, 5.0, 3.0), (8.0, 6.0, 3.5), (10.0, 8.0, 4.0)]


def test_the_ranges_contain_the_published_rooms():
    ranges = RoomRanges()
    for size in SHEET_SIZES:
        spans = (ranges.length_m, ranges.width_m, ranges.height_m)
        for side, (low, high) in zip(size, spans, strict=True):
            assert low <= side <= high
    assert ranges.absorption[0] <= 0.3 < 0.5 <= ranges.absorption[1]


@pytest.mark.parametrize("size", SHEET_SIZES)
@pytest.mark.parametrize("t60_s", [0.3, 0.5])
def test_sabine_inverts_the_absorption_that_pyroomacoustics_finds(size, t60_s):
    absorption, _ = pra.inverse_sabine(t60_s, list(size))
    assert sabine_t60_s(Room("room", size, absorption)) == pytest.approx(t60_s, rel=1e-6)


def test_drawn_rooms_fill_their_ranges_and_follow_the_seed():
    ranges = RoomRanges()
    rooms = [sample_room(np.random.default_rng(seed), ranges, "room") for seed in range(300)]
    drawn = np.array([(*room.size_m, room.absorption) for room in rooms])
    spans = np.array([ranges.length_m, ranges.width_m, ranges.height_m, ranges.absorption])
    extent = spans[:, 1] - spans[:, 0]
    assert (drawn >= spans[:, 0]).all()
    assert (drawn <= spans[:, 1]).all()
    assert (np.ptp(drawn, axis=0) > 0.95 * extent).all()
    assert sample_room(np.random.default_rng(7), ranges, "room") == rooms[7]


def test_ranges_out_of_order_are_refused():
    with pytest.raises(InputError, match=r"RoomRanges.width_m \(5, 4\) must hold 0 < low <= high"):
        RoomRanges(width_m=(5.0, 4.0))
    with pytest.raises(InputError, match=r"RoomRanges.absorption \(0.3, 1\) .* < 1"):
        RoomRanges(absorption=(0.3, 1.0))


def test_the_pair_has_left_towards_positive_y():
    positions = StereoPair().positions_m(np.array([3.0, 2.0, 1.5]))
    np.testing.assert_allclose(positions, [[3, 2.0849, 1.5], [3, 1.9151, 1.5]])
    with pytest.raises(InputError, match=r"StereoPair.spacing_m 0 must be above 0"):
        StereoPair(spacing_m=0.0)
