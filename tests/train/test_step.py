"""One step by hand: gradient descent on a system of one parameter, and the moving average."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.losses.rivals import group_rival_loss, rival_loss
from spatial_clap_jax.models.layers import unit
from spatial_clap_jax.models.text import TextConfig, TextEncoder
from spatial_clap_jax.systems.base import Encoded
from spatial_clap_jax.systems.two_towers import TwoTowers
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.sharding import MeshShape, batch_sharding, make_mesh
from spatial_clap_jax.train.step import Execution, TrainStep, init_state, jit_step


@dataclass(frozen=True)
class Slope:
    """Loss w * x plus a running count of its calls; its key's first word is logged."""

    def init(self, rng):
        return {"params": {"w": jnp.float32(2.0)}, "batch_stats": {"calls": jnp.float32(0.0)}}

    def encode(self, variables, batch, rng, train):
        assert train
        calls = variables["batch_stats"]["calls"] + 1
        rows = {"y": variables["params"]["w"] * batch["x"]}
        return Encoded(rows, {"drawn": jax.random.uniform(rng)}, {"calls": calls})

    def objective(self, rows, shared, batch, mesh):
        return rows["y"].mean(), shared


BATCH = {"x": jnp.array([1.0, 3.0])}


def fresh(averaged: bool = True):
    optimizer = optax.sgd(0.5)
    return optimizer, init_state(Slope(), optimizer, jax.random.key(0), {}, averaged=averaged)


def step_of(optimizer, key=1, ema_decay: float | None = 0.9, **settings) -> TrainStep:
    return TrainStep(Slope(), optimizer, jax.random.key(key), ema_decay=ema_decay, **settings)


def test_one_step_by_hand():
    optimizer, state = fresh()
    after, metrics = step_of(optimizer)(state, BATCH)
    # The gradient is the mean of x, 2; the rate is a half.
    assert after.variables["params"]["w"] == 1.0
    assert after.variables["batch_stats"]["calls"] == 1.0
    assert after.step == 1
    assert metrics["loss"] == 4.0
    assert metrics["gradient_norm"] == 2.0
    # The average's decay starts at 1 / 10 and holds running statistics too.
    assert after.average["params"]["w"] == pytest.approx(0.1 * 2.0 + 0.9 * 1.0)
    assert after.average["batch_stats"]["calls"] == pytest.approx(0.9)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(value):
    """Of 3e38 the loss is infinite and the gradient finite."""
    optimizer = optax.adam(0.5)
    state = init_state(Slope(), optimizer, jax.random.key(0), {}, averaged=True)
    state, metrics = step_of(optimizer)(state, BATCH)
    assert metrics["applied"] == 1.0
    after, metrics = step_of(optimizer)(state, {"x": jnp.float32([1.0, value])})
    assert metrics["applied"] == 0.0
    assert after.step == state.step + 1
    before, left = (jax.tree.leaves(x._replace(step=None)) for x in (state, after))
    for one, other in zip(before, left, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_averages_decay_is_bounded():
    optimizer, state = fresh()
    state = state._replace(step=jnp.int32(10**6))
    after, _ = step_of(optimizer)(state, BATCH)
    assert after.average["params"]["w"] == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)


def test_without_an_average_nothing_is_kept():
    optimizer, state = fresh(averaged=False)
    after, _ = step_of(optimizer, ema_decay=None)(state, BATCH)
    assert after.average == {}


def test_draws_follow_from_run_and_step():
    optimizer, state = fresh()
    drawn = [
        float(step_of(optimizer, k, ema_decay=None)(at, BATCH)[1]["drawn"])
        for k, at in ((1, state), (1, state), (2, state), (1, state._replace(step=jnp.int32(5))))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_the_old_state_is_given_away():
    optimizer, state = fresh()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, state)
    step = jit_step(step_of(optimizer), shardings, one)
    state = jax.device_put(state, shardings)
    after, _ = step(state, BATCH)
    assert state.variables["params"]["w"].is_deleted()
    np.testing.assert_allclose(after.variables["params"]["w"], 1.0)


