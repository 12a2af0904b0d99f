"""Blockwise losses against the dense ones, on one device and on rings of several."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import (
    in_batch_accuracy,
    info_nce,
    ring_in_batch_accuracy,
    ring_info_nce,
    ring_siglip,
    siglip,
)

AXES = ("replica", "data", "fsdp")
ROWS, WIDTH = 48, 16


def mesh_of(*sizes: int) -> Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * 3, devices=devices)


def embeddings(seed: int = 0, rows: int = ROWS):
    """Audio, and text that is somewhat like it."""
    rng = np.random.default_rng(seed)
    audio, text = rng.normal(size=(2, rows, WIDTH))
    text += audio
    return tuple(
        jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
        for x in (audio, text)
    )


def meanings(rows: int = ROWS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 30, rows), jnp.int32)


def worst_difference(dense, ring, arguments) -> float:
    """Of loss and every gradient, relative to the greatest entry."""
    numbers = tuple(range(len(arguments)))
    expected = jax.device_get(jax.jit(jax.value_and_grad(dense, numbers))(*arguments))
    got = jax.device_get(jax.jit(jax.value_and_grad(ring, numbers))(*arguments))
    return max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    )


def check_equals_dense(mesh: Mesh | None, block: int, meaning: jax.Array | None) -> None:
    audio, text = embeddings()
    layout = {"mesh": mesh, "block": block}

    def both_scales(loss, audio, text, scale, text_scale, **kwargs):
        return loss(audio, text, scale, meaning, text_scale, **kwargs)

    def with_bias(loss, audio, text, scale, bias, **kwargs):
        return loss(audio, text, scale, bias, meaning, **kwargs)

    # Far from the best scales: there a scale's gradient is a difference of equals.
    cases = (
        (both_scales, info_nce, ring_info_nce, (10.0, 3.0)),
        (with_bias, siglip, ring_siglip, (20.0, -10.0)),
    )
    for call, dense, ring, scalars in cases:
        arguments = (audio, text, *map(jnp.float32, scalars))
        ours = partial(call, ring, **layout)
        assert worst_difference(partial(call, dense), ours, arguments) < 1e-5
    group = jnp.arange(ROWS) // 4
    for pair in ((audio, text), (jnp.full_like(audio, 0.25),) * 2):
        told = (*pair, group, meanings())
        got = jax.jit(partial(ring_in_batch_accuracy, **layout))(*told)
        # Ties go to the first row of the batch, on any number of devices.
        for name, value in jax.jit(in_batch_accuracy)(*told).items():
            np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


# 48 is a multiple of 16; 5 leaves a rest; 1024 is one block.
@pytest.mark.parametrize(("block", "positives"), [(5, "many"), (16, "one"), (1024, "many")])
def test_one_device_equals_dense(block, positives):
    check_equals_dense(None, block, meanings() if positives == "many" else None)


EIGHT = "--xla_force_host_platform_device_count=8"
ON_EIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_ring
for sizes in ((1, 1, 1), (1, 2, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2)):
    mesh = test_ring.mesh_of(*sizes)
    test_ring.check_equals_dense(mesh, 1024, test_ring.meanings())
test_ring.check_equals_dense(mesh, 4, None)
test_ring.check_nothing_square_or_gathered(test_ring.mesh_of(2, 2, 2))
print("all equal")
"""


def check_nothing_square_or_gathered(mesh: Mesh) -> None:
    """In the compiled program no array is b x b or b x d, and no collective gathers."""
    rows = 1024
    audio, text = embeddings(rows=rows)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXES))
    audio, text = jax.device_put((audio, text), place)

    @partial(jax.jit, out_shardings=place)
    def gradients(audio, text):
        ring = partial(ring_info_nce, mesh=mesh, block=64)
        return jax.grad(lambda a, t: ring(a, t, jnp.float32(9.0)), (0, 1))(audio, text)

    program = gradients.lower(audio, text).compile().as_text()
    assert "collective-permute" in program
    assert "all-gather" not in program
    for shape in (f"f32[{rows},", f",{rows}]", f"[{rows // 8},{rows // 8}]"):
        assert shape not in program, shape
    # The dense loss of the same batch has them all.
    dense = jax.jit(jax.grad(lambda a, t: info_nce(a, t, jnp.float32(9.0)), (0, 1)))
    assert f"f32[{rows}," in dense.lower(audio, text).compile().as_text()


