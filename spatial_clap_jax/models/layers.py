"""Layers that more than one encoder is made of, and in what ways a training step runs them.

`held_still`, `rows_over`, `tokens_as_rows` and `executed` change how modules compute without a word
in the modules: they hold while a step is traced.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

# The one-pass variance loses digits where a channel's mean is far above its spread.
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)

# normal(0.02) without truncation, as in BERT.
bert_init = nn.initializers.normal(0.02)

Remat = Literal["none", "elementwise", "blocks"]
_POLICIES: dict[str, Any] = {
    "elementwise": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
_held: ContextVar[tuple[str, ...]] = ContextVar("held", default=())
_execution: ContextVar[tuple[Remat, bool]] = ContextVar("execution", default=("none", False))


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function of x, by erf as PyTorch has it.

    `jax.nn.gelu` takes erfc, and differentiates it once more: on CPUs nearly twice the time.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = _gelu_and_slope(primals[0])
    return value, slope * tangents[0]


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (wide * below).astype(x.dtype), (below + wide * density).astype(x.dtype)


@jax.custom_vjp
def conv_same(
    x: Float[Array, "b l f c"], kernel: Float[Array, "i j c d"]
) -> Float[Array, "b l f d"]:
    """Convolution with an odd kernel, zeros around, by which the grid keeps its size.

    On CPUs XLA takes several times as long for the gradient of a kernel as for that of its input;
    there it is a plain product for each of the kernel's rows.

    Args:
      x: inputs.
      kernel: weights.

    Returns:
      The convolution.
    """
    return _plain_conv(x, kernel)


def _plain_conv(x: Array, kernel: Array) -> Array:
    axes = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=axes)


def _conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv_same(x, kernel), (x, kernel)


def _conv_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (height, width), (length, bands) = kernel.shape[:2], x.shape[1:3]

    def by_products(x: Array, gradient: Array) -> Array:
        ends = [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)]
        padded = jnp.pad(x, ends)
        # The kernel's columns side by side, so that its rows alone need a product each.
        beside = jnp.concatenate([padded[:, :, j : j + bands] for j in range(width)], axis=-1)
        flat = gradient.reshape(-1, gradient.shape[-1]).T
        rows = [
            flat @ beside[:, i : i + length].reshape(-1, beside.shape[-1]) for i in range(height)
        ]
        return jnp.stack(rows).swapaxes(1, 2).reshape(kernel.shape)

    def at_once(x: Array, gradient: Array) -> Array:
        return jax.vjp(lambda kernel: _plain_conv(x, kernel), kernel)[1](gradient)[0]

    to_kernel = jax.lax.platform_dependent(x, gradient, cpu=by_products, default=at_once)
    return jax.vjp(lambda x: _plain_conv(x, kernel), x)[1](gradient)[0], to_kernel


conv_same.defvjp(_conv_forward, _conv_backward)


class Conv(nn.Module):
    """`conv_same` of a 3 x 3 kernel, with parameters as `nn.Conv` names them.

    Attributes:
      channels: filters.
      use_bias: whether a bias is added.
      dtype: compute type; parameters are float32.
    """

    channels: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"]) -> Float[Array, "b l f d"]:
        """Applies the convolution."""
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x = conv_same(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        return x + bias.astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the last-but-one axis; softmax in float32.

    The joint projection holds queries, keys and values in this order, heads inside each.

    Attributes:
      heads: number of heads; divides the width.
      dropout: rate on the attention weights in training.
      dtype: compute type; parameters are float32.
      kernel_init: initialiser of both projections.
    """

    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = bert_init

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b n d"], bias: Float32[Array, "..."], train: bool = False
    ) -> Float[Array, "*b n d"]:
        """Mixes the n positions of each row.

        Args:
          x: inputs.
          bias: added to the logits, broadcast against [*b, heads, n, n]; a very negative value
            hides a key.
          train: applies dropout (rng stream `dropout`).

        Returns:
          The attended values after the output projection.
        """
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        qkv = dense(3 * width, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        # Heads before positions: plain batched products, on CPUs up to twice as fast.
        query, key, value = (jnp.swapaxes(qkv[..., part, :, :], -2, -3) for part in range(3))
        query = query * (width // self.heads) ** -0.5
        logits = jnp.matmul(query, key.mT, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        mixed = jnp.swapaxes(weights @ value, -2, -3).reshape(x.shape)
        return dense(width, name="out")(mixed)


class Mlp(nn.Module):
    """Dense, activation, dense back to the input's width.

    Attributes:
      hidden: width between the two.
      dtype: compute type; parameters are float32.
      kernel_init: initialiser of both.
      activation: between the two; the exact GELU by default.
    """

    hidden: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = bert_init
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Applies the MLP to every position by itself."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        hidden = self.activation(dense(self.hidden, name="up")(x))
        return dense(x.shape[-1], name="down")(hidden)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples in training, and scales what stays.

    Attributes:
      rate: probability that an example's branch is dropped; an array where layers are looped over.

    Reference:
      Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    rate: float | Array

    @nn.compact
    def __call__(self, branch: Float[Array, "b *d"], train: bool = False) -> Float[Array, "b *d"]:
        """Returns `branch`, in training with some rows zero (rng stream `dropout`)."""
        is_never = isinstance(self.rate, float) and self.rate == 0
        if not train or is_never or is_held_still(self):
            return branch
        kept = jnp.asarray(1 - self.rate, jnp.float32)
        rows = (len(branch), *[1] * (branch.ndim - 1))
        stays = jax.random.bernoulli(self.make_rng("dropout"), kept, rows)
        return jnp.where(stays, branch / kept.astype(branch.dtype), 0)


class ProjectionMlp(nn.Module):
    """Linear, ReLU or another activation, linear: into the joint space.

    Attributes:
      hidden: width between the two.
      width: of the result.
      dtype: of the computation.
      activation: between the two.
    """

    hidden: int
    width: int
    dtype: DTypeLike = jnp.float32
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        x = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="out")(x)


def unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows scaled to length one, in float32; a zero row stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))


