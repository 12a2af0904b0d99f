"""Digests of arrays: the same wherever they lie, another after any one bit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spatial_clap_jax.train.digests import digests

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int8, np.uint16, np.int32, np.bool_)


def some(dtype, shape=(3, 5, 2)) -> np.ndarray:
    return (100 * np.random.default_rng(0).random(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_device_agree(dtype):
    array = some(dtype)
    assert digests({"a": array}) == digests({"a": jnp.asarray(array)})


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_every_single_bit_counts(dtype):
    array = some(dtype, (3, 2))
    seen = {digests({"a": array})["a"]}
    raw = array.tobytes()
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        seen.add(digests({"a": np.frombuffer(changed, dtype).reshape(3, 2)})["a"])
    assert len(seen) == 8 * len(raw) + 1


def test_places_count():
    array = np.float32([[1, 2], [3, 4]])
    seen = {digests({"a": x})["a"] for x in (array, array.T.copy(), array[::-1], array[:, ::-1])}
    assert len(seen) == 4
    # The same bits flipped twice do not cancel.
    assert digests({"a": -array}) != digests({"a": array})


def test_paths_numbers_scalars_and_nan():
    tree = {"a": {"b": [np.float32(np.nan)]}, "step": 3}
    found = digests(jax.tree.map(np.asarray, tree["a"]) | {"step": 3})
    assert set(found) == {"b/0", "step"}
    assert digests({"step": 4})["step"] != found["step"]


def test_what_is_split_over_devices_has_the_digest_of_the_whole():
    """On this one device at least; tests of checkpoints go over eight."""
    mesh = jax.make_mesh((1,), ("d",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    array = some(np.float32, (8, 3))
    assert digests({"a": jax.device_put(array, place)}) == digests({"a": array})