@dataclass(frozen=True)
class Followed(Slope):
    """Beside the slope a collection that trails after it, and notes how far a run is."""

    def init(self, rng):
        return {**super().init(rng), "target": {"w": jnp.float32(8.0), "progress": jnp.float32(-1)}}

    def after_update(self, variables, progress):
        # What the optimiser has moved is there to be followed.
        w = (variables["target"]["w"] + variables["params"]["w"]) / 2
        return {**variables, "target": {"w": w, "progress": progress}}


def test_a_system_moves_what_follows_after_each_update():
    optimizer = optax.sgd(0.5)
    state = init_state(Followed(), optimizer, jax.random.key(0), {}, averaged=True)
    assert state.average.keys() == {"params", "batch_stats"}
    step = TrainStep(Followed(), optimizer, jax.random.key(1), ema_decay=0.9, steps=5)
    seen = []
    for _ in range(5):
        state, _ = step(state, BATCH)
        target = state.variables["target"]
        seen.append([float(target[name]) for name in ("w", "progress")])
    # The slope falls by one a step: 1, 0, -1, ...; the target is half way behind it.
    assert [w for w, _ in seen] == [4.5, 2.25, 0.625, -0.6875, -1.84375]
    assert [progress for _, progress in seen] == [0, 0.25, 0.5, 0.75, 1]
    assert state.variables.keys() == {"params", "batch_stats", "target"}
    assert state.average.keys() == {"params", "batch_stats"}


def test_micro_batches_move_what_follows_once():
    optimizer = optax.sgd(0.5)
    state = init_state(Followed(), optimizer, jax.random.key(0), {}, averaged=False)
    execution = Execution(micro_batches=2)
    step = TrainStep(Followed(), optimizer, jax.random.key(1), execution=execution)
    after, _ = step(state, BATCH)
    assert after.variables["target"] == {"w": 4.5, "progress": 0.0}


class MiniModule(nn.Module):
    """A layer with BatchNorm and dropout for sound, a text encoder of two layers."""

    text_dropout: float

    def setup(self):
        self.dense, self.norm = nn.Dense(8), nn.BatchNorm(momentum=0.9)
        rates = {"dropout": self.text_dropout, "attention_dropout": self.text_dropout}
        self.text = TextEncoder(TextConfig(30, 8, 2, 2, 16, 6, **rates))
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.0), ())

    def __call__(self, batch, train):
        audio = self.norm(self.dense(batch["audio"][:, 0]), use_running_average=not train)
        text = self.text(batch["tokens"], batch["token_mask"], train).pooled
        return unit(audio), unit(text), self.logit_scale


@dataclass(frozen=True)
class Mini(TwoTowers):
    """Compiles in a second."""

    channels = 1
    padding = "zeros"
    labels = ()
    window_samples = 5
    max_tokens = 6
    text_dropout: float = 0.0

    @property
    def module(self):
        return MiniModule(self.text_dropout)


def mini_batch(rows: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.normal(size=(rows, 1, 5)).astype(np.float32),
        "tokens": rng.integers(0, 30, (rows, 6)).astype(np.int32),
        "token_mask": np.arange(6) < rng.integers(2, 7, (rows, 1)),
        "group": np.arange(rows, dtype=np.int32) // 2,
        "meaning": rng.integers(0, 12, rows).astype(np.int32),
    }