@contextmanager
def held_still(rules: tuple[str, ...]) -> Iterator[None]:
    """Within it, modules that a rule matches compute as in evaluation though they are trained.

    A frozen encoder is one function: it neither normalises by the batch nor drops anything.

    Args:
      rules: regular expressions, searched in a module's '/'-joined path with a '/' at its end,
        so that `^text/` holds the sub-tree `text`.
    """

    def intercepted(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__" and is_held_still(context.module):
            if isinstance(context.module, nn.BatchNorm):
                kwargs = {**kwargs, "use_running_average": True}
            elif isinstance(context.module, nn.Dropout):
                kwargs = {**kwargs, "deterministic": True}
        return call(*args, **kwargs)

    token = _held.set(rules)
    try:
        with nn.intercept_methods(intercepted):
            yield
    finally:
        _held.reset(token)


def is_held_still(module: nn.Module) -> bool:
    """Whether a rule of `held_still` matches a module."""
    return _is_held(module.path)


def _is_held(path: Sequence[str]) -> bool:
    whole = "/".join([*path, ""])
    return any(re.search(rule, whole) for rule in _held.get())


@contextmanager
def rows_over(mesh: Mesh | None) -> Iterator[None]:
    """Within it, what every module gives stays split by its first axis over all of a mesh.

    Without being told, the compiler may gather a batch to meet a parameter that is split over the
    same devices; it is the parameter that must be gathered.

    Args:
      mesh: the devices; None (or one device) asks for nothing.
    """
    if mesh is None or mesh.size == 1:
        yield
        return
    split = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))

    def intercepted(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        given = call(*args, **kwargs)
        # Layers with a batch of their own, such as heads, have that in front of the rows.
        has_own = isinstance(context.module, nn.DenseGeneral) and bool(context.module.batch_dims)
        if context.method_name != "__call__" or has_own:
            return given
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, split) if x.ndim else x, given
        )

    with nn.intercept_methods(intercepted):
        yield


