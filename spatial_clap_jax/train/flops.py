"""Floating-point operations of matrix products, convolutions and FFTs, counted from a jaxpr.

XLA's own count takes the body of a loop once, however often it runs; here a scan counts its
length. What a compiler adds (padding, tiles) is not there to be counted: these are the model's
operations, recomputed ones included.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def flops_of(function: Callable, *arguments: Any) -> float:
    """FLOPs of one call, over all devices.

    Args:
      function: what is traced, jitted or not.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      See `count_flops`.

    Example:
      >>> flops_of(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 5)))     # 2 * 2 * 3 * 5
      60.0
    """
    return count_flops(jax.make_jaxpr(function)(*arguments))


def count_flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """FLOPs of a jaxpr: two a multiply-accumulate, 5 n log2 n a complex FFT of n points.

    A scan counts its length, a `shard_map` its devices, a branch the dearest of its branches.
    A loop whose length only the data tell counts once.

    Args:
      jaxpr: of the whole program, before it is divided over devices.

    Returns:
      FLOPs of matrix products, convolutions and FFTs; elementwise work is not counted.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((_equation(equation) for equation in inner.eqns), 0.0)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name in _COUNTERS:
        return _COUNTERS[name](equation)
    inside = [count_flops(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inside)
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "while":
        return _trip_count(equation) * sum(inside)
    if name == "shard_map":
        axes = params.get("manual_axes", params.get("newly_manual_axes", params["mesh"].axis_names))
        return math.prod(params["mesh"].shape[axis] for axis in axes) * sum(inside)
    return sum(inside)


def _jaxprs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item


def _dot_general(equation: Any) -> float:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel, params = equation.invars[1].aval.shape, equation.params
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
    # Zeros that a transposed convolution stuffs its input with are multiplied by no one.
    return 2.0 * products / math.prod(params["lhs_dilation"])


def _fft(equation: Any) -> float:
    signal, transformed = (v.aval.shape for v in (equation.invars[0], equation.outvars[0]))
    points = math.prod(equation.params["fft_lengths"])
    transforms = max(math.prod(signal), math.prod(transformed)) / points
    # A real signal, here or there, saves half of the work.
    real = equation.params["fft_type"] in (jax.lax.FftType.RFFT, jax.lax.FftType.IRFFT)
    return (2.5 if real else 5.0) * points * math.log2(points) * transforms


_COUNTERS = {"dot_general": _dot_general, "conv_general_dilated": _convolution, "fft": _fft}


def _trip_count(equation: Any) -> int:
    """Runs of a loop that counts from one literal to another, as `fori_loop` does; else 1."""
    params = equation.params
    condition, carried = params["cond_jaxpr"].jaxpr, params["cond_nconsts"] + params["body_nconsts"]
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return 1
    start = dict(
        zip(condition.invars[params["cond_nconsts"] :], equation.invars[carried:], strict=True)
    )
    first, last = (
        side if isinstance(side, Literal) else start.get(side) for side in condition.eqns[0].invars
    )
    if isinstance(first, Literal) and isinstance(last, Literal):
        return max(int(last.val) - int(first.val), 0)
    return 1
