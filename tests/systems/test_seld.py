"""A SELD network: what it takes, what its parts weigh, and that each clip is told by itself."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_seld import tiny_batch, tiny_seld

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.seld_encoder import RecurrentConfig
from spatial_clap_jax.systems.base import System, Trainable
from spatial_clap_jax.systems.seld import Seld, as_image, at_labels


def changed(**changes) -> Seld:
    """The tiny network with other settings of its model."""
    ours = tiny_seld()
    model = dataclasses.replace(ours.model, **changes)
    return dataclasses.replace(ours, model=model).build_trainable()


@pytest.fixture(scope="module")
def system() -> Seld:
    return changed()


@pytest.fixture(scope="module")
def variables(system):
    return jax.jit(system.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def located(system, variables):
    return jax.jit(system.locate)(variables, inputs(tiny_batch(system, 3)))


def inputs(batch):
    return {name: rows for name, rows in batch.items() if name != "targets"}


def test_it_trains_and_embeds_nothing(system):
    assert isinstance(system, Trainable)
    assert not isinstance(system, System)


def test_tracks_are_directions_distances_and_probabilities(located):
    located = np.asarray(located)
    assert located.shape == (3, 4, 3, 4, 2)
    assert (np.abs(located[:, :, :, :2]) < 1).all()
    assert (located[:, :, :, 2] > 0).all()
    assert ((located[:, :, :, 3] > 0) & (located[:, :, :, 3] < 1)).all()


def test_a_clip_is_located_by_itself_as_among_others(system, variables, located):
    batch = inputs(tiny_batch(system, 3))
    other = {name: np.concatenate([rows[2:], rows[:1], rows[:1]]) for name, rows in batch.items()}
    again = jax.jit(system.locate)(variables, other)
    np.testing.assert_allclose(again[0], located[2], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, set()),
        (
            {"looks": False},
            {"image", "column", "seen_in", "seen_norm", "sight", "sight_norm", "visible"},
        ),
        ({"listens": False}, {"content", "heard_in", "heard_norm"}),
    ],
)
def test_what_is_left_out_has_no_weights(system, variables, changes, gone):
    shapes = jax.eval_shape(changed(**changes).init, jax.random.key(0))
    assert variables["params"].keys() - shapes["params"].keys() == gone


def test_sound_alone_needs_no_fusion():
    alone = changed(listens=False, looks=False, temporal=RecurrentConfig(width=8, heads=2))
    assert alone.batch_rows().keys() == {"audio", "targets"}
    shapes = jax.eval_shape(alone.init, jax.random.key(0))["params"]
    assert shapes.keys() == {"encoder", "temporal", "hidden", "head"}


@pytest.mark.slow
def test_every_weight_has_a_gradient(system, variables):
    batch = tiny_batch(system, 2)

    def loss(params, batch):
        encoded = system.encode({**variables, "params": params}, batch, jax.random.key(1), True)
        return system.objective(encoded.rows, encoded.shared, batch, None)[0]

    gradients = jax.jit(jax.grad(loss))(variables["params"], batch)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(np.asarray(leaf)).max() > 0
    ]
    # What pools a CNN's moments into one vector is not asked.
    assert not [path for path in still if "['pool']" not in path]


def test_pictures_matter_by_column(system, variables, located):
    """A picture that is mirrored changes what is told; one of other rows alone hardly can."""
    batch = inputs(tiny_batch(system, 3))
    batch["frames"] = batch["frames"][:, :, :, ::-1]
    mirrored = jax.jit(system.locate)(variables, batch)
    assert np.abs(np.asarray(mirrored) - np.asarray(located)).max() > 1e-4


def test_what_is_seen_is_told_wherever_it_stands(system, variables):
    """Sights are the same for a picture whose patches stand elsewhere."""
    seen = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 8)).astype(np.float32)
    sights = jax.jit(partial(system.module.apply, method="_sights"))(variables, seen)
    moved = jax.jit(partial(system.module.apply, method="_sights"))(
        variables, seen[:, :, ::-1, ::-1]
    )
    np.testing.assert_array_equal(sights, moved)
    assert np.abs(sights).max() > 0


def test_how_loud_a_clip_is_counts_where_it_is_asked_to():
    batch = inputs(tiny_batch(changed(listens=False, looks=False), 1))
    louder = {**batch, "audio": batch["audio"] * 2}
    for loudest_db, matters in ((None, False), (10.0, True)):
        system = changed(listens=False, looks=False, loudest_db=loudest_db)
        locate = jax.jit(system.locate)
        variables = jax.jit(system.init)(jax.random.key(0))
        off = np.abs(np.asarray(locate(variables, louder) - locate(variables, batch))).max()
        assert (off > 1e-3) == matters


def test_pictures_alone_tell_what_is_visible(system, variables):
    """The sound has no part in it, and on-screen flags follow it."""
    batch = inputs(tiny_batch(system, 2))
    tell = jax.jit(partial(system.module.apply, train=False, method="tracks_and_visible"))
    tracks, visible = tell(variables, batch)
    _, unheard = tell(variables, {**batch, "audio": batch["audio"][::-1]})
    np.testing.assert_array_equal(visible, unheard)
    _, unseen = tell(variables, {**batch, "frames": batch["frames"][::-1]})
    assert np.abs(np.asarray(visible - unseen)).max() > 1e-4
    bias = variables["params"]["visible"]["bias"]
    visibly = {**variables["params"]["visible"], "bias": bias + 1}
    shown, _ = tell({**variables, "params": {**variables["params"], "visible": visibly}}, batch)
    np.testing.assert_allclose(shown[..., 3, :], tracks[..., 3, :] + 1, atol=1e-5)


@pytest.mark.slow
def test_cached_features_stand_where_the_tower_stood():
    """With what the towers give as caches, the rest of the network tells the same.

    A cache has the mean of a picture's rows; here there is one.
    """
    image = changed().config.image
    assert image is not None
    image = dataclasses.replace(image, image_size=(image.patch, 16))
    whole = changed(image=image)
    batch, variables = inputs(tiny_batch(whole, 3)), jax.jit(whole.init)(jax.random.key(0))
    heard, seen = jax.jit(whole.features_of)(variables, batch)
    cached = changed(heard=heard.shape[1:], heard_step_s=0.04, seen=seen.shape[1:])
    assert cached.config.looked_at is None
    params = {k: v for k, v in variables["params"].items() if k not in ("content", "image")}
    stats = {k: v for k, v in variables["batch_stats"].items() if k != "content"}
    told = jax.jit(cached.locate)(
        {"params": params, "batch_stats": stats},
        {"audio": batch["audio"], "heard": heard, "seen": seen},
    )
    np.testing.assert_allclose(told, jax.jit(whole.locate)(variables, batch), atol=1e-5)


def test_moments_are_interpolated_between_their_middles():
    moments = jnp.arange(3.0)[None, :, None]
    at = jax.jit(at_labels, static_argnums=(1, 2))
    # The middles of three moments of 0.2 s lie at labels 0.5, 2.5 and 4.5.
    found = at(moments, 6, 0.2)[0, :, 0]
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
    np.testing.assert_allclose(at(moments, 3, 0.1), moments, atol=1e-6)
    # HTSAT's 312.5 ms: label 1 is in the middle of the first moment, label 4 near the second's.
    steps = at(moments, 6, 0.3125)[0, :, 0]
    np.testing.assert_allclose(steps[1], 0.0, atol=0.02)
    np.testing.assert_allclose(steps[4], 0.94, atol=1e-5)
    turned = at(moments[:, ::-1], 6, 0.2)[0, ::-1, 0]
    np.testing.assert_allclose(turned, found, atol=1e-6)


def test_images_are_normalised_as_clip_does():
    white = jax.jit(as_image)(np.full((1, 1, 1, 3), 255, np.uint8))[0, 0, 0]
    np.testing.assert_allclose(white, [1.93033625, 2.07488384, 2.14589699], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration_s": 0.45}, r"model.duration_s: 0.45 is no whole number of label frames"),
        (
            {"temporal": RecurrentConfig(width=16, heads=2)},
            r"model.fusion.width: 8, but model.temporal.width is 16; give both the same",
        ),
        ({"pictures": 0}, r"model.pictures: 0 must be at least 1"),
        ({"sights": 0}, r"model.sights: 0 must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        changed(**changes)


def test_it_takes_no_captions_and_no_contrast():
    ours = tiny_seld()
    with pytest.raises(
        InputError, match=r"data: PipelineConfig, but a SeldConfig takes a SeldPipe"
    ):
        dataclasses.replace(ours, data=PipelineConfig())
    with pytest.raises(InputError, match=r"loss: ContrastiveConfig, but a SeldConfig takes a Acc"):
        dataclasses.replace(ours, loss=ContrastiveConfig())
    with pytest.raises(InputError, match="locates events and embeds nothing"):
        ours.build_system()


def test_classes_have_names():
    ours = tiny_seld()
    model = dataclasses.replace(ours.model, classes=None)
    with pytest.raises(InputError, match=r"model.classes: None is left to the data"):
        dataclasses.replace(ours, model=model).build_trainable().batch_rows()
