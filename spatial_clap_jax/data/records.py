"""Scene groups on disk: how one becomes a record, and how a data set is read."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from spatial_clap_jax.acoustics.bands import BANDS_HZ
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError

MANIFEST = "manifest.json"
# Stands for the permutation of no clips over no places.
_NO_PERMUTATION = np.zeros((1, 1), np.int32)


def scene_features(length: int, channels: int) -> tfds.features.FeaturesDict:
    """What TFDS stores of a scene group; `length` samples a mixture.

    Audio is raw int16, which ArrayRecord compresses: FLAC would make records of two-source
    groups 19 % smaller and reading them three times as slow.
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


def encode_group(group: SceneGroup) -> dict[str, Any]:
    """A scene group as an example of `scene_features`."""
    example = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    del example["rivals"]
    example["contents"] = [content for contents in group.contents for content in contents]
    example["contents_per_clip"] = np.array([len(c) for c in group.contents], np.int32)
    for name in ("clips", "categories", "captions"):
        example[name] = list(example[name])
    for name in ("drr_bands_db", "t30_bands_s"):
        example[name] = example[name].ravel()
    if not len(group.azimuth_deg):
        example["permutations"] = _NO_PERMUTATION
    return example


def decode_group(example: dict[str, Any]) -> SceneGroup:
    """The scene group of an example of `scene_features`; its arrays are read-only."""
    fields = {name: value for name, value in example.items() if name != "contents_per_clip"}
    for name in ("clips", "categories", "captions", "contents"):
        fields[name] = tuple(text.decode() for text in example[name])
    ends = np.cumsum(example["contents_per_clip"])
    fields["contents"] = tuple(
        fields["contents"][end - count : end]
        for end, count in zip(ends, example["contents_per_clip"], strict=True)
    )
    for name in ("scene_id", "room", "words"):
        if name in example:
            fields[name] = example[name].decode()
    places = len(example["azimuth_deg"])
    if not places:
        fields["permutations"] = np.zeros((1, 0), np.int32)
    fields = {**_fields_of_format_1(example), **fields}
    for name in ("drr_bands_db", "t30_bands_s"):
        bands = len(fields[name]) // places if places else len(BANDS_HZ)
        fields[name] = fields[name].reshape(places, bands)
    return SceneGroup(**fields)


def _fields_of_format_1(example: dict[str, Any]) -> dict[str, Any]:
    """What records of the first format, all stereo, do not hold."""
    return {
        "t30_s": np.full(len(example["azimuth_deg"]), example["t60_s"], np.float32),
        "drr_bands_db": np.zeros(0, np.float32),
        "t30_bands_s": np.zeros(0, np.float32),
        "words": "stereo",
        "phrasing": 0,
    }


class SceneSource(Sequence[SceneGroup]):
    """Random access to the groups of one split; opened at first use, travels by pickle."""

    def __init__(self, data_dir: Path, split: str, count: int) -> None:
        self.data_dir, self.split, self._count = data_dir, split, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, record_key: SupportsIndex) -> SceneGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        index = range(self._count)[record_key]
        return decode_group(self._records[index])

    def __repr__(self) -> str:
        return f"SceneSource({str(self.data_dir)!r}, {self.split!r}, {self._count})"

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        builder: Any = tfds.builder_from_directory(self.data_dir)
        return builder.as_data_source(self.split)

    def __reduce__(self):
        return SceneSource, (self.data_dir, self.split, self._count)


@dataclasses.dataclass(frozen=True)
class SceneData:
    """A folder of scene groups.

    Attributes:
      data_dir: the folder.
      manifest: its `manifest.json`: the recipe, the source of the clips, versions, counts,
        skipped clips, categories, caption corpus, reverberation times.
    """

    data_dir: Path
    manifest: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: `train_k1`, `train_k2`, ... `test_k3`, `test_k0`."""
        return tuple(self.manifest["groups"])

    def source(self, split: str) -> SceneSource:
        """Random access to the groups of a split.

        Raises:
          InputError: there is no such split.
        """
        if split not in self.splits:
            raise InputError(
                f"{self.data_dir}: there is no split {split!r}; it holds {', '.join(self.splits)}."
            )
        return SceneSource(self.data_dir, split, self.manifest["groups"][split])


def open_scenes(data_dir: str | Path) -> SceneData:
    """Open a folder that `render_scenes` wrote.

    Args:
      data_dir: the folder.

    Returns:
      Its manifest and the way to its groups.

    Raises:
      InputError: the folder is missing or holds no whole data set of scenes.
    """
    data_dir = Path(data_dir)
    try:
        text = (data_dir / MANIFEST).read_text(encoding="utf-8")
    except OSError:
        what = "holds no" if data_dir.is_dir() else "is no folder with a"
        raise InputError(
            f"{data_dir}: {what} {MANIFEST}; give the folder that `spatial-clap render` wrote."
        ) from None
    try:
        manifest = json.loads(text)
        lengths = manifest["groups"]
        # Manifests of the first format, which knew one kind of each, do not name it.
        for part, kind in (("receiver", "StereoPair"), ("rooms", "RoomRanges")):
            manifest["recipe"][part] = {"kind": kind, **manifest["recipe"][part]}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{data_dir / MANIFEST}: is not readable as a manifest of scenes; render them again."
        ) from None
    try:
        found = tfds.builder_from_directory(data_dir).info.splits
        stored = {name: split.num_examples for name, split in found.items()}
        names = [Path(path) for split in found.values() for path in split.filepaths]
        missing = [path.name for path in names if not path.is_file()]
    except Exception as error:
        raise InputError(
            f"{data_dir}: {' '.join(str(error).split())}; copy the whole folder or render again."
        ) from error
    if missing or stored != lengths:
        what = f"lacks {missing[0]}" if missing else f"groups {stored}, its manifest says {lengths}"
        raise InputError(f"{data_dir}: {what}; copy the whole folder or render the scenes again.")
    return SceneData(data_dir, manifest)