@pytest.mark.slow
def test_eight_devices_equal_dense():
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT, str(Path(__file__).parent)],
        env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "all equal", done.stderr


def test_memory_grows_with_the_batch_not_its_square():
    def temporaries(rows: int) -> int:
        audio = jax.ShapeDtypeStruct((rows, 64), jnp.float32)
        loss = jax.grad(lambda a, t: ring_info_nce(a, t, jnp.float32(9.0), block=128), (0, 1))
        program = jax.jit(loss).lower(audio, audio).compile()
        return program.memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(8192)
    assert large < 4.5 * small
    assert large < 8192 * 8192 * 4 / 8


def test_large_scales_do_not_overflow():
    audio, text = embeddings()
    # Opposite vectors at the greatest scale: exp(-200) is nothing in float32.
    loss = ring_info_nce(audio, -audio, jnp.float32(100.0), block=8)
    assert float(loss) == pytest.approx(
        float(info_nce(audio, -audio, jnp.float32(100.0))), rel=1e-6
    )
    assert float(ring_info_nce(audio, text, jnp.float32(0.0))) == pytest.approx(np.log(ROWS))


def test_what_fills_up_a_block_adds_nothing_however_unlike_all_pairs_are():
    """All cosines are -1: exp of a filled-up zero less the normaliser is beyond float32."""
    audio = jnp.tile(jnp.array([1.0, 0.0]), (5, 1))
    pairs, scale = (audio, -audio), jnp.float32(100.0)
    found = jax.grad(lambda *pair: ring_info_nce(*pair, scale, block=2), (0, 1))(*pairs)
    wanted = jax.grad(lambda *pair: info_nce(*pair, scale), (0, 1))(*pairs)
    for ours, dense in zip(found, wanted, strict=True):
        # Gradients of a scale of 100, and a normaliser of 98 that float32 rounds.
        np.testing.assert_allclose(ours, dense, atol=1e-4)


@pytest.mark.parametrize("loss", [info_nce, ring_info_nce, siglip, ring_siglip])
def test_embeddings_of_half_precision_are_compared_in_float32(loss):
    bias = () if "info" in loss.__name__ else (jnp.float32(-10.0),)
    halves = tuple(side.astype(jnp.bfloat16) for side in embeddings())
    wholes = tuple(side.astype(jnp.float32) for side in halves)
    value = jax.value_and_grad(lambda *pair: loss(*pair, jnp.float32(100.0), *bias), (0, 1))
    (found, gradients), (wanted, exact) = value(*halves), value(*wholes)
    assert float(found) == float(wanted)
    for ours, true in zip(gradients, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, true.astype(jnp.bfloat16))


def test_a_batch_that_the_devices_cannot_share_is_refused():
    audio, text = embeddings(rows=6)
    four = Mesh(np.array(jax.devices() * 4).reshape(1, 4, 1), AXES)
    with pytest.raises(InputError, match="batch: 6 rows do not divide among 4 devices"):
        ring_info_nce(audio, text, jnp.float32(1.0), mesh=four)
    with pytest.raises(InputError, match="block: 0 is too small"):
        ring_info_nce(audio, text, jnp.float32(1.0), block=0)


def test_accuracy_carries_no_gradient():
    audio, text = embeddings()
    ids = jnp.arange(ROWS)
    gradient = jax.grad(lambda a: ring_in_batch_accuracy(a, text, ids, ids)["retrieval"])(audio)
    assert not gradient.any()
