"""Stereo from ambisonics by a viewing direction, folded azimuths and the camera's picture."""

import numpy as np
import pytest

from spatial_clap_jax.acoustics.foa import foa_gains, unit_vectors
from spatial_clap_jax.acoustics.stereo_view import (
    fold_azimuth_deg,
    is_on_screen,
    picture_position,
    stereo_of_foa,
)


def wave(azimuth_deg):
    """One sample of a plane wave, W, Y, Z, X."""
    return foa_gains(unit_vectors(np.array(azimuth_deg), np.array(0.0)))[:, None]


def test_a_source_on_the_left_is_heard_on_the_left():
    np.testing.assert_allclose(stereo_of_foa(wave(90.0), 0.0), [[2.0], [0.0]], atol=1e-12)
    np.testing.assert_allclose(stereo_of_foa(wave(-90.0), 0.0), [[0.0], [2.0]], atol=1e-12)
    np.testing.assert_allclose(stereo_of_foa(wave(0.0), 0.0), [[1.0], [1.0]], atol=1e-12)


@pytest.mark.parametrize("view_deg", [0.0, 30.0, 90.0, 200.0, 359.0])
@pytest.mark.parametrize("azimuth_deg", [-140.0, -35.0, 0.0, 77.0, 180.0])
def test_the_view_is_the_tasks_formula(azimuth_deg, view_deg):
    foa = np.random.default_rng(0).standard_normal((3, 4, 5))
    w, y, _, x = np.moveaxis(foa, 1, 0)
    side = np.sin(np.radians(view_deg)) * x + np.cos(np.radians(view_deg)) * y
    expected = np.stack([w + side, w - side], axis=1)
    np.testing.assert_allclose(stereo_of_foa(foa, view_deg), expected, atol=1e-12)
    # A source at azimuth a is heard at a + view_deg.
    turned = stereo_of_foa(wave(azimuth_deg + view_deg), 0.0)
    np.testing.assert_allclose(stereo_of_foa(wave(azimuth_deg), view_deg), turned, atol=1e-12)


def test_front_and_back_fold_together():
    azimuth_deg = np.array([-180.0, -170, -91, -90, 0, 90, 91, 179, 180, 270, -350])
    folded = fold_azimuth_deg(azimuth_deg)
    np.testing.assert_array_equal(folded, [0, -10, -89, -90, 0, 90, 89, 1, 0, -90, 10])
    # What folds together sounds the same.
    for one, other in zip(azimuth_deg, folded, strict=True):
        np.testing.assert_allclose(
            stereo_of_foa(wave(one), 0.0), stereo_of_foa(wave(other), 0.0), atol=1e-9
        )


def test_edges_of_the_picture():
    # The vertical field of 640 x 360 pixels: half of it is atan(tan 50 * 360 / 640).
    half_deg = np.degrees(np.arctan(np.tan(np.radians(50)) * 9 / 16))
    assert half_deg == pytest.approx(33.84, abs=0.005)
    position = picture_position(
        np.array([50.0, -50.0, 0.0, 0.0, 0.0, 180.0, 90.0]),
        np.array([0.0, 0.0, 0.0, half_deg, -half_deg, 0.0, 0.0]),
    )
    expected = [[-1, 0], [1, 0], [0, 0], [0, -1], [0, 1], [np.nan] * 2, [np.nan] * 2]
    np.testing.assert_allclose(position, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "inside"),
    [
        (50.0, 0.0, True),
        (50.1, 0.0, False),
        (-50.0, 0.0, True),
        (-51.0, 0.0, False),
        (0.0, 33.8, True),
        (0.0, 33.9, False),
        # Towards the sides the picture holds less height: 23.3 degrees at 50.
        (49.9, 23.0, True),
        (49.9, 24.0, False),
        # Behind the camera, though it folds to the front.
        (180.0, 0.0, False),
        (-170.0, 0.0, False),
        (90.0, 0.0, False),
    ],
)
def test_on_screen_is_inside_of_the_picture(azimuth_deg, elevation_deg, inside):
    assert is_on_screen(np.array(azimuth_deg), np.array(elevation_deg)) == inside
    # Left and right, up and down alike.
    assert is_on_screen(np.array(-azimuth_deg), np.array(-elevation_deg)) == inside