@contextmanager
def tokens_as_rows(mesh: Mesh | None) -> Iterator[None]:
    """Within it, dense layers on CPUs take all axes but the last as one.

    The gradient of a weight sums over all of them. Over several axes XLA for CPUs first turns the
    inputs and the gradients round in memory, which costs as much as the products of narrow layers;
    over one it does not. TPUs have memory in tiles, and are left as they are.

    Args:
      mesh: the devices; None asks for nothing.
    """
    if mesh is None or mesh.devices.flat[0].platform != "cpu":
        yield
        return

    def intercepted(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name != "__call__" or not isinstance(context.module, nn.Dense):
            return call(*args, **kwargs)
        (x,) = args
        out = call(x.reshape(-1, x.shape[-1]), **kwargs)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    with nn.intercept_methods(intercepted):
        yield


@contextmanager
def executed(remat: Remat, scan_layers: bool) -> Iterator[None]:
    """Within it, blocks trade memory, time and compile time as told; the function is the same.

    Args:
      remat: what the backward pass computes again: 'none' of it, all but matrix products
        ('elementwise'), or all that is inside a block ('blocks').
      scan_layers: whether equal layers are compiled once and looped over, with their parameters
        copied into one array for the step.
    """
    token = _execution.set((remat, scan_layers))
    try:
        yield
    finally:
        _execution.reset(token)


def block_class(block: Callable, train_argument: int) -> Callable:
    """A block's class, or one that computes its insides again in the backward pass.

    Args:
      block: class of a module.
      train_argument: which argument of its call is the flag `train`, counted from 1.

    Returns:
      A class with the same parameters.
    """
    remat, _ = _execution.get()
    if remat == "none":
        return block
    return nn.remat(block, static_argnums=(train_argument,), policy=_POLICIES[remat])


def scanned(
    layer: Callable[[Any, Array, Array | None], Array],
    each: Sequence[Any],
    x: Array,
    keys: Array | None,
) -> Array:
    """Equal layers one after the other, compiled once.

    Args:
      layer: of the parameters of one, what it takes, and its key (None in evaluation), gives
        what the next one takes.
      each: parameters of every layer.
      x: what the first one takes.
      keys: one a layer; None in evaluation.

    Returns:
      What the last one gives.
    """
    remat, _ = _execution.get()

    def advance(x: Array, entry: tuple) -> tuple[Array, None]:
        return layer(entry[0], x, entry[1]), None

    if remat != "none":
        advance = jax.checkpoint(advance, policy=_POLICIES[remat], prevent_cse=False)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return jax.lax.scan(advance, x, (stacked, keys))[0]


def run_unbound(module: nn.Module, params: Any, key: Array | None, *inputs: Any) -> Any:
    """Calls a module without a parent, with given parameters; it trains where it has a key."""
    rngs = {} if key is None else {"dropout": key}
    return module.apply({"params": params}, *inputs, key is not None, rngs=rngs)


def scans_layers(module: nn.Module, layers: Sequence[str]) -> bool:
    """Whether a module is to loop over equal layers; see `executed`.

    Layers of which parts are held still, and the module is not, stay one by one.

    Args:
      module: that has the layers.
      layers: their names.
    """
    asked = _execution.get()[1] and not module.is_initializing()
    return asked and (is_held_still(module) or not _hold_within(module, layers))


def _hold_within(module: nn.Module, layers: Sequence[str]) -> bool:
    """Whether a rule of `held_still` matches some of the layers, or anything inside one."""
    params = module.variables["params"]
    leaves = flatten_dict({name: params[name] for name in layers})
    inner = {path[:end] for path in leaves for end in range(1, len(path))}
    return any(_is_held((*module.path, *path)) for path in inner)
