"""Ambisonics: gains, conventions, the tetrahedron and rotation, against the definitions."""

import inspect

import numpy as np
import pytest

from spatial_clap_jax.acoustics.foa import (
    TETRAHEDRON,
    a_to_b,
    as_acn_sn3d,
    cardioids,
    foa_gains,
    mono_as_foa,
    rotate_foa,
    unit_vectors,
)
from spatial_clap_jax.errors import InputError

AZIMUTHS, ELEVATIONS = (one.ravel() for one in np.mgrid[-180:180:30, -90:91:30].astype(float))
DIRECTIONS = unit_vectors(AZIMUTHS, ELEVATIONS)


def plane_waves(signal=(1.0, -0.5, 2.0)):
    """[n 4 t], one from each direction."""
    return foa_gains(DIRECTIONS)[..., None] * np.array(signal)


def test_gains_are_those_of_sn3d():
    azimuth, elevation = np.radians(AZIMUTHS), np.radians(ELEVATIONS)
    w, y, z, x = foa_gains(DIRECTIONS).T
    np.testing.assert_allclose(w, 1)
    np.testing.assert_allclose(y, np.sin(azimuth) * np.cos(elevation), atol=1e-12)
    np.testing.assert_allclose(z, np.sin(elevation), atol=1e-12)
    np.testing.assert_allclose(x, np.cos(azimuth) * np.cos(elevation), atol=1e-12)
    # SN3D: the figures-of-eight together have the power of W, a third each over the sphere.
    np.testing.assert_allclose(x**2 + y**2 + z**2, w**2)


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "gains"),
    [
        (90, 0, [1, 1, 0, 0]),
        (-90, 0, [1, -1, 0, 0]),
        (0, 0, [1, 0, 0, 1]),
        (180, 0, [1, 0, 0, -1]),
        (37, 90, [1, 0, 1, 0]),
    ],
)
def test_left_is_plus_y_ahead_plus_x_and_up_plus_z(azimuth_deg, elevation_deg, gains):
    direction = unit_vectors(np.array(float(azimuth_deg)), np.array(float(elevation_deg)))
    np.testing.assert_allclose(foa_gains(direction), gains, atol=1e-12)


def test_other_conventions_are_converted_by_their_definitions():
    waves = plane_waves()
    w, y, z, x = np.moveaxis(waves, 1, 0)
    n3d = np.stack([w, 3**0.5 * y, 3**0.5 * z, 3**0.5 * x], axis=1)
    fuma = np.stack([w / 2**0.5, x, y, z], axis=1)
    np.testing.assert_allclose(as_acn_sn3d(n3d, "acn-n3d"), waves, atol=1e-12)
    np.testing.assert_allclose(as_acn_sn3d(fuma, "fuma"), waves, atol=1e-12)
    assert as_acn_sn3d(waves) is waves
    assert as_acn_sn3d(fuma.astype(np.float32), "fuma").dtype == np.float32


def test_what_is_no_foa_is_refused():
    with pytest.raises(InputError, match=r"foa_format 'ambix' is none of acn-sn3d, acn-n3d, fuma"):
        as_acn_sn3d(plane_waves(), "ambix")
    for channels in (1, 2, 9):
        with pytest.raises(InputError, match=rf"audio: {channels} channels where .* have 4"):
            as_acn_sn3d(np.zeros((channels, 5)))


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        *((as_acn_sn3d, (declared,)) for declared in ("acn-sn3d", "acn-n3d", "fuma")),
        (cardioids, ()),
        (a_to_b, ()),
        (rotate_foa, (45.0,)),
    ],
)
def test_integers_are_refused_in_place_of_being_cut_to_zeros(change, arguments):
    # Without the check of signatures, which nobody has outside of these tests.
    change = inspect.unwrap(change)
    with pytest.raises(InputError, match=r"audio: holds int16; .* divide integers .* \(32768"):
        change(np.full((4, 5), 1000, np.int16), *arguments)


def test_mono_stands_in_all_four_channels():
    audio = np.array([0.1, -0.2], np.float32)
    np.testing.assert_array_equal(mono_as_foa(audio), np.stack([audio] * 4))


def test_ideal_cardioids_become_the_encoding():
    """Each cardioid by its polar pattern, (1 + cos) / 2 of the angle to where it looks."""
    pattern = 0.5 * (1 + DIRECTIONS @ TETRAHEDRON.T)
    heard = pattern[..., None] * np.array([1.0, -0.5, 2.0])
    np.testing.assert_allclose(a_to_b(heard), plane_waves(), atol=1e-12)
    np.testing.assert_allclose(cardioids(plane_waves()), heard, atol=1e-12)


def test_the_capsules_of_the_left_make_y_and_those_above_make_z():
    front_left_up, front_right_down, back_left_down, back_right_up = np.eye(4)
    for left, right in ((front_left_up, front_right_down), (back_left_down, back_right_up)):
        assert a_to_b(left[:, None])[1, 0] > 0 > a_to_b(right[:, None])[1, 0]
    for up, down in ((front_left_up, front_right_down), (back_right_up, back_left_down)):
        assert a_to_b(up[:, None])[2, 0] > 0 > a_to_b(down[:, None])[2, 0]


@pytest.mark.parametrize("yaw_deg", [-170.0, -45.0, 0.0, 30.0, 90.0])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_turned_field_is_the_field_of_turned_sources(yaw_deg, mirror):
    turned = rotate_foa(plane_waves(), yaw_deg, mirror)
    azimuths = (-AZIMUTHS if mirror else AZIMUTHS) + yaw_deg
    expected = foa_gains(unit_vectors(azimuths, ELEVATIONS))[..., None] * np.array([1, -0.5, 2])
    np.testing.assert_allclose(turned, expected, atol=1e-12)


def test_turning_back_is_the_identity():
    field = np.random.default_rng(0).standard_normal((2, 4, 50)).astype(np.float32)
    back = rotate_foa(rotate_foa(field, 77.0), -77.0)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, field, atol=1e-6)
    # A mirrored turn is its own inverse.
    np.testing.assert_allclose(
        rotate_foa(rotate_foa(field, 77.0, True), 77.0, True), field, atol=1e-6
    )
