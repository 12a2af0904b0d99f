"""Spatial-CLAP told by labels, and texts whose tokens are projected before they are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MAX_TOKENS, WINDOW, random_variables, tiny_experiment

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.systems.base import reads_texts
from spatial_clap_jax.train.experiment import Experiment

CLASSES = ("bell", "dog", "rain")


def with_model(**changes) -> Experiment:
    experiment = tiny_experiment()
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))


def labelled() -> Experiment:
    return with_model(text=LabelsConfig(CLASSES))


def batch(rows: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    events = np.zeros((rows, len(CLASSES), 5), np.float32)
    for row in range(rows):
        events[row, row % 3, row % 5] = events[row, (row + 1) % 3, (row + 2) % 5] = 1.0
    return {
        "audio": jnp.asarray(rng.normal(size=(rows, 2, WINDOW)), jnp.float32),
        "tokens": jnp.zeros((rows, 8), jnp.int32),
        "token_mask": jnp.ones((rows, 8), bool),
        "events": jnp.asarray(events),
    }


def test_the_audio_side_is_that_of_a_model_with_captions():
    def shapes(experiment):
        params = jax.eval_shape(experiment.build_system().init, jax.random.key(0))["params"]
        return params, jax.tree.map(lambda x: x.shape, params)

    (told, labels), (read, captions) = shapes(labelled()), shapes(tiny_experiment())
    assert told.keys() - read.keys() == {"labels"}
    assert read.keys() - told.keys() == {"text", "text_projection"}
    for name in told.keys() & read.keys():
        assert labels[name] == captions[name]


def test_rows_are_told_by_their_events_and_by_nothing_else():
    system, variables = labelled().build_system(), random_variables(labelled())
    given = batch()
    text = system.encode(variables, given, jax.random.key(0), train=False).rows["text"]
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1.0, rtol=1e-5)
    vectors = variables["params"]["labels"]["vectors"]
    summed = np.einsum("bnd,nde->be", given["events"], vectors)
    summed /= np.linalg.norm(summed, axis=-1, keepdims=True)
    np.testing.assert_allclose(text, summed, atol=1e-6)
    other = {**given, "tokens": given["tokens"] + 7}
    again = system.encode(variables, other, jax.random.key(0), train=False).rows["text"]
    np.testing.assert_array_equal(again, text)


def test_rivals_are_told_by_their_events():
    loss = ContrastiveConfig(scl=False, rival_weight=0.5)
    system = labelled().model.build(loss)
    assert system.labels == ("events", "rival_events")
    given = batch()
    given["rival_events"] = given["events"][::-1]
    rows = system.encode(random_variables(labelled()), given, jax.random.key(0), train=False).rows
    np.testing.assert_allclose(rows["rival"], rows["text"][::-1], atol=1e-6)


def test_it_reads_nothing():
    system = labelled().build_system()
    assert not reads_texts(system)
    assert reads_texts(tiny_experiment().build_system())
    with pytest.raises(InputError, match=r"was told labels and reads nothing; train it with capt"):
        system.embed_text({}, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool))


def test_classes_must_be_known_before_it_is_built():
    with pytest.raises(InputError, match=r"model\.text\.classes: None stands for the categories o"):
        with_model(text=LabelsConfig()).build_system()


def test_projected_tokens_do_not_see_the_padding():
    experiment = with_model(projected="tokens")
    system, variables = experiment.build_system(), random_variables(experiment)
    tokens = np.random.default_rng(0).integers(5, 300, size=(2, MAX_TOKENS)).astype(np.int32)
    mask = np.arange(MAX_TOKENS) < np.array([[4], [7]])
    other = np.where(mask, tokens, 9)
    told, again = (system.embed_text(variables, t, mask) for t in (tokens, other))
    np.testing.assert_allclose(told, again, atol=1e-6)
    short = system.embed_text(variables, tokens[:, :7], mask[:, :7])
    np.testing.assert_allclose(told, short, atol=1e-5)


def test_a_text_of_one_token_is_the_same_projected_before_or_after():
    tokens, mask = jnp.array([[17], [33]]), jnp.ones((2, 1), bool)
    experiments = [with_model(projected=what) for what in ("text", "tokens")]
    variables = random_variables(experiments[0])
    before, after = (e.build_system().embed_text(variables, tokens, mask) for e in experiments)
    np.testing.assert_allclose(before, after, atol=1e-6)
    # Of two they are not: the projection is no linear map.
    tokens, mask = jnp.array([[17, 33]]), jnp.ones((1, 2), bool)
    before, after = (e.build_system().embed_text(variables, tokens, mask) for e in experiments)
    assert not np.allclose(before, after, atol=1e-5)


def test_tokens_are_averaged_so_that_no_pooler_would_be_used():
    text = dataclasses.replace(tiny_experiment().model.text, pooling="first")
    with pytest.raises(InputError, match=r"model\.projected: 'tokens' are averaged, but .*'first'"):
        with_model(projected="tokens", text=text)