@functools.cache
def gradients_of(
    execution: Execution,
    frozen: tuple[str, ...] = (),
    kind="info_nce",
    dropout: float = 0.0,
    *,
    rows: int = 16,
    mesh: Mesh | None = None,
):
    """Gradients, metrics and running statistics of a step."""
    system = Mini(None, ContrastiveConfig(kind=kind, block=5), jnp.float32, dropout)
    # The state of this optimiser is the last gradient.
    optimizer = optax.with_extra_args_support(
        optax.GradientTransformation(
            lambda params: params, lambda gradient, _, params: (gradient, gradient)
        )
    )
    start = functools.partial(init_state, system, optimizer, jax.random.key(0), {}, averaged=False)
    state = jax.device_get(jax.jit(start)())
    # As loud as a trained table: LayerNorm of next to nothing would magnify rounding.
    table = state.variables["params"]["text"]["tokens"]
    table["embedding"] = 50 * table["embedding"]
    step = TrainStep(
        system, optimizer, jax.random.key(1), frozen=frozen, mesh=mesh, execution=execution
    )
    place = None if mesh is None else batch_sharding(mesh)
    program = jax.jit(step.__call__, in_shardings=(None, place))
    after, metrics = jax.device_get(program(state, mini_batch(rows)))
    return after.optimizer, metrics, after.variables["batch_stats"]


def assert_same_gradients(ours, theirs, rtol: float = 1e-4):
    (moved, metrics, _), (expected, expected_metrics, _) = ours, theirs
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", ["blocks", "elementwise"])
def test_how_a_step_is_computed_changes_nothing(remat, scan_layers):
    execution = Execution(remat=remat, scan_layers=scan_layers)
    assert_same_gradients(gradients_of(execution), gradients_of(Execution()))


