"""FLOPs by hand, and beside XLA's own count where it can count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from tiny import tiny_experiment

from spatial_clap_jax.train.feeds import abstract_batch
from spatial_clap_jax.train.flops import count_flops, flops_of
from spatial_clap_jax.train.sharding import make_mesh
from spatial_clap_jax.train.step import Execution
from spatial_clap_jax.train.trainer import build_state_and_step, model_flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8  # of X @ W
IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32)


def convolve(images, kernel, stride=1, groups=1, dilation=1):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((0, 0), (0, 0)),
        lhs_dilation=(dilation, dilation),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def kernel(inputs, outputs):
    return jax.ShapeDtypeStruct((3, 3, inputs, outputs), jnp.float32)


def by_xla(function, *arguments) -> float:
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.dot, (X, W), ONE),
        (lambda x, w: jnp.einsum("id,de->ei", x, w), (X, W), ONE),
        # Batched: of 3 products of [4, 8] and [8, 5].
        (
            lambda a, b: a @ b,
            (jnp.ones((3, 4, 8)), jnp.ones((3, 8, 5))),
            3 * 2 * 4 * 8 * 5,
        ),
        # 14 x 14 places, 9 taps, 4 channels to 6.
        (convolve, (IMAGES, kernel(4, 6)), 2 * 2 * 14 * 14 * 9 * 4 * 6),
        (lambda i, k: convolve(i, k, stride=2), (IMAGES, kernel(4, 6)), 2 * 2 * 7 * 7 * 9 * 4 * 6),
        # Two groups: every output sees half of the channels.
        (
            lambda i, k: convolve(i, k, groups=2),
            (IMAGES, kernel(2, 6)),
            2 * 2 * 14 * 14 * 9 * 2 * 6,
        ),
    ],
)
def test_loop_free_work_as_xla_counts_it(function, arguments, expected):
    assert flops_of(function, *arguments) == expected
    assert by_xla(function, *arguments) == expected


def test_zeros_between_inputs_cost_nothing():
    # 31 x 31 stuffed inputs give 29 x 29 outputs, a quarter of whose products meet an input.
    found = flops_of(lambda i, k: convolve(i, k, dilation=2), IMAGES, kernel(4, 6))
    assert found == 2 * 2 * 29 * 29 * 9 * 4 * 6 / 4


def test_transforms():
    complex_signal = jnp.zeros((3, 64), jnp.complex64)
    assert flops_of(jnp.fft.fft, complex_signal) == 3 * 5 * 64 * 6
    assert flops_of(jnp.fft.ifft, complex_signal) == 3 * 5 * 64 * 6
    assert flops_of(jnp.fft.rfft, jnp.zeros((3, 64))) == 3 * 5 * 64 * 6 / 2
    assert flops_of(jnp.fft.irfft, jnp.zeros((3, 33), jnp.complex64)) == 3 * 5 * 64 * 6 / 2


def test_loops_count_their_length():
    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

    assert flops_of(scanned, X, W) == 7 * ONE
    # This is why XLA's count is not taken.
    assert by_xla(scanned, X, W) < 2 * ONE
    assert flops_of(lambda x, w: jax.lax.fori_loop(0, 5, lambda _, c: c @ w, x), X, W) == 5 * ONE
    # An array as a bound makes a `while`, whose literals still tell its length.
    last = jnp.int32(5)
    assert flops_of(lambda x, w: jax.lax.fori_loop(2, last, lambda _, c: c @ w, x), X, W) == 3 * ONE

    def until_small(x, w):
        return jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: c @ w, x)

    assert flops_of(until_small, X, W) == ONE


def test_loops_in_loops():
    def outer(x, w):
        def body(c, _):
            return jax.lax.fori_loop(0, 3, lambda _, d: d @ w, c), None

        return jax.lax.scan(body, x, None, length=2)[0]

    assert flops_of(outer, X, W) == 6 * ONE


def test_the_dearest_branch_counts():
    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x @ w @ w, x)

    assert flops_of(choose, X, W) == 2 * ONE


def test_gradients_and_recomputation():
    def loss(x, w):
        return jnp.sin(x @ w).sum()

    def twice(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    both = jax.grad(loss, argnums=(0, 1))
    assert flops_of(jax.jit(both), X, W) == 3 * ONE
    # Two products forwards and four backwards; the checkpoint takes both forwards again.
    plain = jax.value_and_grad(twice, argnums=(0, 1))
    assert flops_of(plain, X, W) == 6 * ONE
    again = jax.value_and_grad(jax.checkpoint(twice), argnums=(0, 1))
    assert flops_of(again, X, W) == 8 * ONE


def test_rules_of_ones_own():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert flops_of(product, X, W) == ONE
    assert flops_of(jax.value_and_grad(lambda x, w: product(x, w).sum(), (0, 1)), X, W) == 3 * ONE


def test_every_shard_works():
    mesh = AbstractMesh((2, 3), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec(("data", "fsdp"))

    def local(x, w):
        return x @ w

    x = jax.ShapeDtypeStruct((24, 8), jnp.float32)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert flops_of(sharded, x, W) == 6 * ONE
    # By hand over one axis only: the other is the compiler's to split.
    halves = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
        axis_names={"data"},
    )
    assert flops_of(halves, x, W) == 6 * ONE


def test_elementwise_work_is_free():
    assert count_flops(jax.make_jaxpr(lambda x: jnp.tanh(x) + 1)(np.ones((4, 8)))) == 0


def test_what_is_computed_again_to_save_memory_is_not_the_models():
    plain = tiny_experiment()
    mesh = make_mesh(jax.devices()[:1])

    def executed(experiment):
        start, step = build_state_and_step(experiment, mesh)
        return flops_of(step, start.eval_shape({}), abstract_batch(experiment, mesh))

    whole = executed(plain)
    assert model_flops(plain, mesh, whole) == whole
    saving = replace(plain, execution=Execution(micro_batches=2, remat="blocks"))
    spent = executed(saving)
    # One more forward pass for the embeddings, one more for what is not kept.
    assert spent > 1.5 * whole
    assert model_flops(saving, mesh, spent) == whole
