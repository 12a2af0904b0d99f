"""Losses of rivals, by hand, against a plain loop, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.losses.rivals import group_rival_loss, rival_loss


def unit_rows(seed: int, rows: int = 6, width: int = 5) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


rivalry = jax.jit(rival_loss)
group_rivalry = jax.jit(group_rival_loss)


def test_a_rival_as_near_as_the_own_text_costs_log_2():
    audio, text = unit_rows(0), unit_rows(1)
    for scale in (1.0, 30.0):
        found = rivalry(audio, text, text, jnp.float32(scale), jnp.arange(6) > 2)
        assert found == pytest.approx(np.log(2), rel=1e-6)


def test_rivals_by_hand_and_rows_without_one_do_not_count():
    audio = jnp.eye(3)
    text = jnp.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    rival = jnp.array([[0, 1.0, 0], [0, 1.0, 0], [0, 0, -1.0]])
    # Cosines of text and rival: 1 and 0; 0.8 and 1; 1 and -1.
    costs = np.log1p(np.exp([-3.0 * 1.0, 3.0 * 0.2, -3.0 * 2.0]))
    for contested in ([True, True, True], [True, True, False], [False, True, False]):
        found = rivalry(audio, text, rival, jnp.float32(3.0), jnp.array(contested))
        assert found == pytest.approx(costs[contested].mean(), rel=1e-5)


def test_no_rival_at_all_is_no_loss_and_a_zero_gradient():
    rows = [unit_rows(seed) for seed in (0, 1, 2)]
    scale, nobody = jnp.float32(9.0), jnp.zeros(6, bool)
    alone = jnp.arange(6)
    for loss, arguments in (
        (lambda *a: rival_loss(*a, nobody), (*rows, scale)),
        (lambda *a: group_rival_loss(*a, alone, alone), (*rows[:2], scale)),
    ):
        places = tuple(range(len(arguments)))
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=places))(*arguments)
        assert value == 0.0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0.0)


# Two alone, a pair, one alone, three pairs; the second last pair means one thing twice.
GROUPS = np.array([4, 9, 7, 7, 2, 3, 3, 8, 8, 1, 1], np.int32)
MEANINGS = np.array([0, 1, 2, 3, 2, 5, 6, 7, 7, 2, 0], np.int32)
PARTS = ([0], [1], [2, 3], [4], [5, 6], [7, 8], [9, 10])


def of_groups(rows=slice(None), scale=6.0):
    audio, text = unit_rows(5, 11), unit_rows(6, 11)
    group, meaning = jnp.asarray(GROUPS[rows]), jnp.asarray(MEANINGS[rows])
    return audio[rows], text[rows], jnp.float32(scale), group, meaning


def test_rivals_in_groups_equal_a_loop_over_the_members():
    audio, text = (np.asarray(x, np.float64) for x in of_groups()[:2])
    costs = []
    for part in PARTS:
        for one in part:
            for other in part:
                if MEANINGS[one] != MEANINGS[other]:
                    to_text = 6.0 * audio[one] @ (text[one] - text[other])
                    to_audio = 6.0 * text[one] @ (audio[one] - audio[other])
                    costs.append(0.5 * (np.log1p(np.exp(-to_text)) + np.log1p(np.exp(-to_audio))))
    assert len(costs) == 6
    assert group_rivalry(*of_groups()) == pytest.approx(np.mean(costs), rel=1e-5)


def test_order_of_groups_of_their_members_and_of_the_sides_is_nothing():
    loss = float(group_rivalry(*of_groups()))
    for order in ((6, 2, 0, 5, 1, 4, 3), (4, 3, 2, 1, 0, 6, 5)):
        rows = np.concatenate([PARTS[i] for i in order])
        assert group_rivalry(*of_groups(rows)) == pytest.approx(loss, rel=1e-5)
        assert group_rivalry(*of_groups(rows[::-1])) == pytest.approx(loss, rel=1e-5)
    audio, text, *others = of_groups()
    assert group_rivalry(text, audio, *others) == pytest.approx(loss, rel=1e-5)


def test_rows_alone_in_their_group_and_equal_meanings_are_no_rivals():
    loss = float(group_rivalry(*of_groups()))
    contested = np.array([2, 3, 5, 6, 9, 10])
    # Without them the batch has the same loss; with other embeddings of theirs too.
    assert group_rivalry(*of_groups(contested)) == pytest.approx(loss, rel=1e-5)
    audio, text, *others = of_groups()
    rest = np.setdiff1d(np.arange(11), contested)
    moved = group_rivalry(audio.at[rest].set(-1.0), text.at[rest].set(0.5), *others)
    assert moved == pytest.approx(loss, rel=1e-5)


def test_a_batch_of_one_group_is_its_own_rival():
    audio, text, scale, group, meaning = of_groups(np.array([2, 3]))
    to_text = rivalry(audio, text, text[::-1], scale, jnp.array([True, True]))
    to_audio = rivalry(text, audio, audio[::-1], scale, jnp.array([True, True]))
    found = group_rivalry(audio, text, scale, group, meaning)
    assert found == pytest.approx((float(to_text) + float(to_audio)) / 2, rel=1e-6)
