import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

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


FUSED = dataclasses.replace(SMALL, fusion=True, drop_path=0.0)

encode = jax.jit(Htsat(SMALL).apply)
encode_views = jax.jit(Htsat(FUSED).apply)


@jax.jit
def train_on_views(variables, views, longer):
    return Htsat(FUSED).apply(variables, views, True, longer, mutable=["batch_stats"])


def drawn_variables(config):
    """Weights far larger than at the start of training, so that an error would show."""
    shapes = jax.eval_shape(Htsat(config).init, jax.random.key(0), jnp.zeros((1, 64, 16)))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    drawn = {name: jax.tree.map(draw, tree) for name, tree in shapes.items()}
    drawn["batch_stats"] = jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), drawn["batch_stats"])
    return drawn


@pytest.fixture(scope="module")
def variables():
    return drawn_variables(SMALL)


@pytest.fixture(scope="module")
def fused_variables():
    return drawn_variables(FUSED)


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


def views_of(batch, frames=64, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, 4, frames, 16))


def without_fusion(fused_variables):
    """What the plain encoder has of a fused one's variables."""
    added = ("crop_embedding", "fusion")
    return {
        kind: {name: leaf for name, leaf in tree.items() if name not in added}
        for kind, tree in fused_variables.items()
    }


@pytest.mark.parametrize("frames", [23, 64])
def test_a_clip_that_is_not_longer_is_encoded_by_its_first_view(fused_variables, frames):
    views, longer = views_of(3, frames), jnp.array([False, True, False])
    out = encode_views(fused_variables, views, longer=longer)
    other = encode_views(fused_variables, views.at[:, 1:].set(1e4), longer=longer)
    plain = encode(without_fusion(fused_variables), views[:, 0])
    single = encode_views(fused_variables, views[:, 0])
    np.testing.assert_allclose(single.map, plain.map, atol=1e-6)
    for row in (0, 2):
        np.testing.assert_allclose(out.map[row], plain.map[row], atol=1e-5)
        np.testing.assert_array_equal(out.map[row], other.map[row])
    assert jnp.abs(out.pooled[1] - plain.pooled[1]).max() > 1e-2
    assert jnp.abs(out.pooled[1] - other.pooled[1]).max() > 1e-2


def test_a_fused_clip_does_not_depend_on_its_neighbours(fused_variables):
    views, longer = views_of(3), jnp.array([True, False, True])
    many = encode_views(fused_variables, views, longer=longer)
    crowd = encode_views(
        fused_variables, views.at[1:].multiply(9.0), longer=jnp.array([True, True, False])
    )
    np.testing.assert_array_equal(many.map[0], crowd.map[0])
    for row in range(3):
        one = encode_views(fused_variables, views[row : row + 1], longer=longer[row : row + 1])
        np.testing.assert_allclose(one.map[0], many.map[row], atol=1e-5)


def test_crops_lie_beside_each_other_in_order_and_the_last_columns_are_empty():
    """A segment of 32 frames holds 2 patches of 12 of each crop, then 2 columns of zeros."""
    encoder = Htsat(FUSED)
    frames = jnp.broadcast_to(jnp.arange(64.0)[:, None] // 32 * 2 + jnp.arange(64.0)[:, None] % 32
                              // 12, (64, 16))  # fmt: skip
    crops = jnp.stack([100 * crop + frames for crop in (1, 2, 3)])
    patches = encoder._patches(crops, 12)
    assert patches.shape == (3, 8, 2, 48)
    np.testing.assert_array_equal(patches, patches[..., :1] + jnp.zeros(48))
    grid = encoder._side_by_side(patches[..., :1])[0, :, :, 0]
    for segment in (0, 1):
        row = [100, 101, 200, 201, 300, 301]
        expected = [value + 2 * segment for value in row] + [0, 0]
        for mel in range(4):
            assert grid[4 * segment + mel].tolist() == expected


def test_the_parameters_of_fusion_do_not_depend_on_the_input():
    init = Htsat(FUSED).init
    one = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 64, 16)))
    four = jax.eval_shape(
        lambda key: init(key, jnp.zeros((2, 4, 64, 16)), longer=jnp.zeros(2, bool)),
        jax.random.key(0),
    )
    assert one == four
    shapes = jax.tree.map(lambda leaf: leaf.shape, one)
    attention = {
        "reduce": {"kernel": (16, 4), "bias": (4,)},
        "norm_in": {"scale": (4,), "bias": (4,)},
        "expand": {"kernel": (4, 16), "bias": (16,)},
        "norm_out": {"scale": (16,), "bias": (16,)},
    }
    assert shapes["params"]["crop_embedding"] == {"kernel": (48, 16), "bias": (16,)}
    assert shapes["params"]["fusion"] == {"local": attention, "global": attention}
    moments = {name: {"mean": (n,), "var": (n,)} for name, n in (("norm_in", 4), ("norm_out", 16))}
    assert shapes["batch_stats"]["fusion"] == {"local": moments, "global": moments}
    plain = jax.eval_shape(Htsat(SMALL).init, jax.random.key(0), jnp.zeros((1, 64, 16)))
    assert without_fusion(one) == plain


