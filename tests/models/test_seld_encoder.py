"""Convolutions and recurrence of SELD networks: shapes, parameters, and what they can hear."""

import dataclasses

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
from spatial_clap_jax.train.experiment import load_config


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


def test_plain_layers_have_the_weights_of_their_shapes():
    pools = ((5, 4), (1, 4), (1, 2))
    encoder = SeldEncoderConfig(None, (64, 64, 64), pools, "plain", "flat")
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


def test_the_baseline_has_as_many_weights_as_the_public_one():
    experiment = load_config("seld_crnn.py", "base")
    model = dataclasses.replace(experiment.model, classes=tuple(map(str, range(13))))
    system = dataclasses.replace(experiment, model=model).build_trainable()
    assert count(jax.eval_shape(system.init, jax.random.key(0))["params"]) == 734_261


def baseline_in_torch(encoder, recurrent):
    """Its convolutions and recurrence as the public code has them, with the weights of ours."""
    torch = pytest.importorskip("torch")
    blocks, gru = [], torch.nn.GRU(128, 128, 2, batch_first=True, bidirectional=True)
    given = torch.from_numpy
    encoder, recurrent = jax.tree.map(lambda x: given(np.array(x)), (encoder, recurrent))
    for i, pool in enumerate(((5, 4), (1, 4), (1, 2))):
        weights, means = encoder["params"][f"block{i}"], encoder["batch_stats"][f"block{i}"]
        conv = torch.nn.Conv2d(64 if i else 2, 64, 3, padding=1)
        norm = torch.nn.BatchNorm2d(64)
        conv.weight.data = weights["conv0"]["kernel"].permute(3, 2, 0, 1)
        conv.bias.data = weights["conv0"]["bias"]
        norm.weight.data, norm.bias.data = weights["norm0"]["scale"], weights["norm0"]["bias"]
        norm.running_mean, norm.running_var = means["norm0"]["mean"], means["norm0"]["var"]
        blocks += [conv, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(pool)]
    weights = recurrent["params"]
    for i in range(2):
        for name, suffix in (("forward", ""), ("backward", "_reverse")):
            held = weights[f"gru{i}_{name}"]
            for ours, theirs in (
                ("input_kernel", "weight_ih"),
                ("state_kernel", "weight_hh"),
                ("input_bias", "bias_ih"),
                ("state_bias", "bias_hh"),
            ):
                getattr(gru, f"{theirs}_l{i}{suffix}").data = held[ours].t().contiguous()
    attentions, norms = [], []
    for i in range(2):
        attention = torch.nn.MultiheadAttention(128, 8, batch_first=True)
        norm, held = torch.nn.LayerNorm(128), weights[f"attention{i}"]
        attention.in_proj_weight.data = held["qkv"]["kernel"].T
        attention.in_proj_bias.data = held["qkv"]["bias"]
        attention.out_proj.weight.data = held["out"]["kernel"].T
        attention.out_proj.bias.data = held["out"]["bias"]
        norm.weight.data = weights[f"norm{i}"]["scale"]
        norm.bias.data = weights[f"norm{i}"]["bias"]
        attentions.append(attention)
        norms.append(norm)
    convolutions = torch.nn.Sequential(*blocks).eval()

    def run(planes):
        with torch.inference_mode():
            # Ours have bands before channels where they are laid side by side.
            x = convolutions(given(planes).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(2)
            x = torch.tanh(gru(x)[0])
            x = x[:, :, 128:] * x[:, :, :128]
            for attention, norm in zip(attentions, norms, strict=True):
                x = norm(x + attention(x, x, x)[0])
        return x.numpy()

    return run


@pytest.mark.parity
def test_the_baseline_computes_what_the_public_one_does():
    pytest.importorskip("torch")
    config = load_config("seld_crnn.py", "base").model
    encoder, recurrent = SeldEncoder(config.encoder, 128), Recurrent(config.temporal)
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(2, 100, 64, 2)).astype(np.float32)

    def drawn(module, x):
        shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
        return jax.tree.map(
            lambda leaf: (
                rng.uniform(0.02, 0.1, leaf.shape).astype(np.float32)
                * rng.choice([-1, 1], leaf.shape[1:] if leaf.ndim > 1 else ()).astype(np.float32)
            ),
            shapes,
        )

    ours = drawn(encoder, planes)
    ours["batch_stats"] = jax.tree.map(abs, ours["batch_stats"])
    rows = jax.jit(lambda x: encoder.apply(ours, x, False))(planes)
    assert rows.shape == (2, 20, 128)
    later = drawn(recurrent, rows)
    found = jax.jit(lambda x: recurrent.apply(later, x, False))(rows)
    np.testing.assert_allclose(found, baseline_in_torch(ours, later)(planes), atol=1e-5)
    assert np.std(found) > 0.01


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
        (lambda: SeldEncoderConfig(dropout=1.0), r"SeldEncoderConfig.dropout: 1.0 must be in"),
        (lambda: RecurrentConfig(attention_dropout=-1), r"RecurrentConfig.attention_dropout: -1"),
        (lambda: RecurrentConfig(width=20, heads=8), r"20 must be even and a multiple of the 8"),
    ],
)
def test_impossible_shapes_of_encoders_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
