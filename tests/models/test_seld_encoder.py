"""Convolutions and recurrence of SELD networks: shapes, parameters, and what they can hear."""

import jax
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.seld_encoder import (
    Recurrent,
    RecurrentConfig,
    SeldEncoder,
    SeldEncoderConfig,
)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(module, *inputs):
    """Shapes of what a module gives, and of its parameters."""
    return jax.eval_shape(lambda *x: module.init_with_output(jax.random.key(0), *x, False), *inputs)


def test_the_published_encoder_pools_16_frames_to_a_label_frame():
    planes = jax.ShapeDtypeStruct((2, 800, 128, 2), np.float32)
    found, variables = shapes_of(SeldEncoder(SeldEncoderConfig(), 512), planes)
    assert found.shape == (2, 50, 512)
    kernel = variables["params"]["block3"]["conv0"]["kernel"]
    assert kernel.shape == (3, 3, 256, 512)


def test_the_baselines_layers_have_the_weights_of_their_shapes():
    encoder = SeldEncoderConfig(None, (64, 64, 64), ((5, 4), (1, 4), (1, 2)), "plain", "flat")
    planes = jax.ShapeDtypeStruct((2, 250, 64, 2), np.float32)
    found, variables = shapes_of(SeldEncoder(encoder, 128), planes)
    assert found.shape == (2, 50, 128)
    # Three convolutions without biases, their norms; flat bands are 2 x 64.
    assert count(variables["params"]) == 9 * 64 * (2 + 64 + 64) + 6 * 64 + 128 * 128 + 128
    rows = jax.ShapeDtypeStruct((2, 50, 128), np.float32)
    found, variables = shapes_of(Recurrent(RecurrentConfig()), rows)
    assert found.shape == (2, 50, 256)
    grus = {name: count(x) for name, x in variables["params"].items() if "gru" in name}
    assert grus["gru0_forward"] == 3 * 128 * (128 + 128 + 2)
    assert grus["gru1_backward"] == 3 * 128 * (256 + 128 + 2)


@pytest.mark.parametrize("patch", [None, (2, 2)])
def test_each_label_frame_hears_what_is_near_it(patch):
    config = SeldEncoderConfig(patch, (4, 6), ((2, 2), (1, 2)))
    module = SeldEncoder(config, 5)
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(1, 64, 16, 3)).astype(np.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, False))(planes)
    apply = jax.jit(lambda x: module.apply(variables, x, False))
    before = np.asarray(apply(planes))
    planes[:, 40:] += 1
    changed = np.abs(np.asarray(apply(planes)) - before).max(axis=(0, 2)) > 1e-6
    step = 64 // before.shape[1]
    # Four convolutions of three: two cells after each block's pool reach back.
    assert not changed[: 40 // step - 6].any()
    assert changed[40 // step :].all()


def test_a_shorter_rest_is_left_out():
    config = SeldEncoderConfig(channels=(4,), pools=((5, 2),))
    for frames, labels in ((50, 10), (51, 10), (54, 10)):
        planes = jax.ShapeDtypeStruct((1, frames, 8, 2), np.float32)
        assert shapes_of(SeldEncoder(config, 5), planes)[0].shape == (1, labels, 5)


def test_recurrence_goes_both_ways():
    module = Recurrent(RecurrentConfig(width=8, layers=1, attentions=0, heads=2))
    x = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, False))(x)
    apply = jax.jit(lambda x: module.apply(variables, x, False))
    before = np.asarray(apply(x))
    x[:, 3] += 1
    moved = np.abs(np.asarray(apply(x)) - before)[0] > 1e-6
    assert not moved[:3, :4].any()
    assert moved[3:, :4].any(axis=1).all()
    assert moved[:4, 4:].any(axis=1).all()
    assert not moved[4:, 4:].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SeldEncoderConfig(pools=((2, 2),)), r"1 of them for 4 blocks of channels"),
        (lambda: SeldEncoderConfig(patch=(0, 4)), r"patch \(0, 4\) must be at least 1"),
        (lambda: RecurrentConfig(width=20, heads=8), r"20 must be even and a multiple of the 8"),
    ],
)
def test_impossible_shapes_of_encoders_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
