"""Digests of arrays that tell a single changed bit, wherever and on whatever mesh they lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from spatial_clap_jax.train.optim import path_text

# Of the golden ratio, and of the last mixing of MurmurHash3, which loses no bit.
_GOLDEN = 0x9E3779B9
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35


def digests(tree: Any) -> dict[str, int]:
    """A number a leaf that is the same for the same bits, whatever devices hold them.

    Values are mixed with their place and summed modulo 2^32: one changed value always changes
    the sum, and the order of the summands, which a mesh decides, never does. Computed where the
    arrays are; only the numbers come to the host.

    Args:
      tree: of JAX or NumPy arrays and Python numbers.

    Returns:
      The number of each leaf by its '/'-joined path.

    Reference: our choice; MurmurHash3's finaliser by A. Appleby.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {path_text(p): x for p, x in leaves if hasattr(x, "dtype")}
    on_devices = {name: x for name, x in arrays.items() if isinstance(x, jax.Array)}
    found = jax.device_get(_device_digests(on_devices))
    numbers = {path_text(p): _number_digest(x) for p, x in leaves if not hasattr(x, "dtype")}
    on_host = {name: _host_digest(x) for name, x in arrays.items() if name not in on_devices}
    return {name: int(value) for name, value in (found | on_host | numbers).items()}


@jax.jit
def _device_digests(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _device_digest(array) for name, array in arrays.items()}


def _device_digest(array: Array) -> UInt32[Array, ""]:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    size = array.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    bits = bits.astype(jnp.uint32)
    # Each index by itself: numbering a flattened array would gather one that is split.
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        number = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += number * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mixed(bits + place * jnp.uint32(_GOLDEN), jnp), dtype=jnp.uint32)


def _host_digest(array: np.ndarray) -> int:
    flat = np.ascontiguousarray(array).reshape(-1)
    size = flat.dtype.itemsize
    bits = flat.view({1: np.uint8, 2: np.uint16}.get(size, np.uint32)).astype(np.uint32)
    place = np.arange(len(bits), dtype=np.uint64).astype(np.uint32)
    return int(np.sum(_mixed(bits + place * np.uint32(_GOLDEN), np), dtype=np.uint32))


def _mixed(x: Any, numpy: Any) -> Any:
    x = (x ^ (x >> 16)) * numpy.uint32(_FIRST)
    x = (x ^ (x >> 13)) * numpy.uint32(_SECOND)
    return x ^ (x >> 16)


def _number_digest(value: float) -> int:
    """The number of a Python number, by its text."""
    return _host_digest(np.frombuffer(repr(value).encode(), np.uint8))
