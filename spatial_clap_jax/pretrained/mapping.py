"""Which tensors elsewhere hold an array of ours, both ways, every one of them accounted for.

Weights published for PyTorch have other names and layouts. An `Entry` says, for one array of ours,
which tensors hold it and how they are laid out, so that one list converts in both directions.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Shaped

from spatial_clap_jax.errors import InputError

# Arrays by name: theirs by the dotted keys of a state dict, ours by '/'-joined paths.
Tensors = Mapping[str, Shaped[np.ndarray, "..."]]
Layout = Literal["same", "matrix", "convolution", "patches", "token"]

_LISTED = 40


@dataclass(frozen=True)
class Entry:
    """One array of ours and the tensors that hold it.

    Attributes:
      ours: its path, '/'-joined.
      theirs: their names; several lie behind each other along our last axis, their first.
      layout: 'same'; 'matrix', [in, out] here and [out, in] there; 'convolution',
        [rows, columns, in, out] here and [out, in, rows, columns] there; 'patches', a convolution
        whose stride is its kernel, here a matrix [rows * columns, out]; 'token', [width] here
        and [1, 1, width] there.
      patch: (rows, columns) of 'patches'.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = "same"
    patch: tuple[int, int] = (1, 1)

    def from_theirs(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Our array out of their tensors, in float32."""
        turned = [_turned_here(np.asarray(part, np.float32), self) for part in parts]
        # Not `ascontiguousarray`, which makes a vector of a single number.
        return np.asarray(np.concatenate(turned, axis=-1) if turned[1:] else turned[0], order="C")

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """Their tensors out of our array; several are of equal size."""
        parts = np.split(array, len(self.theirs), axis=-1) if self.theirs[1:] else [array]
        return [np.asarray(_turned_there(part, self), order="C") for part in parts]


def _turned_here(tensor: np.ndarray, entry: Entry) -> np.ndarray:
    match entry.layout:
        case "matrix":
            return tensor.T
        case "convolution":
            return tensor.transpose(2, 3, 1, 0)
        case "patches":
            if tensor.shape[2:] != entry.patch:
                raise ValueError(f"a kernel of {tensor.shape[2:]} is none of {entry.patch}")
            return tensor.reshape(len(tensor), -1).T
        case "token":
            if tensor.shape[:-1] != (1, 1):
                raise ValueError(f"{tensor.shape} is no single token")
            return tensor[0, 0]
    return tensor


def _turned_there(array: np.ndarray, entry: Entry) -> np.ndarray:
    match entry.layout:
        case "matrix":
            return array.T
        case "convolution":
            return array.transpose(3, 2, 0, 1)
        case "patches":
            return array.T.reshape(array.shape[-1], -1, *entry.patch)
        case "token":
            return array[None, None]
    return array


def dense(ours: str, *theirs: str, bias: bool = True) -> list[Entry]:
    """Entries of a dense layer; several of theirs are joined into one of ours."""
    entries = [Entry(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), "matrix")]
    if bias:
        entries.append(Entry(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs)))
    return entries


def norm(ours: str, theirs: str) -> list[Entry]:
    """Entries of a normalisation's scale and bias."""
    return [
        Entry(f"{ours}/scale", (f"{theirs}.weight",)),
        Entry(f"{ours}/bias", (f"{theirs}.bias",)),
    ]


def batch_norm(ours: str, theirs: str) -> list[Entry]:
    """Entries of a BatchNorm below `params/` and `batch_stats/`."""
    return [
        *norm(f"params/{ours}", theirs),
        Entry(f"batch_stats/{ours}/mean", (f"{theirs}.running_mean",)),
        Entry(f"batch_stats/{ours}/var", (f"{theirs}.running_var",)),
    ]


def mlp(ours: str, *layers: str) -> list[Entry]:
    """Entries of a projection of two layers below `params/`, by their names of the layers."""
    first, second = layers
    return [*dense(f"params/{ours}/hidden", first), *dense(f"params/{ours}/out", second)]


def mlp_shapes(ours: str, width: int, joint: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a projection's arrays by path.

    Args:
      ours: its name.
      width: of what comes in.
      joint: of its hidden layer and of what it gives.
    """
    return {
        f"params/{ours}/hidden/kernel": (width, joint),
        f"params/{ours}/hidden/bias": (joint,),
        f"params/{ours}/out/kernel": (joint, joint),
        f"params/{ours}/out/bias": (joint,),
    }


@dataclass(frozen=True)
class Left:
    """Tensors that are no weights of ours, known by name.

    Attributes:
      pattern: regular expression that a whole name matches.
      why: for the report.
    """

    pattern: str
    why: str


@dataclass(frozen=True)
class Report:
    """What became of every tensor of a source.

    Attributes:
      source: where the tensors come from.
      taken: (our path, their names joined by ' + ', our shape).
      left: (their name, why it is not used).
      made: (our path, where its numbers come from instead).
    """

    source: str
    taken: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    made: tuple[tuple[str, str], ...] = ()

    @property
    def summary(self) -> str:
        """One line."""
        numbers = sum(int(np.prod(shape)) for _, _, shape in self.taken)
        told = [f"{self.source}: {len(self.taken)} arrays of {numbers:,} numbers taken"]
        reasons = sorted({why for _, why in self.left})
        if reasons:
            told.append(f"{len(self.left)} tensors left ({', '.join(reasons)})")
        if self.made:
            reasons = sorted({why for _, why in self.made})
            told.append(f"{len(self.made)} made ({', '.join(reasons)})")
        return "; ".join(told)

    @property
    def lines(self) -> list[str]:
        """A line a tensor."""
        return [
            *(f"{ours} {list(shape)} <- {theirs}" for ours, theirs, shape in self.taken),
            *(f"left: {theirs} ({why})" for theirs, why in self.left),
            *(f"made: {ours} ({why})" for ours, why in self.made),
        ]


@dataclass
class Taking:
    """Tensors of a source while converters take theirs; `finish` tells what nobody took.

    Attributes:
      source: for errors and the report.
      tensors: all of them, by name.
    """

    source: str
    tensors: Tensors
    _used: set[str] = field(default_factory=set)
    _taken: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    _left: list[tuple[str, str]] = field(default_factory=list)
    _made: list[tuple[str, str]] = field(default_factory=list)

    def take(
        self, entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Our arrays by path.

        Args:
          entries: one for every array in `shapes`.
          shapes: what each must have.

        Raises:
          InputError: a tensor is missing, has another shape, or holds NaN or infinity.
        """
        listed = {entry.ours for entry in entries}
        assert listed == shapes.keys(), sorted(listed ^ shapes.keys())
        missing = [name for e in entries for name in e.theirs if name not in self.tensors]
        if missing:
            raise InputError(
                f"{self.source}: lacks {_listed(missing)}; every weight of the model must be "
                "there: give a whole checkpoint of this architecture."
            )
        arrays = {}
        for entry in entries:
            parts = [self.tensors[name] for name in entry.theirs]
            names = " + ".join(entry.theirs)
            try:
                array = entry.from_theirs(parts)
            except ValueError:
                array = None
            if array is None or array.shape != tuple(shapes[entry.ours]):
                there = " + ".join(str(list(part.shape)) for part in parts)
                raise InputError(
                    f"{self.source}: {names} has shape {there}, which does not fit "
                    f"{entry.ours} {list(shapes[entry.ours])}; its configuration and its weights "
                    "must be of one model."
                )
            if not np.isfinite(array).all():
                raise InputError(
                    f"{self.source}: {names} holds NaN or infinite numbers; give an undamaged "
                    "checkpoint."
                )
            arrays[entry.ours] = array
            self._used.update(entry.theirs)
            self._taken.append((entry.ours, names, array.shape))
        return arrays

    @property
    def untaken(self) -> list[str]:
        """Names of the tensors that nobody took so far, in their order."""
        return [name for name in self.tensors if name not in self._used]

    def make(self, ours: str, why: str) -> None:
        """Notes an array that no tensor holds."""
        self._made.append((ours, why))

    def finish(self, left: Iterable[Left] = ()) -> Report:
        """The report of all that was taken.

        Args:
          left: tensors that are known and not wanted.

        Raises:
          InputError: a tensor was neither taken nor is it known by name.
        """
        rules = list(left)
        unexpected = []
        for name in self.untaken:
            why = next((rule.why for rule in rules if re.fullmatch(rule.pattern, name)), None)
            if why is None:
                unexpected.append(name)
            else:
                self._left.append((name, why))
        if unexpected:
            raise InputError(
                f"{self.source}: has {_listed(sorted(unexpected))}, which this architecture does "
                "not know; no tensor is dropped silently: give a checkpoint of this architecture."
            )
        return Report(self.source, tuple(self._taken), tuple(sorted(self._left)), tuple(self._made))


def write_entries(
    entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Their tensors by name, out of ours by path; the way back of `Taking.take`."""
    entries = list(entries)
    assert {entry.ours for entry in entries} == arrays.keys()
    return {
        name: part
        for entry in entries
        for name, part in zip(entry.theirs, entry.to_theirs(arrays[entry.ours]), strict=True)
    }


def nested(arrays: Mapping[str, np.ndarray]) -> dict:
    """Arrays by '/'-joined path as nested dicts."""
    tree: dict = {}
    for path, array in arrays.items():
        *folders, last = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return tree


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Tensors under other names.

    Raises:
      InputError: two of them get the same name.
    """
    result: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if rename(name) in result:
            raise InputError(
                f"{name}: another tensor is called {rename(name)} too; remove one of the two."
            )
        result[rename(name)] = tensor
    return result


def weights_digest(arrays: Tensors, described: str) -> str:
    """Tells weights from others, wherever they lie.

    Args:
      arrays: by path.
      described: whatever else decides what they compute.

    Returns:
      Hexadecimal SHA-256.
    """
    digest = hashlib.sha256(described.encode())
    for path, array in sorted(arrays.items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a tree's leaves by '/'-joined path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(names[:_LISTED])
    return told if len(names) <= _LISTED else f"{told} and {len(names) - _LISTED} more"
