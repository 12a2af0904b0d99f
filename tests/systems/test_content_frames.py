"""Features of moments: what is pooled, when it is, and of audio of any length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax import features
from spatial_clap_jax.features import M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.models.cnn import AttentionPool, CnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.content import (
    CONTENT_NAMES,
    Augmentation,
    content_encoder,
    content_frames,
    encode_content,
    frame_step_s,
    frames_of_audio,
)

# 0.64 s are 128 frames and one; an HTSAT sees them in 32 steps.
RATE_HZ, WINDOW_S = 16_000, 0.64
MEL = LogMelConfig(sample_rate_hz=RATE_HZ, n_fft=256, hop=80, mels=16, high_hz=8000.0)
NATURAL = LogMelConfig(
    sample_rate_hz=RATE_HZ, n_fft=256, hop=80, mels=16, high_hz=8000.0, level="natural"
)
HTSAT = HtsatConfig(64, 16, embed_dim=8, depths=(2, 2), heads=(2, 2), window=4)
VIT = VitConfig(mels=16, frames=60, patch=(8, 8), width=8, layers=1, heads=2)
CNN = CnnConfig((4, 4), (6,), ((2, 2),), width=8, heads=2)
# Shape, front end, normalisation, seconds of a step.
ENCODERS = {
    "htsat": (HTSAT, MEL, None, 0.02),
    "vit": (VIT, NATURAL, (-7.0, 4.0), 0.04),
    "cnn": (CNN, MEL, None, 0.04),
}
STILL = Augmentation(None, 0.0, None)
SAMPLES = round(WINDOW_S * RATE_HZ)


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(0).normal(0, 0.1, (2, SAMPLES)).astype(np.float32)


@functools.cache
def drawn(kind):
    """An encoder's variables, far from where they begin."""
    config, mel, _, _ = ENCODERS[kind]
    encoder = content_encoder(config, jnp.float32)
    log_mel = features.log_mel(jnp.zeros((1, SAMPLES)), mel)
    variables = jax.jit(functools.partial(encoder.init, train=False))(jax.random.key(0), log_mel)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.uniform(0, 0.1, x.shape).astype(np.float32), variables)


@functools.cache
def compiled(kind, padding="repeat"):
    config, mel, normalisation, _ = ENCODERS[kind]
    encoder, variables = content_encoder(config, jnp.float32), drawn(kind)

    @jax.jit
    def frames(audio):
        found, _ = frames_of_audio(
            encoder.bind(variables), audio, mel, normalisation, window_s=WINDOW_S, padding=padding
        )
        return found

    return frames


@functools.cache
def of_window(kind):
    """Features and pooled vector of log-mel, and the seconds of a step."""
    config, mel, normalisation, _ = ENCODERS[kind]
    encoder, variables, steps = content_encoder(config, jnp.float32), drawn(kind), []

    @jax.jit
    def both(audio):
        bound, log_mel = encoder.bind(variables), features.log_mel(audio, mel)
        pooled = encode_content(bound, log_mel, STILL, False, normalisation)
        found, step_s = content_frames(bound, log_mel, mel, normalisation)
        steps.append(step_s)
        return found, pooled

    return both, steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_pooled_is_what_moments_are(kind, audio):
    both, steps = of_window(kind)
    frames, pooled = both(audio)
    step_s = ENCODERS[kind][3]
    assert steps[0] == pytest.approx(step_s)
    assert frames.shape[1] == {"htsat": 32, "vit": 16, "cnn": 16}[kind]
    if kind == "cnn":
        params = {"params": drawn(kind)["params"]["pool"]}
        expected = AttentionPool(heads=2, width=8).apply(params, frames)
    else:
        expected = frames.mean(axis=1)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)
    assert np.std(frames, axis=1).max() > 1e-3


@pytest.mark.parametrize("kind", [pytest.param("vit", marks=pytest.mark.slow), "cnn"])
def test_a_moment_is_heard_when_it_is(kind, audio):
    # A gap in noise: its own moment changes most, though a ViT's tokens all attend to it.
    frames = compiled(kind)
    for at_s in (0.1, 0.31, 0.5):
        gap, middle = audio.copy(), round(at_s * RATE_HZ)
        gap[:, middle - 320 : middle + 320] = 0
        change = np.abs(frames(gap) - frames(audio)).sum(axis=-1)
        heard_s = (np.argmax(change, axis=1) + 0.5) * ENCODERS[kind][3]
        assert np.abs(heard_s - at_s).max() <= ENCODERS[kind][3]


@pytest.mark.slow
def test_half_a_window_is_repeated_and_its_first_half_kept(audio):
    both, _ = of_window("htsat")
    half = audio[:, : SAMPLES // 2]
    whole, _ = both(np.tile(half, (1, 2)))
    found = compiled("htsat")(half)
    assert found.shape[1] == 16
    np.testing.assert_allclose(found, whole[:, :16], atol=1e-5)
    silent, _ = both(np.pad(half, ((0, 0), (0, SAMPLES // 2))))
    np.testing.assert_allclose(compiled("htsat", "zeros")(half), silent[:, :16], atol=1e-5)
    assert np.abs(whole[:, :16] - silent[:, :16]).max() > 1e-3


@pytest.mark.slow
def test_longer_audio_is_heard_window_by_window(audio):
    both, _ = of_window("htsat")
    long = np.concatenate([audio, audio[::-1, : SAMPLES // 4]], axis=1)
    found = compiled("htsat")(long)
    assert found.shape[1] == 40
    np.testing.assert_allclose(found[:, :32], both(audio)[0], atol=1e-5)
    last, _ = both(np.tile(audio[::-1, : SAMPLES // 4], (1, 4)))
    np.testing.assert_allclose(found[:, 32:], last[:, :8], atol=1e-5)


def test_a_cnn_takes_any_length_as_it_is(audio):
    both, _ = of_window("cnn")
    half = audio[:, : SAMPLES // 2]
    np.testing.assert_allclose(compiled("cnn")(half), both(half)[0], atol=1e-6)


def test_a_vit_is_given_inputs_of_its_own_length(audio):
    log_mel = features.log_mel(jnp.asarray(audio), NATURAL)
    assert log_mel.shape[1] == 129
    encoder, variables = content_encoder(VIT, jnp.float32), drawn("vit")

    @jax.jit
    def tokens(part):
        return content_frames(encoder.bind(variables), part, NATURAL, (-7.0, 4.0))[0]

    # Of 129 frames inputs of 60 hold 7 patches of 8; the last 9 frames are filled up to 2.
    parts = [log_mel[:, :56], log_mel[:, 60:116], log_mel[:, 120:]]
    parts[2] = jnp.pad(parts[2], ((0, 0), (0, 7), (0, 0)), constant_values=-7.0)
    expected = [tokens(part) for part in parts]
    found = compiled("vit")(audio)
    assert found.shape[1] == 7 + 7 + 2
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)
    # One that is longer than the audio takes it whole.
    assert VIT.inputs(57) == [(0, 7)]
    assert VIT.inputs(60 + 1) == [(0, 7), (60, 1)]


def test_steps_of_the_published_encoders():
    assert frame_step_s(HtsatConfig(), LogMelConfig(), 10.0) == 0.3125
    assert frame_step_s(VitConfig(), M2D_LOG_MEL, 10.0) == 0.16
    small, mel = CONTENT_NAMES["cnn"][0]
    assert frame_step_s(small, mel, 10.0) == pytest.approx(0.08)
