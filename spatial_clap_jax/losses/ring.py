"""All pairs of a global batch, block by block, while the rows stay where they are.

Every device holds some rows of the batch, twice: as rows that stay, and as columns that are passed
round a ring of all devices until each device has met all of them. What is summed up over a row
stays with it; what is summed up over a column travels with it and comes home. Nothing that
grows with the square of the batch, and no copy of the whole batch, is ever held.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from spatial_clap_jax.errors import InputError

Tree = Any


@dataclass(frozen=True)
class Ring:
    """How the rows of a batch lie, and in what blocks pairs are computed.

    Attributes:
      mesh: the devices; the batch's rows are split over all of its axes, the first outermost. It
        is taken for the slow one (between slices of a pod): blocks go all round inside it
        before they cross it. None for one device.
      block: most rows, and most columns, of a block of pairs on a device.
    """

    mesh: Mesh | None
    block: int

    def __post_init__(self) -> None:
        if self.block < 1:
            raise InputError(f"block: {self.block} is too small; give at least 1.")

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes that rows are split over."""
        return () if self.mesh is None else tuple(map(str, self.mesh.axis_names))

    @property
    def levels(self) -> list[tuple[tuple[str, ...], int]]:
        """Rings inside rings, the outermost first: names of axes, and devices along them."""
        if self.mesh is None:
            return []
        sizes = [
            (axes, math.prod(self.mesh.shape[axis] for axis in axes))
            for axes in (self.axes[:1], self.axes[1:])
        ]
        return [(axes, size) for axes, size in sizes if size > 1]

    def check(self, rows: int) -> None:
        """Raises InputError unless the devices can share the rows out evenly."""
        if self.mesh is not None and rows % self.mesh.size:
            raise InputError(
                f"batch: {rows} rows do not divide among {self.mesh.size} devices; take a "
                f"multiple of {self.mesh.size}."
            )

    def on_each(self, function: Callable, in_rows: Tree, out_rows: Tree) -> Callable:
        """`function` run by every device on its own rows.

        Args:
          function: of this device's part of each argument.
          in_rows: for each argument, whether it is split by rows; else all have all of it.
          out_rows: the same of each result.

        Returns:
          The function of global arrays.
        """
        if self.mesh is None:
            return function

        def spec(is_split: bool) -> PartitionSpec:
            return PartitionSpec(self.axes) if is_split else PartitionSpec()

        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=jax.tree.map(spec, in_rows),
            out_specs=jax.tree.map(spec, out_rows),
            # Gradients are written out by hand, so nothing is transposed that this would watch.
            check_vma=False,
        )

    def total(self, value: Tree) -> Tree:
        """Sums over all devices, inside `on_each`."""
        return value if self.mesh is None else jax.lax.psum(value, self.axes)

    def meet(self, pairs: "Pairs", rows: Tree, columns: Tree) -> tuple[Tree, Tree]:
        """Sums over all pairs of the global batch, inside `on_each`.

        Args:
          pairs: what is summed.
          rows: arrays of this device's rows, of which each pair takes the first one.
          columns: arrays of as many columns.

        Returns:
          Sums over each of this device's rows, and over each of its columns.
        """

        def here(visiting: Tree) -> tuple[Tree, Tree]:
            return _in_blocks(pairs, rows, visiting, self.block)

        met = here
        for axes, size in reversed(self.levels):
            met = _around(pairs, met, axes, size)
        return met(columns)


@dataclass(frozen=True)
class Pairs:
    """A sum over all pairs of rows and columns.

    Attributes:
      block: of blocks of rows [r, ...] and columns [c, ...], both with a flag `valid` an entry
        (None where all are), gives what [r, ...] of each row and [c, ...] of each column sums to.
      merge_rows: joins two sums over rows.
      merge_columns: joins two sums over columns.
      no_rows: the sum over nothing: a tree like a row's sums, of Python numbers.
      no_columns: the same of columns.
    """

    block: Callable[[Tree, Tree, Any, Any], tuple[Tree, Tree]]
    merge_rows: Callable[[Tree, Tree], Tree]
    merge_columns: Callable[[Tree, Tree], Tree]
    no_rows: Tree
    no_columns: Tree

    def nothing(self, shapes: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        """Sums over nothing, of the shapes of a block's result."""
        return tuple(
            jax.tree.map(lambda value, leaf: jnp.full(leaf.shape, value, leaf.dtype), empty, like)
            for empty, like in zip((self.no_rows, self.no_columns), shapes, strict=True)
        )  # pyright: ignore[reportReturnType]


def add(a: Tree, b: Tree) -> Tree:
    """Joins sums that are plain sums."""
    return jax.tree.map(jnp.add, a, b)


def _around(pairs: Pairs, met: Callable, axes: tuple[str, ...], size: int) -> Callable:
    """`met` for the columns of every device of a ring, each in its turn."""

    def onwards(tree: Tree) -> Tree:
        step = [(source, (source + 1) % size) for source in range(size)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axes, step), tree)

    def met_by_all(columns: Tree) -> tuple[Tree, Tree]:
        def turn(carry: tuple, _: None) -> tuple[tuple, None]:
            visiting, row_sums, column_sums = carry
            # Sums follow their columns one turn behind, so that neither transfer waits for
            # the pairs of this turn.
            column_sums, following = onwards(column_sums), onwards(visiting)
            of_rows, of_columns = met(visiting)
            row_sums = pairs.merge_rows(row_sums, of_rows)
            column_sums = pairs.merge_columns(column_sums, of_columns)
            return (following, row_sums, column_sums), None

        nothing = pairs.nothing(jax.eval_shape(met, columns))
        (_, row_sums, column_sums), _ = jax.lax.scan(turn, (columns, *nothing), None, length=size)
        return row_sums, onwards(column_sums)

    return met_by_all


def _in_blocks(pairs: Pairs, rows: Tree, columns: Tree, block: int) -> tuple[Tree, Tree]:
    """All pairs of this device's rows and some columns, no more than `block` of each at a time."""
    count = len(jax.tree.leaves(rows)[0])
    if count <= block:
        return pairs.block(rows, columns, None, None)
    blocks = -(-count // block)
    # As even as can be; what is left over is filled up and flagged.
    size = -(-count // blocks)
    filled = blocks * size - count

    def cut(tree: Tree) -> Tree:
        def leaf(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, filled)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(blocks, size, *x.shape[1:])

        return jax.tree.map(leaf, tree)

    def joined(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)

    valid = cut(jnp.ones(count, bool)) if filled else None
    one = jax.tree.map(lambda x: x[0], ((cut(rows), valid), (cut(columns), valid)))
    (row_block, row_valid), (column_block, column_valid) = one
    shapes = jax.eval_shape(pairs.block, row_block, column_block, row_valid, column_valid)
    no_rows, no_columns = pairs.nothing(shapes)

    def along_columns(row_sums: Tree, column_entry: tuple) -> tuple[Tree, Tree]:
        def along_rows(column_sums: Tree, row_entry: tuple) -> tuple[Tree, Tree]:
            (row_block, row_valid), sums = row_entry
            of_rows, of_columns = pairs.block(row_block, column_block, row_valid, column_valid)
            return pairs.merge_columns(column_sums, of_columns), pairs.merge_rows(sums, of_rows)

        column_block, column_valid = column_entry
        column_sums, row_sums = jax.lax.scan(along_rows, no_columns, ((cut(rows), valid), row_sums))
        return row_sums, column_sums

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (blocks, *x.shape)), no_rows)
    row_sums, column_sums = jax.lax.scan(along_columns, start, (cut(columns), valid))
    return joined(row_sums), joined(column_sums)
