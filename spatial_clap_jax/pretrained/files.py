"""Published checkpoints on disk or on the Hugging Face hub, opened without running their code.

A pickle is a program. Tensors are read from safetensors where there are any, and from pickles only
by `torch.load(weights_only=True)`, which refuses everything else; what it refuses, we refuse.
Before PyTorch 2.6 a file could get around that.
"""

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.mapping import Tensors
from spatial_clap_jax.small_files import check_regular, json_of

_SMALL_FILES = ["*.json", "*.txt", "*/config.json"]
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# What a cached model has beside its weights, if it was fetched whole: one file of each.
_COMPANIONS = (("config.json",), ("tokenizer.json", "vocab.json", "vocab.txt"))
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The first whose `weights_only=True` holds (CVE-2025-32434).
_SAFE_TORCH = (2, 6)
# What a state dict may lie in.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Source:
    """A checkpoint whose tensors and small files can be read.

    Attributes:
      name: as the user gave it.
      folder: its folder, None for a single file of weights.
      file: that file, None for a folder.
    """

    name: str
    folder: Path | None
    file: Path | None = None

    def json(self, name: str) -> Any:
        """The content of a JSON file of the folder, None where there is none.

        Raises:
          InputError: it cannot be read as JSON.
        """
        if self.folder is None or not (self.folder / name).is_file():
            return None
        return read_json(self.folder / name)

    def below(self, subfolder: str) -> "Source":
        """The checkpoint in a folder of this one.

        Raises:
          InputError: `subfolder` leads out of it.
        """
        parts = Path(subfolder).parts
        if self.folder is None or Path(subfolder).is_absolute() or ".." in parts:
            raise InputError(f"{self.name}: {subfolder!r} is no folder in it; restore its files.")
        return Source(self.name, self.folder / subfolder)

    def tensors(self) -> dict[str, np.ndarray]:
        """All tensors by name, as NumPy arrays.

        Raises:
          InputError: there are none, or a file cannot be read or holds more than tensors.
        """
        files = [self.file] if self.file else _weights_in(self.folder or Path())
        if not files:
            raise InputError(
                f"{self.name}: holds neither model.safetensors nor pytorch_model.bin; give a "
                "folder with weights."
            )
        tensors: dict[str, np.ndarray] = {}
        for path in files:
            tensors |= read_tensors(path)
        return tensors


