"""Masks, the predictor and the target's schedule, each against what the paper writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.m2d import (
    Masks,
    Predictor,
    PredictorConfig,
    TokenProjection,
    draw_masks,
    kept_patches,
    moved_target,
)
from spatial_clap_jax.models.vit import VitBlocks, sincos_positions

CONFIG = PredictorConfig(width=8, layers=1, heads=2, mlp_ratio=1.0)
GRID = (2, 4)


@functools.cache
def _masks() -> Masks:
    return jax.jit(draw_masks, static_argnums=(1, 2, 3))(jax.random.key(0), 64, 190, 0.7)


def test_a_mask_leaves_57_of_190_patches():
    assert kept_patches(190, 0.7) == 57
    assert [kept_patches(310, ratio) for ratio in (0.7, 0.3, 0.0)] == [93, 217, 310]
    assert _masks().kept.shape == (64, 57)
    assert _masks().masked.shape == (64, 133)


def test_kept_and_masked_are_all_patches_once_and_ascend():
    both = np.concatenate(_masks(), axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(190), (64, 1)))
    for indices in _masks():
        assert (np.diff(indices, axis=1) > 0).all()


def test_every_patch_is_as_likely_and_every_example_has_its_own():
    often = np.bincount(np.ravel(_masks().kept), minlength=190) / 64
    assert abs(often.mean() - 0.3) < 1e-6
    # Binomial of 64 draws: a spread of 0.057.
    assert 0.045 < often.std() < 0.07
    assert len(np.unique(_masks().kept, axis=0)) == 64


def _inputs(examples: int = 3) -> tuple:
    rng = np.random.default_rng(1)
    masks = draw_masks(jax.random.key(2), examples, 8, 0.6)
    tokens = rng.normal(size=(examples, 3, 12)).astype(np.float32)
    return tokens, rng.normal(size=(examples, 12)).astype(np.float32), masks


@functools.cache
def _params() -> dict:
    init = functools.partial(Predictor(CONFIG, 12).init, grid=GRID)
    shapes = jax.eval_shape(init, jax.random.key(0), *_inputs())
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes["params"])


@jax.jit
def _predict(tokens, cls, masks):
    return Predictor(CONFIG, 12).apply({"params": _params()}, tokens, cls, masks, GRID)


def test_it_is_the_papers_with_tokens_put_in_order():
    """There, mask tokens fill up the sequence, which is sorted before positions are added."""
    tokens, cls, masks = _inputs()
    params = _params()
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    sequence = np.tile(params["mask_token"], (3, 8, 1))
    for example, kept in enumerate(np.asarray(masks.kept)):
        sequence[example, kept] = dense(tokens[example], params["embed"])
    first = dense(cls, params["embed"])[:, None]
    x = np.concatenate([first, sequence], axis=1) + sincos_positions(*GRID, 8)
    own = {name: params[name] for name in ("block_0", "norm")}
    x = VitBlocks(1, 2, 8).apply({"params": own}, x)
    expected = np.asarray(dense(x[:, 1:], params["out"]))
    ours = _predict(tokens, cls, masks)
    assert ours.shape == (3, 5, 12)
    for example, masked in enumerate(np.asarray(masks.masked)):
        np.testing.assert_allclose(ours[example], expected[example, masked], atol=1e-5)


def test_an_example_does_not_know_its_batch():
    tokens, cls, masks = _inputs()
    alone = _predict(tokens[1:2], cls[1:2], Masks(masks.kept[1:2], masks.masked[1:2]))
    np.testing.assert_allclose(alone[0], _predict(tokens, cls, masks)[1], atol=1e-6)


def test_its_parameters_have_the_agreed_names():
    assert sorted(_params()) == ["block_0", "embed", "mask_token", "norm", "out"]


DECAYS = (0.99995, 0.99999)


# First, middle and last of 301 steps.
@pytest.mark.parametrize(("step", "decay"), [(0, 0.99995), (150, 0.99997), (300, 0.99999)])
def test_the_target_follows_by_the_schedule(step, decay):
    rng = np.random.default_rng(0)
    # Far apart, so that what moves is not lost in the digits of the target itself.
    target, online = np.float32([[1e-3], [100.0]]) * rng.normal(size=(2, 5)).astype(np.float32)
    tree = {"content": {"norm": {"scale": target}}}
    ours = {"content": {"norm": {"scale": online}, "patch": online}, "head": online}
    moved = jax.jit(moved_target, static_argnums=3)(tree, ours, step / jnp.float32(300), DECAYS)
    assert list(moved) == ["content"]
    assert list(moved["content"]) == ["norm"]
    change = np.float64(moved["content"]["norm"]["scale"]) - target
    expected = (1 - decay) * (np.float64(online) - target)
    np.testing.assert_allclose(change, expected, rtol=2e-6)


def test_the_learned_token_is_at_first_nothing_and_has_its_number_of_parameters():
    projection = TokenProjection()
    shapes = jax.eval_shape(projection.init, jax.random.key(0), jnp.zeros((1, 3, 768)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 3_548_928
    assert sorted(shapes) == ["block", "norm", "token"]
    tokens = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    variables = projection.init(jax.random.key(0), tokens)
    assert (variables["params"]["token"] == 0).all()
    # It attends to a set: the order of patches is of no effect, what they hold is.
    project = jax.jit(projection.apply)
    np.testing.assert_allclose(
        project(variables, tokens), project(variables, tokens[:, ::-1]), atol=1e-6
    )
    assert np.abs(project(variables, tokens) - project(variables, tokens**2)).max() > 1e-3


def test_widths_that_cannot_be_cut_are_refused():
    with pytest.raises(InputError, match=r"PredictorConfig.width: 500 with 16 heads; it must be"):
        PredictorConfig(width=500)
