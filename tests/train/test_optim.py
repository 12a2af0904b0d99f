"""The optimiser's rules, each seen in one step on hand-made parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.optim import OptimizerConfig, make_optimizer, make_schedule

PARAMS = {
    "audio": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "text": {"positions": {"embedding": jnp.full((3, 2), 2.0)}, "kernel": jnp.full((2, 2), 2.0)},
}


def one_step(config: OptimizerConfig, gradient: float = 1.0):
    """Parameters after a step at the peak rate from equal gradients."""
    optimizer = make_optimizer(config, 10, PARAMS)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates)


def peak(**changes) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.1, "warmup_steps": 0, "clip_norm": 0, **changes})


def test_schedule_at_first_peak_and_last_step():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=0.2, warmup_steps=10, final_share=0.1), 110
    )
    assert schedule(0) == 0.0
    assert schedule(5) == pytest.approx(0.1)
    assert schedule(10) == pytest.approx(0.2)
    assert schedule(60) == pytest.approx(0.2 * (0.1 + 0.9 * 0.5))
    assert schedule(110) == pytest.approx(0.02)


def test_schedule_fits_runs_shorter_than_the_warm_up():
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=500), 4)
    assert [float(schedule(i)) for i in (0, 1, 2)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("frozen", [(), ("^text/",)])
def test_a_plateau_halves_the_rate(frozen):
    """Losses of two steps are averaged; two averages without a new low are borne, a third not."""
    config = peak(
        weight_decay=0.0,
        schedule="plateau",
        plateau_steps=2,
        plateau_patience=2,
        final_share=0.3,
        frozen=frozen,
    )
    optimizer = make_optimizer(config, 100, PARAMS)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)

    @jax.jit
    def update(state, loss):
        updates, state = optimizer.update(gradients, state, PARAMS, value=loss)
        return updates["audio"]["bias"][0], state

    state, moves = optimizer.init(PARAMS), []
    # A first average of 1, then falling ones, then a level.
    for loss in [1.0, 1.0, 0.5, 0.5, *[0.5] * 10]:
        move, state = update(state, loss)
        moves.append(float(move))
    np.testing.assert_allclose(moves[:7], -0.1, rtol=1e-4)
    np.testing.assert_allclose(moves[8:11], -0.05, rtol=1e-4)
    # Not below the least share.
    np.testing.assert_allclose(moves[-1], -0.03, rtol=1e-4)


def test_a_plateau_rises_first():
    config = OptimizerConfig(learning_rate=0.2, warmup_steps=4, schedule="plateau")
    schedule = make_schedule(config, 100)
    assert [float(schedule(i)) for i in (0, 2, 4, 99)] == pytest.approx([0, 0.1, 0.2, 0.2])


def test_adam_moves_by_the_rate():
    moved = one_step(peak(weight_decay=0.0))
    np.testing.assert_allclose(moved["audio"]["kernel"], 2.0 - 0.1, rtol=1e-5)


def test_only_matrices_decay():
    # Adam's move is 0.1; decay adds 0.1 * 0.5 * 2.
    moved = one_step(peak(weight_decay=0.5))
    np.testing.assert_allclose(moved["audio"]["kernel"], 1.8, rtol=1e-5)
    np.testing.assert_allclose(moved["audio"]["bias"], 1.9, rtol=1e-5)
    np.testing.assert_allclose(moved["text"]["positions"]["embedding"], 1.9, rtol=1e-5)


def test_first_matching_rule_sets_the_rate():
    rules = ((r"^text/", 3.0), (r"kernel$", 0.5))
    moved = one_step(peak(weight_decay=0.0, rate_rules=rules))
    np.testing.assert_allclose(moved["text"]["kernel"], 1.7, rtol=1e-5)
    np.testing.assert_allclose(moved["audio"]["kernel"], 1.95, rtol=1e-5)
    np.testing.assert_allclose(moved["audio"]["bias"], 1.9, rtol=1e-5)


def test_lars_moves_a_matrix_by_its_length_and_all_else_by_the_gradient():
    config = peak(kind="lars", weight_decay=0.0, learning_rate=2.0)
    for gradient in (1.0, 50.0):
        moved = one_step(config, gradient)
        # A matrix of length 4 moves by rate * 0.001 * 4, however long the gradient.
        np.testing.assert_allclose(moved["audio"]["kernel"], 2.0 - 0.008 / 2, rtol=1e-6)
        np.testing.assert_allclose(moved["audio"]["bias"], 2.0 - 2.0 * gradient, rtol=1e-6)
    # Its decay is a part of the gradient; here it is against it, and three times as long.
    moved = one_step(peak(kind="lars", weight_decay=1.5, learning_rate=2.0), -1.0)
    np.testing.assert_allclose(moved["text"]["kernel"], 2.0 - 0.004, rtol=1e-6)
    np.testing.assert_allclose(moved["text"]["positions"]["embedding"], 4.0, rtol=1e-6)


def test_lars_keeps_its_momentum_and_the_rules():
    config = peak(
        kind="lars", weight_decay=0.0, b1=0.5, frozen=(r"^text/",), rate_rules=((r"bias$", 0.1),)
    )
    optimizer = make_optimizer(config, 10**6, PARAMS)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    # 0.1 * 0.1, then half as much again with the same anew.
    np.testing.assert_allclose(params["audio"]["bias"], 2.0 - 0.01 - 0.015, rtol=1e-5)
    np.testing.assert_array_equal(params["text"]["kernel"], 2.0)


def test_frozen_paths_do_not_move_not_even_by_decay():
    config = peak(weight_decay=0.5, frozen=(r"^text/",), rate_rules=((r"bias$", 2.0),))
    moved = one_step(config)
    np.testing.assert_array_equal(moved["text"]["kernel"], 2.0)
    np.testing.assert_allclose(moved["audio"]["kernel"], 1.8, rtol=1e-5)
    np.testing.assert_allclose(moved["audio"]["bias"], 1.8, rtol=1e-5)


def test_frozen_parameters_keep_no_moments():
    state = make_optimizer(peak(frozen=(r"^text/",)), 10, PARAMS).init(PARAMS)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (3, 2) not in shapes


def test_clipping_leaves_adams_first_direction_but_bounds_the_moments():
    optimizer = make_optimizer(peak(clip_norm=1.0), 10, PARAMS)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 1e6), PARAMS)
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state)) <= 1.0


@pytest.mark.parametrize("field", ["frozen", "rate_rules"])
def test_a_rule_that_matches_nothing_is_refused(field):
    rule = "^vision/" if field == "frozen" else ("^vision/", 2.0)
    with pytest.raises(InputError, match=r"'\^vision/' matches no parameter.*audio, text"):
        make_optimizer(OptimizerConfig(**{field: (rule,)}), 10, PARAMS)


def test_a_broken_rule_is_refused():
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        make_optimizer(OptimizerConfig(frozen=("(",)), 10, PARAMS)
