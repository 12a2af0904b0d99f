import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.htsat import (
    Htsat,
    HtsatConfig,
    bicubic_matrix,
    from_windows,
    htsat_base,
    htsat_tiny,
    relative_position_index,
    shift_mask,
    to_windows,
)

# 32 x 32 image, 2 segments of 32 frames x 16 mels; grids 8 and 4 a side, windows of 4.
SMALL = HtsatConfig(
    spec_size=32, mels=16, embed_dim=16, depths=(2, 1), heads=(2, 4), window=4, mlp_ratio=2.0
)


encode = jax.jit(Htsat(SMALL).apply)


@pytest.fixture(scope="module")
def variables():
    """Weights far larger than at the start of training, so that an error would show."""
    shapes = jax.eval_shape(Htsat(SMALL).init, jax.random.key(0), jnp.zeros((1, 64, 16)))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    drawn = {name: jax.tree.map(draw, tree) for name, tree in shapes.items()}
    drawn["batch_stats"] = jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), drawn["batch_stats"])
    return drawn


def noise(batch, frames, mels=16, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, frames, mels))


@pytest.mark.parametrize(
    ("config", "width", "count"),
    [(htsat_tiny(), 768, 27_534_488), (htsat_base(), 1024, 67_824_408)],
)
def test_presets_have_the_published_shapes(config, width, count):
    encoder, log_mel = Htsat(config), jnp.zeros((2, 1024, 64))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), log_mel))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    out = jax.eval_shape(encoder.apply, shapes, log_mel)
    assert out.pooled.shape == (2, width)
    assert out.map.shape == (2, 2, 32, width)


@pytest.mark.parametrize("frames", [23, 64])
def test_any_length_gives_the_same_shapes(variables, frames):
    out = encode(variables, noise(3, frames))
    assert out.pooled.shape == (3, 32)
    assert out.map.shape == (3, 2, 8, 32)
    np.testing.assert_allclose(out.pooled, out.map.mean(axis=(1, 2)), atol=1e-6)


def test_map_is_in_order_of_frequency_and_time(variables):
    """Without attention a change of the input shows where it is, and nowhere else."""
    quiet = {
        name: {**block, "attention": jax.tree.map(jnp.zeros_like, block["attention"])}
        if "attention" in block
        else block
        for name, block in variables["params"].items()
    }
    quiet = {**variables, "params": quiet}
    plain = noise(1, 64)
    touched = plain.at[:, 40:48, :8].add(3.0)
    change = jnp.abs(jnp.subtract(*(encode(quiet, x).map for x in (plain, touched))))
    places = np.argwhere(change[0].max(axis=-1) > 1e-3)
    assert places.tolist() == [[0, 5]]


def test_bicubic_matrix_keeps_ends_lines_and_points():
    matrix = bicubic_matrix(5, 9)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix[::2], np.eye(5), atol=1e-6)
    # Half way between two points the kernel is a / 8 at distance 1.5 and (4 - a) / 8 at 0.5.
    np.testing.assert_allclose(matrix[3], [-0.09375, 0.59375, 0.59375, -0.09375, 0], atol=1e-6)
    np.testing.assert_allclose(matrix[1], [0.5, 0.59375, -0.09375, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(bicubic_matrix(1, 4), np.ones((4, 1)))


def test_windows_hold_neighbours_and_go_back():
    grid = jnp.arange(16.0).reshape(1, 4, 4, 1)
    windows = to_windows(grid, 2)
    assert windows[0, :, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13],
                                            [10, 11, 14, 15]]  # fmt: skip
    np.testing.assert_array_equal(from_windows(windows, 2), grid)


def test_relative_positions_are_the_same_row_for_the_same_offset():
    index = relative_position_index(3).reshape(3, 3, 3, 3)
    assert sorted(set(index.ravel().tolist())) == list(range(25))
    assert index[2, 1, 0, 2] == (2 + 2) * 5 + (-1 + 2)
    np.testing.assert_array_equal(index[1:, 1:, 1:, 1:], index[:-1, :-1, :-1, :-1])


def test_shift_mask_parts_what_the_roll_joined():
    """By definition: a pair is kept when it was as far apart before the roll as after it."""
    side, window, shift = 8, 4, 2
    place = jnp.stack(jnp.meshgrid(jnp.arange(8), jnp.arange(8), indexing="ij"), axis=-1)
    before = to_windows(jnp.roll(place, (-shift, -shift), axis=(0, 1))[None], window)[0]
    after = to_windows(place[None], window)[0]
    apart = [x[:, :, None] - x[:, None] for x in (before, after)]
    kept = (apart[0] == apart[1]).all(axis=-1)
    np.testing.assert_array_equal(shift_mask(side, window, shift), np.where(kept, 0, -100))


def test_batch_of_one_equals_batch_of_many(variables):
    log_mel = noise(3, 64)
    many = encode(variables, log_mel).pooled
    for index in range(3):
        one = encode(variables, log_mel[index : index + 1]).pooled
        np.testing.assert_allclose(one[0], many[index], atol=1e-5)


def test_training_normalises_by_the_batch_and_remembers_it(variables):
    log_mel = -40 + 15 * noise(3, 64)
    encoder = Htsat(dataclasses.replace(SMALL, drop_path=0.0))
    train = jax.jit(lambda x: encoder.apply(variables, x, True, mutable=["batch_stats"]))
    out, state = train(log_mel)
    louder, _ = train(3 * log_mel + 7)
    np.testing.assert_allclose(out.pooled, louder.pooled, atol=1e-3)
    norm = state["batch_stats"]["input_norm"]
    before = variables["batch_stats"]["input_norm"]
    for name, new in {"mean": log_mel.mean(axis=(0, 1)), "var": log_mel.var(axis=(0, 1))}.items():
        np.testing.assert_allclose(norm[name], 0.9 * before[name] + 0.1 * new, rtol=1e-4)


def test_bfloat16_compute_keeps_float32_parameters(variables):
    encoder = Htsat(SMALL, jnp.bfloat16)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 64, 16)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    half = jax.jit(encoder.apply)(variables, noise(3, 64))
    assert half.pooled.dtype == half.map.dtype == jnp.bfloat16
    full = encode(variables, noise(3, 64)).pooled
    np.testing.assert_allclose(half.pooled.astype(jnp.float32), full, atol=0.03)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 65, 16), r"log_mel: 65 frames, but the encoder takes 1 to 64; cut the audio"),
        ((1, 0, 16), r"log_mel: 0 frames"),
        ((1, 64, 20), r"log_mel: 20 mel bins, but the encoder takes 16"),
    ],
)
def test_wrong_input_is_refused(variables, shape, text):
    with pytest.raises(InputError, match=text):
        Htsat(SMALL).apply(variables, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mels": 24}, r"mels: 24 does not divide spec_size 32"),
        ({"heads": (2,)}, r"heads: \(2,\) names 1 stages and depths 2"),
        ({"heads": (3, 4)}, r"heads: 3 does not divide the width of stage 0, 16"),
        ({"depths": (1,) * 4, "heads": (1,) * 4}, r"mels: 16 is no multiple of 32"),
        ({"window": 3}, r"window: 3 does not divide the grid of stage 0, 8"),
    ],
)
def test_wrong_config_is_refused(change, text):
    with pytest.raises(InputError, match=text):
        dataclasses.replace(SMALL, **change)
