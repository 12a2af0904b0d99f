"""Spatial-CLAP: its published sizes, its laws, and two steps of every shipped config."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import RATE_HZ, WINDOW, random_variables, tiny_experiment

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.models.parted import PartedCnnConfig
from spatial_clap_jax.models.plain_spatial import PlainSpatialConfig
from spatial_clap_jax.systems.spatial_clap import ProjectionMlp, SpatialClapConfig, unit
from spatial_clap_jax.train.experiment import SIZES, Experiment, load_config
from spatial_clap_jax.train.optim import make_optimizer
from spatial_clap_jax.train.step import TrainStep, init_state


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shrunk(size: str, config: str = "spatial_clap.py") -> Experiment:
    """A shipped config with the same parts, each as narrow and shallow as it goes."""
    experiment = load_config(f"configs/{config}", size)
    model = experiment.model
    if isinstance(model.content, HtsatConfig):
        content = dataclasses.replace(
            model.content, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1)
        )
        window_s = 2.0
    else:
        content = dataclasses.replace(
            model.content, channels=(8,), pools=model.content.pools[:1], width=16, heads=2
        )
        window_s = 0.5
    if isinstance(model.text, LabelsConfig):
        text = LabelsConfig(("bell", "dog"))
    else:
        text = dataclasses.replace(
            model.text, vocabulary=300, width=16, heads=2, layers=1, mlp_width=16, max_tokens=12
        )
    narrow: dict[str, Any] = {"gru_width": 8, "gru_layers": 1}
    if isinstance(model.spatial, PartedCnnConfig):
        narrow = {"parts": 2}
    spatial = dataclasses.replace(
        model.spatial,
        channels=(8,),
        pools=model.spatial.pools[:1],
        frame_width=16,
        heads=2,
        width=16,
        **narrow,
    )
    model = dataclasses.replace(
        model, content=content, window_s=window_s, text=text, spatial=spatial, joint_width=16
    )
    return dataclasses.replace(experiment, model=model)


def random_batch(experiment: Experiment, rows: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    system = experiment.build_system()
    tokens = system.max_tokens
    # Each class in each direction, two at a time.
    events = np.eye(10, dtype=np.float32) + np.eye(10, k=3, dtype=np.float32)
    return {
        "events": jnp.asarray(np.resize(events, (rows, 2, 5))),
        "audio": jnp.asarray(rng.normal(size=(rows, 2, system.window_samples)), jnp.float32) * 0.1,
        "tokens": jnp.asarray(rng.integers(5, 300, size=(rows, tokens)), jnp.int32),
        "token_mask": jnp.asarray(np.arange(tokens) < rng.integers(2, tokens, size=(rows, 1))),
        "group": jnp.arange(rows) // 2,
        "meaning": jnp.arange(rows),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size"),
    [
        *(("spatial_clap.py", size) for size in SIZES),
        ("spatial_clap_labels.py", "small"),
        ("spatial_clap_labels.py", "base"),
        ("spatial_clap_from_labels.py", "small"),
    ],
)
def test_two_shrunk_steps_of_every_shipped_config(config, size):
    experiment = shrunk(size, config)
    system, batch = experiment.build_system(), random_batch(experiment)
    # At full warm-up the very first step would not move.
    settings = dataclasses.replace(experiment.optimizer, warmup_steps=1)
    shapes = jax.eval_shape(system.init, jax.random.key(0))["params"]
    optimizer = make_optimizer(settings, 10, shapes)
    averaged = experiment.ema_decay is not None
    start = partial(init_state, system, optimizer, jax.random.key(0), {}, averaged=averaged)
    state = jax.jit(start)()
    step = jax.jit(
        TrainStep(system, optimizer, jax.random.key(1), ema_decay=experiment.ema_decay).__call__
    )
    before = state.variables["params"]
    for _ in range(2):
        state, metrics = step(state, batch)
        assert all(np.isfinite(float(metrics[name])) for name in metrics)
    after = state.variables["params"]
    still = jax.tree_util.tree_map_with_path(
        lambda path, a, b: jax.tree_util.keystr(path) if bool((a == b).all()) else None,
        before,
        after,
    )
    unmoved = [path for path in jax.tree.leaves(still) if "score" not in path]
    # Unused rows of a table stay where they are; a whole kernel that stays is dead.
    assert unmoved == []
    assert int(state.step) == 2


def test_the_released_architecture_has_its_published_sizes():
    experiment = load_config("configs/spatial_clap.py", "base")
    system = experiment.build_system()
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]
    assert count(params["spatial"]) == 1_095_616
    assert count(params["fusion"]) == 918_528
    assert count(params["text"]) == 124_645_632
    assert params["fusion"]["hidden"]["kernel"].shape == (1024 + 256, 512)
    assert system.sample_rate_hz == 16_000
    assert system.window_samples == 160_000


def test_projection_mlp_by_hand():
    params = {
        "hidden": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
        "out": {"kernel": jnp.array([[2.0], [5.0]]), "bias": jnp.array([1.0])},
    }
    out = ProjectionMlp(2, 1).apply({"params": params}, jnp.array([[3.0], [-3.0]]))
    np.testing.assert_allclose(out, [[7.0], [16.0]])


def test_unit_rows():
    np.testing.assert_allclose(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


@pytest.fixture(scope="module")
def small():
    experiment = shrunk("small")
    system = experiment.build_system()
    return system, jax.jit(system.init)(jax.random.key(3)), random_batch(experiment, 5)


@pytest.mark.slow
def test_embeddings_are_unit_and_do_not_depend_on_the_batch(small):
    system, variables, batch = small
    audio = system.embed_audio(variables, batch["audio"])
    text = system.embed_text(variables, batch["tokens"], batch["token_mask"])
    for many, embed, inputs in (
        (audio, system.embed_audio, (batch["audio"],)),
        (text, system.embed_text, (batch["tokens"], batch["token_mask"])),
    ):
        np.testing.assert_allclose(jnp.linalg.norm(many, axis=1), 1.0, atol=1e-5)
        one = jnp.concatenate([embed(variables, *(x[i : i + 1] for x in inputs)) for i in range(5)])
        np.testing.assert_allclose(one, many, atol=1e-5)


def test_swapped_channels_are_another_scene_to_the_spatial_side_only(small):
    system, variables, batch = small

    @jax.jit
    def encoded(audio):
        """Of both encoders, and the embedding."""
        embedding, kept = system.module.apply(
            variables,
            audio,
            False,
            method="embed_audio",
            capture_intermediates=lambda module, _: module.name in ("content", "spatial"),
        )
        return embedding, {k: v["__call__"][0] for k, v in kept["intermediates"].items()}

    (straight, parts), (swapped, swapped_parts) = (
        encoded(audio) for audio in (batch["audio"], batch["audio"][:, ::-1])
    )
    assert set(parts) == {"content", "spatial"}
    heard, heard_swapped = parts["content"].pooled, swapped_parts["content"].pooled
    np.testing.assert_allclose(heard, heard_swapped, atol=1e-5)
    assert np.abs(parts["spatial"] - swapped_parts["spatial"]).max() > 1e-4
    assert np.abs(straight - swapped).max() > 1e-4


@pytest.mark.slow
def test_a_joint_gain_changes_nothing_in_small(small):
    system, variables, batch = small
    loud = system.embed_audio(variables, batch["audio"] * 4.0)
    np.testing.assert_allclose(system.embed_audio(variables, batch["audio"]), loud, atol=1e-4)


def test_training_draws_follow_from_the_key_alone(small):
    system, variables, batch = small

    @jax.jit
    def loss(variables, batch, key):
        encoded = system.encode(variables, batch, key, train=True)
        return system.objective(encoded.rows, encoded.shared, batch, None)[0]

    losses = [float(loss(variables, batch, jax.random.key(seed))) for seed in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]


def test_initial_scale_is_the_configs():
    config = dataclasses.replace(shrunk("small").model)
    assert isinstance(config, SpatialClapConfig)
    system = config.build(ContrastiveConfig(initial_scale=12.0))
    shapes = jax.jit(system.init)(jax.random.key(0))["params"]
    assert float(jnp.exp(shapes["logit_scale"])) == pytest.approx(12.0)


def tiny_embeddings(**changes):
    """Variables of a changed tiny model, its embeddings of two recordings, and of them swapped."""
    experiment = tiny_experiment()
    model = dataclasses.replace(experiment.model, **changes)
    experiment = dataclasses.replace(experiment, model=model)
    variables = random_variables(experiment)
    rng = np.random.default_rng(4)
    # Noise from somewhere: the right channel fainter, later, and with some noise of its own.
    both = rng.standard_normal((2, 2, WINDOW))
    both[:, 1] = 0.5 * np.roll(both[:, 0], 3, axis=-1) + 0.1 * both[:, 1]
    embed = jax.jit(experiment.build_system().embed_audio)
    audio = both.astype(np.float32)
    return variables, *(np.asarray(embed(variables, a)) for a in (audio, audio[:, ::-1]))


def test_a_monaural_model_hears_no_channels():
    variables, straight, swapped = tiny_embeddings(spatial=None, spatial_mel=None)
    assert not {"spatial", "spatial_projection"} & set(variables["params"])
    np.testing.assert_allclose(np.linalg.norm(straight, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(swapped, straight, atol=1e-6)
    # It hears something: two recordings differ.
    assert np.abs(straight[0] - straight[1]).max() > 1e-5


def test_content_and_place_in_halves_of_the_embedding():
    plain = PlainSpatialConfig(lags=9, width=8)
    variables, straight, swapped = tiny_embeddings(spatial=plain, joined="separate")
    for half in ("fusion", "spatial_projection"):
        assert variables["params"][half]["out"]["kernel"].shape[1] == 6
    # Each half has half of the product of two embeddings.
    for part in (straight[:, :6], straight[:, 6:], swapped[:, :6], swapped[:, 6:]):
        np.testing.assert_allclose((part**2).sum(axis=1), 0.5, atol=1e-5)
    np.testing.assert_allclose(swapped[:, :6], straight[:, :6], atol=1e-5)
    assert np.abs(swapped[:, 6:] - straight[:, 6:]).max() > 1e-2


def test_the_level_of_the_mean_is_the_same_from_the_planes_and_from_the_mean():
    model = tiny_experiment().model
    assert model.content_mel == model.spatial_mel
    _, shared, _ = tiny_embeddings()
    # A floor that nothing reaches makes the front ends two.
    mel = dataclasses.replace(model.content_mel, amin=2e-10)
    _, apart, _ = tiny_embeddings(content_mel=mel)
    assert mel.sample_rate_hz == RATE_HZ
    np.testing.assert_allclose(shared, apart, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_mel": None}, r"model\.spatial_mel: None, but 'mel_cross' planes need its"),
        (
            {"spatial": PlainSpatialConfig(), "spatial_planes": "magnitude_phase"},
            r"model\.spatial_planes: 'magnitude_phase', but a plain spatial encoder takes 'mel_cr",
        ),
        ({"joined": "separate", "spatial": None}, r"model\.joined: 'separate' needs a spatial enc"),
        ({"joined": "separate", "joint_width": 13}, r"an even joint_width, not 13; give both"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_experiment().model, **changes)