def open_source(source: str | Path) -> Source:
    """Finds a checkpoint: a folder, a file, or a name on the Hugging Face hub.

    Local files come first; a hub name is looked up in the local cache, then fetched unless
    `HF_HUB_OFFLINE` forbids it.

    Args:
      source: a folder with `config.json` and weights, a file of weights, or `owner/name`.

    Raises:
      InputError: there is no such thing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Source(str(source), path)
    if not path.is_file():
        return Source(str(source), _from_hub(str(source)))
    if path.suffix not in (".safetensors", *_PICKLES):
        raise InputError(
            f"{source}: is no checkpoint by its name; give a folder, or a file that ends in "
            f".safetensors, {', '.join(_PICKLES)}."
        )
    return Source(str(source), None, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      InputError: it cannot be read.
    """
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); restore the file.") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one file, by name.

    Args:
      path: safetensors, or a pickle of PyTorch: a state dict, by itself or under a usual key.

    Raises:
      InputError: the file is damaged, no file, or a pickle of more than tensors and numbers.
    """
    try:
        check_regular(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again.") from error
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        # NumPy itself knows no bfloat16.
        with safe_open(path, framework="flax") as file:
            return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    # NumPy has no name for some of its types.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again.") from error


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: is a pickle, which only PyTorch reads; "
            "pip install 'spatial-clap-jax[parity]', or give safetensors."
        ) from error
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers is None or tuple(map(int, numbers.groups())) < _SAFE_TORCH:
        raise InputError(
            f"{path}: is a pickle, and could run code in PyTorch {torch.__version__} when it is "
            "opened; pip install 'torch>=2.6', or give safetensors."
        )
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged archive raises RuntimeError, EOFError or KeyError, what is refused UnpicklingError.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError):
            refused = re.search(r"GLOBAL ([\w.]*\w)", str(error))
            what = f" ({refused.group(1)})" if refused else ""
            raise InputError(
                f"{path}: holds more than tensors{what}, and a pickle can run any code when it is "
                "opened, so it is not; where you trust it, save its state dict as safetensors."
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); copy the file again.") from error
    state = _state_dict(content)
    if not state:
        raise InputError(
            f"{path}: holds no state dict, by itself or under {', '.join(_WRAPPERS)}; give a "
            "checkpoint of a model."
        )
    return {name: _as_numpy(tensor, torch) for name, tensor in state.items()}


def _harmless_globals() -> list[Any]:
    """What training scripts leave beside the weights: a best score, their own options."""
    dtypes = [type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "b1")]
    scalar = np.float64(0).__reduce__()[0]
    numbers = [np.dtype, *dtypes, scalar, (scalar, "numpy.core.multiarray.scalar")]
    # A bag of attributes, which runs nothing.
    return [*numbers, argparse.Namespace]


def _state_dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            return _state_dict(content[wrapper])
    return {name: value for name, value in content.items() if hasattr(value, "detach")}


def _as_numpy(tensor: Any, torch: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _weights_in(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            content = read_json(index)
            places = content.get("weight_map") if isinstance(content, dict) else None
            names = list(places.values()) if isinstance(places, dict) else []
            if not names or not all(_is_plain_name(part) for part in names):
                raise InputError(f"{index}: names no files of its folder; restore the file.")
            return [folder / part for part in sorted(set(names))]
    return []


def _is_plain_name(part: Any) -> bool:
    # A name that leaves the folder would read what the user did not give.
    return isinstance(part, str) and part != ".." and Path(part).name == part


def _from_hub(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{name}: there is no such file or folder; give one, or a name on the Hugging Face hub "
            "like laion/clap-htsat-unfused."
        )
    cached = None
    with contextlib.suppress(OSError, ValueError):
        cached = _download(name, [*_SMALL_FILES, "*.safetensors"], local=True)
        # Another program may have fetched no more than it wanted.
        if all(any((cached / file).is_file() for file in files) for files in _COMPANIONS):
            return cached
    try:
        folder = _download(name, [*_SMALL_FILES, "*.safetensors"])
        return folder if _has_weights(folder) else _download(name, [*_SMALL_FILES, "*.bin"])
    # The hub's client has errors of its own, and those of whatever it speaks HTTP by.
    except Exception as error:
        if cached is not None:
            return cached
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: there is no such folder here, and the Hugging Face hub does not give it "
            f"({reason}); give a folder, or go online."
        ) from error


def _download(name: str, patterns: list[str], local: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local))
    if local and not _has_weights(folder):
        raise FileNotFoundError(folder)
    return folder


def _has_weights(folder: Path) -> bool:
    return any(any(folder.rglob(f"*{suffix}")) for suffix in (".safetensors", ".bin"))


def count_numbered(tensors: Tensors, pattern: str) -> int:
    """How many numbers, 0 and up, `pattern` finds at the start of names.

    Args:
      tensors: by name.
      pattern: a regular expression whose first group is the number.

    Raises:
      ValueError: there is none, or one of them is beyond the number of tensors.
    """
    numbers = [int(found[1]) for name in tensors if (found := re.match(pattern, name))]
    # Each has a tensor at least; loops run to the highest.
    if not numbers or max(numbers) >= len(tensors):
        raise ValueError(f"{pattern} counts {1 + max(numbers, default=-1)}")
    return 1 + max(numbers)


def common_prefix(tensors: Tensors, suffix: str, source: str) -> str:
    """What stands before `suffix` in the one name that ends so.

    Raises:
      InputError: none or several names end so.
    """
    found = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    if len(found) != 1:
        names: Iterable[str] = sorted(found) or ["none"]
        raise InputError(
            f"{source}: tensors that end in {suffix}: {', '.join(names)}; one is expected: give a "
            "checkpoint of this architecture."
        )
    return found[0]
