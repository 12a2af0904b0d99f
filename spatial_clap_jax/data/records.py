"""Scene groups on disk: how one becomes a record, and how a data set is read."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from spatial_clap_jax.acoustics.bands import BANDS_HZ
from spatial_clap_jax.data.bad_records import BadRecords, Replacing, unread
from spatial_clap_jax.data.drawing import group_seed
from spatial_clap_jax.data.scene_descriptions import builder_of, described
from spatial_clap_jax.data.scene_manifests import read_scene_manifest
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.shard_marks import mark_of, read_marks
from spatial_clap_jax.errors import InputError, not_read_now
from spatial_clap_jax.small_files import check_regular

MANIFEST = "manifest.json"
# Stands for the permutation of no clips over no places.
_NO_PERMUTATION = np.zeros((1, 1), np.int32)


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
    """Random access to the groups of one split; opened at first use, travels by pickle.

    Each shard is held to its mark when it is first read, each group to its number, rate and seed:
    a file that is cut while it is open gives empty or other records without an error.

    Args:
      data_dir: the folder.
      split: name of the split.
      manifest: of the folder.
    """

    def __init__(self, data_dir: Path, split: str, manifest: dict[str, Any]) -> None:
        self.data_dir, self.split, self._manifest = data_dir, split, manifest
        self._checked: set[Path] = set()

    def __len__(self) -> int:
        return self._manifest["groups"][self.split]

    def __getitem__(self, record_key: SupportsIndex) -> SceneGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A group by its number.

        Raises:
          BadRecord: it cannot be read, or is another one.
          InputError: the machine kept it from being read.
        """
        index = range(len(self))[record_key]
        records = self._records
        shard, position = self._place(index)
        try:
            self._check(shard)
            group = decode_group(records[index])
        except Exception as error:
            raise self._unreadable(index, shard, position, error) from error
        seed = group_seed(self._manifest["recipe"]["seed"], *_split_and_k(self.split), index)
        rate_hz = self._manifest["recipe"]["sample_rate_hz"]
        for what, found, wanted in (
            ("scene", group.scene_id, self._scene_id(index)),
            ("a scene of seed", group.seed, seed),
            ("a scene of rate", group.sample_rate_hz, rate_hz),
        ):
            if found != wanted:
                error = ValueError(f"it holds {what} {found}, not {wanted}")
                raise self._unreadable(index, shard, position, error)
        return group

    def check_shards(self) -> None:
        """Sees that all shards are there and are those of the manifest.

        Raises:
          InputError: it names the first that is not.
        """
        for shard in self._shards:
            try:
                self._check(shard)
            except OSError as error:
                what = f"lacks {shard.name}" if not shard.exists() else f"{shard.name}: {error}"
                raise not_read_now(shard, error) or InputError(
                    f"{self.data_dir}: {what}; copy the whole folder or render the scenes again."
                ) from error
            except ValueError as error:
                raise InputError(
                    f"{shard}: {error}; copy the whole folder or render the scenes again."
                ) from error

    def __repr__(self) -> str:
        return f"SceneSource({str(self.data_dir)!r}, {self.split!r}, {len(self)})"

    def __reduce__(self):
        return SceneSource, (self.data_dir, self.split, self._manifest)

    def _check(self, shard: Path) -> None:
        if shard in self._checked:
            return
        check_regular(shard)
        marks = self._marks
        if marks and mark_of(shard) != marks.get(shard.name):
            raise ValueError("is a shard of other scenes, or damaged at its start or end")
        self._checked.add(shard)

    def _place(self, index: int) -> tuple[Path, int]:
        """The shard of a group, and its number in there."""
        shard = bisect.bisect_right(self._starts, index) - 1
        return self._shards[shard], index - self._starts[shard]

    def _scene_id(self, index: int) -> str:
        return f"{self.split}/{index:07d}"

    def _unreadable(self, index: int, shard: Path, position: int, error: Exception) -> InputError:
        told = " ".join(str(error).split()) or type(error).__name__
        name = f"{shard.name}: record {position} ({self._scene_id(index)})"
        place = str(self.data_dir / name)
        message = (
            f"{place} cannot be read: {told}; copy the file again or render the scenes again; "
            "--data.bad-records skip trains without it."
        )
        return unread(name, place, message, error)

    @functools.cached_property
    def _builder(self) -> Any:
        with described(self.data_dir):
            return builder_of(self.data_dir)

    @functools.cached_property
    def _shards(self) -> list[Path]:
        with described(self.data_dir):
            return [Path(path) for path in self._builder.info.splits[self.split].filepaths]

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Number of the first group of each shard."""
        with described(self.data_dir):
            lengths = self._builder.info.splits[self.split].shard_lengths
            return [*itertools.accumulate(lengths, initial=0)][:-1]

    @functools.cached_property
    def _marks(self) -> dict[str, str]:
        return read_marks(self.data_dir, self._manifest["fingerprint"])

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        with described(self.data_dir):
            return self._builder.as_data_source(self.split)


def _split_and_k(name: str) -> tuple[str, int]:
    split, k = name.split("_k")
    return split, int(k)


@dataclasses.dataclass(frozen=True)
class SceneData:
    """A folder of scene groups.

    Attributes:
      data_dir: the folder.
      manifest: its `manifest.json`: the recipe, the source of the clips, versions, counts,
        skipped clips, categories, caption corpus, reverberation times.
      bad_records: what becomes of training groups that cannot be read, see `Replacing`; those of
        other splits are never replaced, because what is measured on them must not change.
    """

    data_dir: Path
    manifest: dict[str, Any]
    bad_records: BadRecords = "stop"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: `train_k1`, `train_k2`, ... `test_k3`, `test_k0`."""
        return tuple(self.manifest["groups"])

    def source(self, split: str) -> SceneSource | Replacing:
        """Random access to the groups of a split.

        Raises:
          InputError: there is no such split.
        """
        if split not in self.splits:
            raise InputError(
                f"{self.data_dir}: there is no split {split!r}; it holds {', '.join(self.splits)}."
            )
        source = self._stored(split)
        return Replacing(source) if self._replaces(split) else source

    def check_shards(self) -> None:
        """Sees that all shards are there and of these scenes, but for those that are replaced.

        Raises:
          InputError: it names the first that is not.
        """
        for split in self.splits:
            if not self._replaces(split):
                self._stored(split).check_shards()

    def _stored(self, split: str) -> SceneSource:
        # Without the long lists: it travels to every worker.
        needed = {key: self.manifest[key] for key in ("groups", "recipe", "fingerprint")}
        return SceneSource(self.data_dir, split, needed)

    def _replaces(self, split: str) -> bool:
        return self.bad_records == "skip" and split.startswith("train_")


def open_scenes(data_dir: str | Path, bad_records: BadRecords = "stop") -> SceneData:
    """Open a folder that `render_scenes` wrote.

    Args:
      data_dir: the folder.
      bad_records: 'skip' has other groups stand for training groups that cannot be read, missing
        shards and those of other scenes included.

    Returns:
      Its manifest and the way to its groups.

    Raises:
      InputError: the folder is missing or holds no whole data set of scenes.
    """
    data_dir = Path(data_dir)
    manifest = read_scene_manifest(data_dir / MANIFEST)
    lengths = manifest["groups"]
    with described(data_dir):
        found = builder_of(data_dir).info.splits
        stored = {name: split.num_examples for name, split in found.items()}
    if stored != lengths:
        raise InputError(
            f"{data_dir}: groups {stored}, its manifest says {lengths}; copy the whole folder or "
            "render the scenes again."
        )
    scenes = SceneData(data_dir, manifest, bad_records)
    scenes.check_shards()
    return scenes
