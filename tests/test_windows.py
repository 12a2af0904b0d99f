"""Windows, repeats and views by hand; the host's log-mel against the jitted one."""

import jax
import numpy as np
import pytest

from spatial_clap_jax import features, windows
from spatial_clap_jax.errors import InputError


def test_repeat_pad_by_hand():
    audio = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(
        windows.repeat_pad(audio, 8), [[1, 2, 3, 1, 2, 3, 0, 0], [4, 5, 6, 4, 5, 6, 0, 0]]
    )
    np.testing.assert_array_equal(windows.repeat_pad(audio, 5)[0], [1, 2, 3, 0, 0])
    np.testing.assert_array_equal(windows.repeat_pad(audio, 3), audio)
    np.testing.assert_array_equal(windows.repeat_pad(np.ones(1), 4), np.ones(4))


def ramp(frames):
    return np.arange(frames, dtype=np.float32)[:, None] + np.float32([0.0, 1000.0])


def test_fusion_views_by_hand():
    # 5 possible starts fall into thirds 0 1, 2 3 and 4; 7 frames shrink to 3 at 1 2/3 +- 7/3.
    views = windows.fusion_views(ramp(7), frames=3)[..., 0]
    np.testing.assert_allclose(views[0], [2 / 3, 3, 16 / 3], atol=1e-6)
    np.testing.assert_array_equal(views[1:], [[0, 1, 2], [2, 3, 4], [4, 5, 6]])
    views = windows.fusion_views(ramp(7), frames=3, starts=(4, 1, 2))[..., 1]
    np.testing.assert_array_equal(views[1:] - 1000, [[4, 5, 6], [1, 2, 3], [2, 3, 4]])


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(101, (0, 1, 0)), (102, (0, 1, 2)), (103, (0, 2, 3)), (109, (1, 5, 8)), (400, (50, 150, 250))],
)
def test_default_crops_start_in_the_middle_of_each_third(frames, starts):
    views = windows.fusion_views(ramp(frames), frames=100)
    assert views.shape == (4, 100, 2)
    assert tuple(views[1:, 0, 0].astype(int).tolist()) == starts
    np.testing.assert_array_equal(views, windows.fusion_views(ramp(frames), 100, starts))
    steps = np.diff(views[0, 1:-1], axis=0)
    np.testing.assert_allclose(steps, frames / 100, rtol=1e-3)


def test_fusion_views_of_what_fits_are_all_the_same():
    levels = np.random.default_rng(0).normal(size=(2, 2, 13, 32)).astype(np.float32)
    views = windows.fusion_views(levels, frames=levels.shape[-2])
    assert views.shape == (2, 2, 4, 13, 32)
    np.testing.assert_array_equal(views, np.stack([levels] * 4, axis=-3))


@pytest.mark.parametrize("samples", [1025, 9600, 12_345])
@pytest.mark.parametrize(
    "config",
    [features.LAION_CLAP_LOG_MEL, features.CLAP_FUSION_LOG_MEL, features.M2D_LOG_MEL],
    ids=["slaney", "htk", "m2d"],
)
def test_the_hosts_log_mel_is_the_jitted_one(samples, config):
    # 9,600 is a whole number of hops.
    audio = (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
    expected = jax.jit(lambda audio: features.log_mel(audio, config))(audio)
    np.testing.assert_allclose(windows.log_mel_on_host(audio, config), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows.repeat_pad(np.zeros(9), 8), "9 samples, the window 8: need 1 to 8; cut"),
        (lambda: windows.repeat_pad(np.zeros(0), 8), "0 samples, the window 8: need 1 to 8"),
        (
            lambda: windows.fusion_views(ramp(9), 10),
            "9 frames, a view 10: need 10 or .* repeat_pad",
        ),
        (
            lambda: windows.fusion_views(ramp(9), 5, (0, 5, 1)),
            r"starts \(0, 5, 1\): .* 0 to 4, .* 9",
        ),
        (lambda: windows.fusion_views(ramp(9), 5, (0, -1, 1)), r"starts \(0, -1, 1\): need three"),
        (lambda: windows.fusion_views(ramp(9), 5, (0, 1)), r"starts \(0, 1\): need three"),
    ],
)
def test_errors_name_value_rule_and_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