def test_fusion_remembers_statistics_of_longer_clips_alone(fused_variables):
    views, longer = views_of(3), jnp.array([True, False, True])
    _, state = train_on_views(fused_variables, views, longer)
    # The input's own statistics stay the same: the frames are only in another order.
    turned = views.at[1].set(views[1, :, ::-1])
    _, other = train_on_views(fused_variables, turned, longer)
    fusion, before = state["batch_stats"]["fusion"], fused_variables["batch_stats"]["fusion"]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        fusion,
        other["batch_stats"]["fusion"],
    )
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.abs(a - b).max() > 1e-3), fusion, before)
    )


@pytest.mark.parametrize("one_view", [False, True])
def test_fusion_keeps_its_statistics_where_nothing_is_longer(fused_variables, one_view):
    views, none = views_of(3), jnp.zeros(3, bool)
    if one_view:
        views, none = views[:, 0], None
    out, state = train_on_views(fused_variables, views, none)
    before, after = fused_variables["batch_stats"], state["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, after["fusion"], before["fusion"])
    assert jnp.abs(after["input_norm"]["mean"] - before["input_norm"]["mean"]).max() > 1e-2
    assert jnp.isfinite(out.map).all()


@pytest.mark.slow
def test_gradients_in_training_are_finite_however_many_are_longer(fused_variables):
    def scalar(params, longer):
        variables = {**fused_variables, "params": params}
        out, _ = train_on_views(variables, views_of(2), longer)
        return (out.pooled**2).sum()

    gradient_of = jax.jit(jax.grad(scalar))
    for flags in ([False, False], [True, False], [True, True]):
        gradient = gradient_of(fused_variables["params"], jnp.array(flags))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert np.any(gradient["crop_embedding"]["kernel"] != 0) == any(flags)


def test_frozen_norms_can_be_asked_for_at_the_call(fused_variables):
    """As when fine-tuning with the statistics of pre-training."""

    def freeze(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    @jax.jit
    def frozen(views, longer):
        with nn.intercept_methods(freeze):
            return Htsat(FUSED).apply(fused_variables, views, True, longer, mutable=["batch_stats"])

    views, longer = views_of(3), jnp.array([True, False, True])
    out, state = frozen(views, longer)
    before = fused_variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], before)
    expected = encode_views(fused_variables, views, longer=longer)
    np.testing.assert_allclose(out.pooled, expected.pooled, atol=1e-5)


def test_bfloat16_fusion_is_near_the_float32_one(fused_variables):
    """The error is small beside what the fusion changes."""
    views, longer = views_of(3), jnp.array([True, False, True])
    half = jax.jit(Htsat(FUSED, jnp.bfloat16).apply)(fused_variables, views, longer=longer)
    assert half.pooled.dtype == half.map.dtype == jnp.bfloat16
    full = encode_views(fused_variables, views, longer=longer).map
    unfused = encode_views(fused_variables, views, longer=jnp.zeros(3, bool)).map
    for row in (0, 2):
        error = jnp.linalg.norm(half.map[row].astype(jnp.float32) - full[row])
        assert error < 0.25 * jnp.linalg.norm(unfused[row] - full[row])


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
    ("config", "shape", "longer", "text"),
    [
        (FUSED, (2, 3, 64, 16), (2,), r"log_mel: 3 views, but fusion takes 4, .*fusion_views"),
        (FUSED, (2, 4, 4, 64, 16), (2,), r"log_mel: 4x4 views, but fusion takes 4"),
        (SMALL, (2, 4, 64, 16), (2,), r"log_mel: 4 views, but the encoder has no fusion .* set"),
        (FUSED, (2, 4, 64, 16), None, r"longer: None, but log_mel has 4 views; say of each clip"),
        (FUSED, (2, 64, 16), (2,), r"longer: given, but log_mel has one view.* leave it out"),
        (SMALL, (2, 64, 16), (2,), r"longer: given, but log_mel has one view.* leave it out"),
        (FUSED, (2, 4, 64, 16), (1,), r"longer: shape \(1,\), but log_mel has 2 clips; give one"),
        (FUSED, (2, 4, 65, 16), (2,), r"log_mel: 65 frames, but the encoder takes 1 to 64"),
        (FUSED, (2, 4, 64, 20), (2,), r"log_mel: 20 mel bins, but the encoder takes 16"),
    ],
)
def test_wrong_views_are_refused(fused_variables, config, shape, longer, text):
    flags = None if longer is None else jnp.zeros(longer, bool)
    with pytest.raises(InputError, match=text):
        Htsat(config).apply(fused_variables, jnp.zeros(shape), longer=flags)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fusion": True, "fusion_reduction": 17}, r"fusion_reduction: 17 .* choose 1 to 16"),
        ({"fusion": True, "fusion_reduction": 0}, r"fusion_reduction: 0 leaves no hidden"),
        (
            {"fusion": True, "spec_size": 8, "mels": 8, "depths": (1,), "heads": (2,)},
            r"patch: 4 is too wide for fusion.* take smaller patches",
        ),
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
