"""Band measures on decays and impulses whose numbers are known."""

import numpy as np
import pytest
from scipy import signal

from spatial_clap_jax.acoustics.bands import BANDS_HZ, drr_bands_db, t30_bands_s

RATE_HZ = 16_000


def decaying_noise(t30_s, seconds=1.2, seed=0):
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(time_s.size)
    return noise * 10 ** (-3 * time_s / t30_s)


def test_bands_are_third_octaves():
    assert len(BANDS_HZ) == 20
    ratios = np.array(BANDS_HZ[1:]) / np.array(BANDS_HZ[:-1])
    np.testing.assert_allclose(ratios, 2 ** (1 / 3), rtol=0.03)


def test_t30_of_decaying_noise_is_found_in_every_band():
    measured = np.mean(
        [t30_bands_s(decaying_noise(0.6, seed=n), RATE_HZ) for n in range(4)], axis=0
    )
    np.testing.assert_allclose(measured, 0.6, rtol=0.2)
    np.testing.assert_allclose(measured[10:], 0.6, rtol=0.04)


def test_each_band_has_its_own_t30():
    """Slow below 500 Hz, fast above 1 kHz."""
    slow, fast = decaying_noise(0.9), decaying_noise(0.3, seed=1)
    parts = [
        signal.sosfilt(signal.butter(8, 700, kind, fs=RATE_HZ, output="sos"), noise)
        for kind, noise in (("lowpass", slow), ("highpass", fast))
    ]
    measured = t30_bands_s(np.sum(parts, axis=0), RATE_HZ)
    np.testing.assert_allclose(measured[5:9], 0.9, rtol=0.2)
    np.testing.assert_allclose(measured[14:], 0.3, rtol=0.1)


def test_what_cannot_be_measured_is_nan():
    # 63 Hz has a bandwidth of 14.6 Hz: too narrow for 0.2 s, wide enough for 0.6 s.
    short = t30_bands_s(decaying_noise(0.2), RATE_HZ)
    assert np.isnan(short[0])
    assert np.isfinite(short[5:]).all()
    assert np.isnan(t30_bands_s(np.zeros(2000), RATE_HZ)).all()
    at_8_khz = t30_bands_s(decaying_noise(0.6)[::2], RATE_HZ // 2)
    assert np.isfinite(at_8_khz[:18]).all()
    assert np.isnan(at_8_khz[18:]).all()
    direct = np.eye(1, 2000, 100)[0]
    assert np.isnan(drr_bands_db(direct, RATE_HZ, 100 / RATE_HZ)).all()


@pytest.mark.parametrize("ratio_db", [-6.0, 12.0])
def test_drr_of_two_impulses_is_the_ratio_of_their_energies_in_every_band(ratio_db):
    rir = np.zeros(4000)
    rir[100], rir[400] = 10 ** (ratio_db / 20), 1.0
    measured = drr_bands_db(rir, RATE_HZ, 100 / RATE_HZ)
    np.testing.assert_allclose(measured, ratio_db, atol=1e-5)


def test_drr_differs_by_band_where_the_late_sound_does():
    rir = np.zeros(8000)
    rir[50] = 1.0
    tone = np.sin(2 * np.pi * 2000 * np.arange(4000) / RATE_HZ) * np.hanning(4000)
    rir[1000:5000] += 0.05 * tone
    measured = drr_bands_db(rir, RATE_HZ, 50 / RATE_HZ)
    assert np.argmin(measured) == BANDS_HZ.index(2000.0)