@pytest.mark.slow
def test_what_is_computed_again_drops_out_the_same():
    drawn = gradients_of(Execution(), dropout=0.5)
    assert_same_gradients(gradients_of(Execution(remat="blocks"), dropout=0.5), drawn)
    other = gradients_of(Execution(), dropout=0.4)
    assert float(other[1]["loss"]) != float(drawn[1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["^text/", "^text/(layer_|Dropout)"])
def test_what_is_frozen_drops_nothing_when_layers_are_scanned(frozen):
    still = gradients_of(Execution(scan_layers=True), (frozen,), dropout=0.5)
    assert_same_gradients(still, gradients_of(Execution(), (frozen,)))


@pytest.mark.slow
def test_blocks_are_computed_again():
    """The backward pass holds fewer arrays, and has more products to compute."""
    products = {}
    for remat in ("none", "blocks"):
        system = Mini(None, ContrastiveConfig(), jnp.float32, 0.0)
        step = TrainStep(
            system, optax.sgd(1.0), jax.random.key(0), execution=Execution(remat=remat)
        )
        state = init_state(system, optax.sgd(1.0), jax.random.key(0), {}, averaged=False)
        products[remat] = count_flops(jax.make_jaxpr(step.__call__)(state, mini_batch()))
    assert products["blocks"] > 1.15 * products["none"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
def test_micro_batches_give_the_gradients_of_the_whole_batch(kind):
    # BatchNorm by running statistics: no encoder then looks across examples.
    still = ("^norm/",)
    whole = gradients_of(Execution(), still, kind)
    assert_same_gradients(gradients_of(Execution(micro_batches=4), still, kind), whole)


EIGHT = "--xla_force_host_platform_device_count=8"
ON_EIGHT = """
import sys
sys.path[:0] = sys.argv[1:]
import test_step
test_step.check_parts_on_a_mesh(2, 2, 2)
print("all equal")
"""


def check_parts_on_a_mesh(*sizes: int) -> None:
    """Loss and gradients of a batch in parts, beside those of the whole one."""
    mesh = make_mesh(jax.devices(), MeshShape(replica=sizes[0], fsdp=sizes[2]))
    assert mesh.devices.shape == sizes
    still = ("^norm/",)
    # A multiple of 2 and of 3 parts for each device.
    whole, metrics, _ = gradients_of(Execution(), still, rows=48, mesh=mesh)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    for count in (2, 3):
        in_parts = Execution(micro_batches=count)
        found, its_metrics, _ = gradients_of(in_parts, still, rows=48, mesh=mesh)
        np.testing.assert_allclose(its_metrics["loss"], metrics["loss"], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.slow
def test_micro_batches_on_eight_devices_give_the_gradients_of_the_whole_batch():
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT, str(folder), str(folder.parent)],
        env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "all equal", done.stderr


@pytest.mark.slow
def test_micro_batches_normalise_by_themselves():
    """The running statistics are the mean of those that the parts would have left."""
    _, _, left = gradients_of(Execution(micro_batches=2))
    _, _, whole = gradients_of(Execution())
    # The mean of equal parts' means is the mean of all of them; that of variances is not.
    means = [
        (a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(whole), strict=True
        )
        if "mean" in jax.tree_util.keystr(path)
    ]
    assert means
    for a, b in means:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_parts_that_do_not_divide_are_refused():
    step = step_of(optax.sgd(1.0), execution=Execution(micro_batches=3))
    with pytest.raises(InputError, match=r"micro_batches: 2 rows of 'x' do not divide into 3"):
        step(fresh()[1], BATCH)
    with pytest.raises(InputError, match=r"execution.micro_batches: 0 is too small"):
        Execution(micro_batches=0)


def test_parts_are_taken_from_every_device_and_come_back():
    step = step_of(optax.sgd(1.0), execution=Execution(micro_batches=2))
    rows = jnp.arange(12.0)
    np.testing.assert_array_equal(step._join(step._split("x", rows)), rows)


def rival_batch() -> dict[str, np.ndarray]:
    rng, batch = np.random.default_rng(1), mini_batch()
    return {
        **batch,
        "rival_tokens": rng.integers(0, 30, (16, 6)).astype(np.int32),
        "rival_token_mask": np.arange(6) < rng.integers(2, 7, (16, 1)),
        "has_rival": np.arange(16) > 5,
    }


def unit_rows(seed: int) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(16, 4))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
@pytest.mark.parametrize("read", [True, False])
def test_rivals_add_their_weighted_loss(kind, read):
    """Those of captions without audio where the batch has them, else those of the group."""
    batch = rival_batch()
    rows = {"audio": unit_rows(0), "text": unit_rows(1)} | ({"rival": unit_rows(2)} if read else {})
    shared = {"logit_scale_0": jnp.float32(1.0), "logit_bias": jnp.float32(-2.0)}

    def objective(weight):
        contrast = ContrastiveConfig(kind=kind, rival_weight=weight)
        return jax.jit(lambda *args: Mini(None, contrast).objective(*args, None))(
            rows, shared, batch
        )

    (plain, unweighted), (loss, metrics) = objective(0.0), objective(0.25)
    scale, group, meaning = jnp.exp(1.0), *(jnp.asarray(batch[n]) for n in ("group", "meaning"))
    if read:
        expected = rival_loss(*rows.values(), scale, jnp.asarray(batch["has_rival"]))
    else:
        expected = group_rival_loss(*rows.values(), scale, group, meaning)
    assert metrics.keys() - unweighted.keys() == {"rival_loss"}
    assert float(metrics["rival_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss) == pytest.approx(float(plain) + 0.25 * float(expected), rel=1e-5)


@pytest.mark.slow
def test_rivals_are_further_rows_of_the_text_encoder():
    system, batch = Mini(None, ContrastiveConfig(rival_weight=1.0)), rival_batch()
    variables = jax.jit(system.init)(jax.random.key(0))

    @jax.jit
    def encode(batch):
        return system.encode(variables, batch, jax.random.key(1), train=False).rows

    rows = encode(batch)
    assert {name: x.shape for name, x in rows.items()} == dict.fromkeys(
        ("audio", "text", "rival"), (16, 8)
    )
    # Without them, and with the rivals in their place, the texts are what they were.
    names = ("tokens", "token_mask")
    own = {name: batch[name] for name in ("audio", *names)}
    rival = own | {name: batch[f"rival_{name}"] for name in names}
    for name, alone in (("text", encode(own)), ("rival", encode(rival))):
        np.testing.assert_allclose(rows[name], alone["text"], atol=1e-5)
    assert np.abs(rows["text"] - rows["rival"]).max() > 1e-2
