"""ELSA: its published sizes, its laws, its regressions, and two steps of every shipped config."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import RATE_HZ, WINDOW, random_variables, tiny_elsa

from spatial_clap_jax.acoustics.foa import foa_gains, mono_as_foa, rotate_foa, unit_vectors
from spatial_clap_jax.data.labels import LABELS
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import StftConfig
from spatial_clap_jax.losses.contrastive import ring_info_nce
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.layers import ProjectionMlp
from spatial_clap_jax.models.spatial_attributes import SpatialAttributesConfig
from spatial_clap_jax.systems.base import System
from spatial_clap_jax.systems.elsa import ElsaConfig, regressions
from spatial_clap_jax.train.experiment import SIZES, Experiment, load_config
from spatial_clap_jax.train.optim import make_optimizer
from spatial_clap_jax.train.step import TrainStep, init_state


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shrunk(config: str, size: str) -> Experiment:
    """A shipped config with the same parts, each as narrow and shallow as it goes."""
    experiment = load_config(config, size)
    model = experiment.model
    attributes = dataclasses.replace(model.attributes, channels=(4,), pools=((4, 4),), hidden=(8,))
    model = dataclasses.replace(model, attributes=attributes, window_s=0.3)
    if not isinstance(model, ElsaConfig):
        return dataclasses.replace(experiment, model=model)
    if isinstance(model.content, HtsatConfig):
        content = dataclasses.replace(
            model.content, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1)
        )
    else:
        content = CnnConfig(channels=(8,), pools=model.content.pools[:1], width=16, heads=2)
    text = dataclasses.replace(
        model.text, vocabulary=300, width=16, heads=2, layers=1, mlp_width=16, max_tokens=12
    )
    model = dataclasses.replace(
        model, content=content, text=text, fusion_width=16, joint_width=16, head_width=8
    )
    return dataclasses.replace(experiment, model=model)


def random_batch(experiment: Experiment, rows: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    system = experiment.build_system()
    tokens = system.max_tokens
    drawn = rng.normal(size=(rows, 3))
    known = np.arange(rows) != 1
    labels = {
        "has_place": known,
        "direction": drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * known[:, None],
        "distance_m": rng.uniform(0.5, 4, rows) * known,
        "floor_area_m2": rng.uniform(15, 250, rows) * known,
        "attributes": np.where(known[:, None], rng.uniform(0.3, 2, (rows, 44)), np.nan),
    }
    return {
        "audio": jnp.asarray(rng.normal(size=(rows, 4, system.window_samples)), jnp.float32) * 0.1,
        "tokens": jnp.asarray(rng.integers(5, 300, size=(rows, tokens)), jnp.int32),
        "token_mask": jnp.asarray(np.arange(tokens) < rng.integers(2, tokens, size=(rows, 1))),
        "group": jnp.arange(rows),
        "meaning": jnp.arange(rows),
    } | {name: jnp.asarray(labels[name], LABELS[name][1]) for name in system.labels}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size"),
    [
        *(("elsa.py", size) for size in SIZES),
        ("elsa_attributes.py", "small"),
        ("elsa_attributes.py", "base"),
    ],
)
def test_two_shrunk_steps_of_every_shipped_config(config, size):
    experiment = shrunk(config, size)
    system, batch = experiment.build_system(), random_batch(experiment)
    assert isinstance(system, System)
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
        # Without groups of several members nothing is assigned.
        assert all(np.isfinite(float(metrics[name])) for name in metrics if name != "assignment")
    still = jax.tree_util.tree_map_with_path(
        lambda path, a, b: jax.tree_util.keystr(path) if bool((a == b).all()) else None,
        before,
        state.variables["params"],
    )
    assert [path for path in jax.tree.leaves(still) if "score" not in path] == []
    assert "direction_error_deg" in metrics


def test_the_published_architecture():
    system = load_config("elsa.py", "base").build_system()
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]
    assert count(params["branch"]) == 337_964
    assert params["spatial_projection"]["kernel"].shape == (44, 192)
    assert params["fusion"]["hidden"]["kernel"].shape == (768 + 192, 768)
    assert params["fusion"]["out"]["kernel"].shape == (768, 512)
    assert params["text_projection"]["out"]["kernel"].shape == (768, 512)
    assert params["heads_direction"]["hidden"]["kernel"].shape == (512, 256)
    assert (system.channels, system.sample_rate_hz, system.window_samples) == (4, 48_000, 480_000)
    recipe = load_config("elsa_scenes.py", "base")
    assert (recipe.sample_rate_hz, recipe.duration_s) == (48_000, 10.0)


def test_fusion_by_hand():
    params = {
        "hidden": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
        "out": {"kernel": jnp.array([[2.0], [5.0]]), "bias": jnp.array([1.0])},
    }
    out = ProjectionMlp(2, 1, activation=nn.elu).apply({"params": params}, jnp.array([[3.0]]))
    np.testing.assert_allclose(out, [[6 + 5 * (np.exp(-3) - 1) + 1]], rtol=1e-6)


def embedder(**changes):
    """Variables of a changed tiny model, and its jitted embedding of audio."""
    tiny = tiny_elsa()
    experiment = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **changes))
    variables = random_variables(experiment)
    return variables, jax.jit(partial(experiment.build_system().embed_audio, variables))


def waves(*azimuths_deg):
    """The same noise from different directions, with a little of its own in each channel."""
    rng = np.random.default_rng(3)
    gains = foa_gains(unit_vectors(np.array(azimuths_deg, float), np.zeros(len(azimuths_deg))))
    field = gains[:, :, None] * rng.standard_normal(WINDOW)
    return (field + 0.1 * rng.standard_normal((4, WINDOW))).astype(np.float32)


@pytest.mark.parametrize("branch", ["learned", "static"])
def test_a_place_is_heard_and_a_gain_is_not(branch):
    _, embed = embedder(branch=branch)
    field = waves(0, 90)
    straight = embed(field)
    np.testing.assert_allclose(np.linalg.norm(straight, axis=1), 1, atol=1e-5)
    assert np.abs(straight[0] - straight[1]).max() > 1e-3
    turned = embed(rotate_foa(field, 70.0))
    assert np.abs(turned - straight).max() > 1e-3
    np.testing.assert_allclose(embed(4 * field), straight, atol=1e-4)
    # Silence and a plain clip are finite, too.
    odd = np.stack([np.zeros((4, WINDOW), np.float32), mono_as_foa(field[0, 0])])
    assert np.isfinite(embed(odd)).all()


def test_a_gain_is_heard_where_levels_are_absolute():
    """So a distance may be, of sources whose loudness is known."""
    shape = dataclasses.replace(tiny_elsa().model.attributes, level_reference_db=-10.0)
    _, embed = embedder(attributes=shape)
    field = waves(0, 90)
    straight = embed(field)
    assert np.abs(embed(4 * field) - straight).max() > 1e-3
    # Beyond the ends of the plane nothing more is told.
    np.testing.assert_allclose(embed(1e4 * field), embed(1e5 * field), atol=1e-4)
    assert np.isfinite(embed(np.zeros((1, 4, WINDOW), np.float32))).all()


def test_a_level_that_is_not_heard_has_no_reference():
    with pytest.raises(InputError, match=r"level_reference_db: -10\.0, but no level is heard"):
        SpatialAttributesConfig(level_reference_db=-10.0)


def test_without_a_branch_w_alone_is_heard():
    variables, embed = embedder(branch="none", regression_weights=(0.0, 0.0, 0.0))
    assert sorted(variables["params"]) == [
        "content",
        "fusion",
        "logit_scale",
        "text",
        "text_projection",
    ]
    field = waves(0, 90)
    field[:, 0] = field[0, 0]
    straight = embed(field)
    np.testing.assert_allclose(straight[0], straight[1], atol=1e-6)
    field[1, 0] = field[1, 0][::-1]
    assert np.abs(embed(field)[1] - straight[1]).max() > 1e-4


def test_loss_is_contrastive_and_what_the_weights_say():
    tiny = tiny_elsa()
    batch = random_batch(dataclasses.replace(tiny, model=tiny.model))
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    rows = {
        "audio": draw(4, 12),
        "text": draw(4, 12),
        "direction_head": draw(4, 3),
        "distance_head": draw(4, 1),
        "floor_area_head": draw(4, 1),
    }
    shared = {"logit_scale_0": jnp.float32(1.0)}
    plain = ring_info_nce(rows["audio"], rows["text"], jnp.exp(1.0), batch["meaning"])
    losses, errors = regressions(rows, batch)
    for weights in ((1.0, 1.0, 1.0), (0.5, 0.0, 3.0)):
        model = dataclasses.replace(tiny.model, regression_weights=weights)
        system = dataclasses.replace(tiny, model=model).build_system()
        names = [
            n for n, w in zip(("direction", "distance", "floor_area"), weights, strict=True) if w
        ]
        heard = {
            k: v
            for k, v in rows.items()
            if k.removesuffix("_head") in ("audio", "text") or k.removesuffix("_head") in names
        }
        loss, metrics = system.objective(heard, shared, batch, None)
        expected = plain + sum(
            w * losses[n]
            for n, w in zip(("direction", "distance", "floor_area"), weights, strict=True)
            if w
        )
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        assert {f"{name}_loss" for name in names} <= metrics.keys()
    # A row that is no place decides nothing.
    others = dict(rows)
    for name in ("direction_head", "distance_head", "floor_area_head"):
        others[name] = rows[name].at[1].add(100.0)
    again, _ = regressions(others, batch)
    assert {n: float(v) for n, v in again.items()} == {n: float(v) for n, v in losses.items()}
    assert errors.keys() == {"direction_error_deg", "distance_error_m", "floor_area_error_m2"}
    known = np.array([0, 2, 3])
    off = np.abs(2 * np.exp(rows["distance_head"][:, 0]) - batch["distance_m"])[known].mean()
    assert float(errors["distance_error_m"]) == pytest.approx(float(off), rel=1e-5)


def test_labels_follow_the_weights():
    model = tiny_elsa().model
    assert set(tiny_elsa().build_system().labels) <= LABELS.keys()
    plain = dataclasses.replace(model, regression_weights=(0.0, 0.0, 0.0))
    assert dataclasses.replace(tiny_elsa(), model=plain).build_system().labels == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regression_weights": (1.0, -1.0, 1.0)}, r"model\.regression_weights: .*: one is negat"),
        ({"branch": "static", "static_bands": 17}, r"model\.static_bands: 17, of 16 bands of the"),
        (
            {"intensity": StftConfig(sample_rate_hz=44_100)},
            r"model\.intensity\.sample_rate_hz: 44100 is above the 16000 of the audio",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    assert tiny_elsa().model.sample_rate_hz == RATE_HZ
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_elsa().model, **changes)
