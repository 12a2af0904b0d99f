"""Levels and their augmentation, by hand and by law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_elsa, tiny_experiment

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL, M2D_LOG_MEL
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.vit import Vit, VitConfig
from spatial_clap_jax.systems.content import (
    CONTENT_NAMES,
    Augmentation,
    SpecAugmentConfig,
    below_peak,
    check_content,
    content_encoder,
    encode_content,
    level_plane,
    named_content,
    random_equaliser,
)


def test_levels_about_a_reference_by_hand():
    level = np.array([[[-70.0, -30.0, -10.0, 90.0]]], np.float32)
    drawn = Augmentation(None, 6.0, lambda: jax.random.key(0))
    # The equaliser changes levels below a peak, and none that tell a distance.
    np.testing.assert_allclose(level_plane(level, -30.0, drawn), [[[-2.0, 0.0, 1.0, 2.0]]])
    assert np.abs(level_plane(level, None, drawn) - below_peak(level)).max() > 1e-3
    np.testing.assert_allclose(
        level_plane(level, None, Augmentation(None, 0.0, None)), below_peak(level)
    )


def test_below_peak_by_hand_and_blind_to_gain():
    level = jnp.array([[[-10.0, -50.0], [-200.0, -90.0]]])
    np.testing.assert_allclose(below_peak(level), [[[2.0, 0.0], [-2.0, -2.0]]])
    np.testing.assert_allclose(below_peak(level + 13.0), below_peak(level), atol=1e-6)


def test_equaliser_has_the_spread_that_was_asked_for():
    curves = random_equaliser(jax.random.key(0), 2000, 64, spread=0.3)
    assert float(jnp.sqrt((curves**2).mean())) == pytest.approx(0.3, rel=0.05)
    # Smooth: neighbours differ by little.
    assert float(jnp.abs(jnp.diff(curves, axis=1)).max()) < 0.2


def test_nothing_is_drawn_in_evaluation():
    level = jnp.ones((2, 3, 4))
    evaluated = Augmentation(SpecAugmentConfig(), 6.0, None)
    assert evaluated.equalised(level) is level
    assert evaluated.masked(level) is level


def test_masks_hide_behind_the_mean():
    level = jnp.arange(2 * 30 * 8.0).reshape(2, 30, 8)
    masks = SpecAugmentConfig(time_masks=1, time_width=10, frequency_masks=0)
    hidden = Augmentation(masks, 0.0, lambda: jax.random.key(2)).masked(level)
    changed = np.asarray(hidden != level).all(axis=2)
    assert changed.any()
    mean = np.broadcast_to(level.mean(axis=(1, 2), keepdims=True), level.shape)
    np.testing.assert_allclose(hidden[changed], mean[changed], rtol=1e-6)


VIT = VitConfig(width=16, layers=1, heads=2)


def test_a_vit_hears_normalised_levels_and_gives_its_mean_token():
    log_mel = jax.random.normal(jax.random.key(0), (2, 40, 80)) * 4 - 7
    encoder = content_encoder(VIT, jnp.float32)
    assert isinstance(encoder, Vit)
    variables = encoder.init(jax.random.key(1), log_mel)
    still = Augmentation(SpecAugmentConfig(), 6.0, None)
    heard = encode_content(encoder.bind(variables), log_mel, still, False, (-7.0, 4.0))
    expected = encoder.apply(variables, (log_mel + 7) / 4).tokens.mean(axis=1)
    np.testing.assert_allclose(heard, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_experiment, tiny_elsa])
def test_the_systems_take_a_vit(make):
    tiny = make().model
    model = dataclasses.replace(
        tiny, content=VIT, content_mel=M2D_LOG_MEL, content_normalisation=(-7.0, 4.0)
    )
    system = model.build(ContrastiveConfig())
    variables = jax.jit(system.init)(jax.random.key(0))
    audio = jax.random.normal(jax.random.key(1), (2, system.channels, system.window_samples))
    rows = jax.jit(system.embed_audio)(variables, audio)
    assert variables["params"]["content"].keys() >= {"patch", "cls_token", "block_0", "norm"}
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    params = {**variables["params"]}
    params["content"] = jax.tree.map(lambda x: x * 1.5, params["content"])
    moved = jax.jit(system.embed_audio)({**variables, "params": params}, audio)
    assert np.abs(moved - rows).max() > 1e-4


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("name", sorted(CONTENT_NAMES))
def test_each_named_encoder_has_its_front_end(name, size):
    fields = named_content(name, size)
    check_content(*fields.values())
    assert isinstance(fields["content"], VitConfig) == (name == "m2d")
    if name == "m2d":
        assert fields["content"].width == (768 if size == "base" else 192)
    with pytest.raises(
        InputError, match=r"--model\.content vit: unknown; choose one of htsat, cnn"
    ):
        named_content("vit", size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content_mel": LAION_CLAP_LOG_MEL}, r"content_mel: 64 mels as decibels, but VitConfig t"),
        ({"content": named_content("cnn", "small")["content"]}, r"but CnnConfig takes decibels"),
        ({"content": VitConfig(mels=64)}, r"80 mels as natural, but VitConfig takes .* in 64 mels"),
        ({"content_normalisation": None}, r"content_normalisation: None, but VitConfig takes a me"),
        (
            {"content_normalisation": (1.0, 0.0)},
            r"content_normalisation: \(1\.0, 0\.0\), but VitCo",
        ),
        (
            {**named_content("cnn", "small"), "content_normalisation": (0.0, 1.0)},
            r"content_normalisation: \(0\.0, 1\.0\), but CnnConfig takes None",
        ),
    ],
)
def test_an_encoder_and_a_front_end_that_do_not_fit(changes, message):
    fields = {**named_content("m2d", "small"), **changes}
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_experiment().model, **fields)
