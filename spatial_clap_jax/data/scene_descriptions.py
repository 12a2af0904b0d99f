"""What TFDS is told of a folder of scenes: seen to be ours before TFDS reads it.

TFDS imports the class of each feature by the name that stands in `features.json`, and looks for
shards where `dataset_info.json` says. So a folder of others could run code and read other files.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spatial_clap_jax.errors import InputError, not_read_now
from spatial_clap_jax.small_files import check_regular, json_of

_INFO, _FEATURES = "dataset_info.json", "features.json"
_REMEDY = "copy the whole folder or render again"


def scene_features(length: int, channels: int) -> tfds.features.FeaturesDict:
    """What TFDS stores of a scene group; `length` samples a mixture.

    Audio is raw int16, and records are stored as they are (Beam compresses them): FLAC would make
    those of two-source groups 26 % smaller, and reading them several times as slow.
    """
    names = tfds.features.Sequence(tfds.features.Text())
    places = tfds.features.Tensor(shape=(None,), dtype=np.float32)
    return tfds.features.FeaturesDict(
        {
            "scene_id": tfds.features.Text(),
            "audio": tfds.features.Tensor(
                shape=(None, channels, length),
                dtype=np.int16,
                encoding=tfds.features.Encoding.BYTES,
            ),
            "scale": tfds.features.Scalar(np.float32),
            "sample_rate_hz": tfds.features.Scalar(np.int64),
            "clips": names,
            "categories": names,
            # All contents one after the other, and how many each clip has: nested
            # sequences would need TensorFlow.
            "contents": names,
            "contents_per_clip": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "azimuth_deg": places,
            "elevation_deg": places,
            "distance_m": places,
            "permutations": tfds.features.Tensor(
                shape=(None, None), dtype=np.int32, encoding=tfds.features.Encoding.BYTES
            ),
            "captions": names,
            "room": tfds.features.Text(),
            "room_size_m": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "t60_s": tfds.features.Scalar(np.float32),
            "t30_s": places,
            # All bands of a place, then those of the next: TFDS reads no empty matrices.
            "drr_bands_db": places,
            "t30_bands_s": places,
            "words": tfds.features.Text(),
            "phrasing": tfds.features.Scalar(np.int64),
            "seed": tfds.features.Scalar(np.int64),
        }
    )


@contextlib.contextmanager
def described(data_dir: Path) -> Iterator[None]:
    """Whatever TFDS raises at a damaged description of a folder becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        bad = InputError(f"{data_dir}: {reason}; {_REMEDY}.")
        raise not_read_now(data_dir, error) or bad from error


def builder_of(data_dir: Path) -> Any:
    """TFDS's view of a folder as it is now; what it raises is for `described`.

    Args:
      data_dir: the folder.

    Raises:
      InputError: the description holds what `render` never writes, or names a shard elsewhere. A
        shard itself may be a link, to another disk for example.
    """
    paths = (data_dir / name for name in (_INFO, _FEATURES))
    return _builder(data_dir, tuple(check_regular(path).st_mtime_ns for path in paths))


@functools.lru_cache(maxsize=8)
def _builder(data_dir: Path, changed_ns: tuple[int, ...]) -> Any:
    _check_features(data_dir)
    # TFDS holds on to all that is read of a folder, anew with each of its builders.
    builder = tfds.builder_from_directory(data_dir)
    for split in builder.info.splits.values():
        for path in map(Path, split.filepaths):
            if path.parent != data_dir:
                raise InputError(
                    f"{data_dir / _INFO}: names the shard {str(path)!r:.200}, and shards must lie "
                    f"in the folder itself; {_REMEDY}."
                )
    return builder


def _check_features(data_dir: Path) -> None:
    """Refuses features that `scene_features` does not make; the first format lacks some of them."""
    if "features" in json_of(data_dir / _INFO):
        raise InputError(
            f"{data_dir / _INFO}: holds 'features', which stand in {_FEATURES} alone; {_REMEDY}."
        )
    found = json_of(data_dir / _FEATURES)
    audio = found["featuresDict"]["features"]["audio"]
    _, channels, length = audio["tensor"]["shape"]["dimensions"]
    ours = scene_features(int(length), int(channels)).to_json()
    written = {"pythonClassName": ours["type"], "featuresDict": ours["content"]}
    _check_within(data_dir / _FEATURES, found, written, [])


def _check_within(path: Path, found: Any, ours: Any, keys: list[str]) -> None:
    """Refuses what stands in `found` and not at the same place in `ours`."""
    if isinstance(found, dict) and isinstance(ours, dict):
        for key, value in found.items():
            _check_within(path, value, ours.get(key), [*keys, key])
    elif found != ours:
        raise InputError(
            f"{path}: {'.'.join(keys)!r:.200} is {found!r:.80}, which `spatial-clap render` never "
            f"writes, and classes that stand there would be imported; {_REMEDY}."
        )
