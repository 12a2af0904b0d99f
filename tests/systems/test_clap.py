"""CLAP by its laws: one channel or the mean of two, a step that learns, a loss of two scales."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.systems.base import System
from spatial_clap_jax.systems.clap import ClapConfig
from spatial_clap_jax.train.optim import OptimizerConfig, make_optimizer
from spatial_clap_jax.train.step import TrainStep, init_state

CONFIG = ClapConfig(
    sample_rate_hz=16_000,
    window_s=0.3,
    content=HtsatConfig(
        spec_size=32, mels=16, patch=4, embed_dim=8, depths=(1, 1), heads=(2, 2), window=4
    ),
    content_mel=LogMelConfig(sample_rate_hz=16_000, n_fft=256, hop=160, mels=16, high_hz=8000.0),
    text=TextConfig(vocabulary=50, width=16, layers=1, heads=2, mlp_width=24, max_tokens=8),
    joint_width=12,
)


def batch(channels: int) -> dict:
    rng = np.random.default_rng(0)
    return {
        "audio": jnp.asarray(rng.uniform(-0.3, 0.3, (4, channels, 4800)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(3, 50, (4, 8)), jnp.int32),
        "token_mask": jnp.ones((4, 8), bool),
        "meaning": jnp.arange(4),
        "group": jnp.arange(4),
    }


@pytest.fixture(scope="module")
def stereo():
    system = dataclasses.replace(CONFIG, channels=2).build(ContrastiveConfig())
    return system, jax.jit(system.init)(jax.random.key(0))


def test_it_is_a_system(stereo):
    system, _ = stereo
    assert isinstance(system, System)
    assert (system.sample_rate_hz, system.channels, system.window_samples) == (16_000, 2, 4800)
    assert (system.max_tokens, system.padding) == (8, "repeat")


def test_of_two_channels_the_mean_is_heard(stereo):
    system, variables = stereo
    mono = CONFIG.build(ContrastiveConfig())
    audio = batch(2)["audio"]
    embed = jax.jit(system.embed_audio)
    expected = jax.jit(mono.embed_audio)(variables, audio.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(embed(variables, audio), expected, atol=1e-6)
    np.testing.assert_allclose(embed(variables, audio[:, ::-1]), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


def test_three_channels_are_refused():
    with pytest.raises(InputError, match=r"model\.channels: 3; CLAP hears 1, or the mean of 2"):
        dataclasses.replace(CONFIG, channels=3)


@pytest.mark.slow
def test_steps_learn_and_move_every_part(stereo):
    system, variables = stereo
    config = OptimizerConfig(learning_rate=3e-3, warmup_steps=1)
    optimizer = make_optimizer(config, 10, variables["params"])
    start = partial(init_state, system, optimizer, jax.random.key(0), {}, averaged=False)
    state = jax.jit(start)()
    # The batch is an argument: as a constant, its features would be computed by the compiler.
    step = jax.jit(TrainStep(system, optimizer, jax.random.key(1)).__call__)
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch(2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    moved = jax.tree.map(
        lambda old, new: float(jnp.abs(new - old).max()),
        variables["params"],
        state.variables["params"],
    )
    for name in ("content", "audio_projection", "text", "text_projection"):
        assert max(jax.tree.leaves(moved[name])) > 0, name
    assert moved["logit_scale_audio"] > 0
    assert moved["logit_scale_text"] > 0
