"""Rendering: a recipe and a source become a folder of scene groups that TFDS and Grain read."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import file_adapters

from spatial_clap_jax.acoustics.measured_rirs import load_measured_rirs
from spatial_clap_jax.acoustics.receivers import Mono, StereoPair
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.data import material
from spatial_clap_jax.data.drawing import draw_group
from spatial_clap_jax.data.manifests import FORMAT, manifest_of, recipe_as_json
from spatial_clap_jax.data.records import (
    MANIFEST,
    SceneData,
    encode_group,
    open_scenes,
)
from spatial_clap_jax.data.scene_descriptions import scene_features
from spatial_clap_jax.data.scenes import SceneRecipe
from spatial_clap_jax.data.shard_marks import write_marks
from spatial_clap_jax.data.sources import open_source
from spatial_clap_jax.data.staging import is_free, put, refuse_other, staging
from spatial_clap_jax.data.workers import WorkerPool
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.shown import printable

__all__ = ["SceneConfig", "SceneGroups", "SceneGroupsBeam", "open_scenes", "render_scenes"]

# A shard of records is held in memory while it is written.
SHARD_BYTES = 128 << 20
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Draw:
    """One group to be drawn, as it is sent to a worker."""

    recipe: SceneRecipe
    sources: str
    folder: Path
    split: str
    index: int

    def __call__(self) -> dict[str, Any]:
        """The example of the group."""
        drawn_from = material.open_material(self.folder, self.sources, self.recipe.sources)
        split, k = split_and_k(self.split)
        return encode_group(draw_group(self.recipe, drawn_from, split, k, self.index))


def split_and_k(name: str) -> tuple[str, int]:
    """'train_k2' -> ('train', 2)."""
    split, k = name.split("_k")
    return split, int(k)


@dataclasses.dataclass(eq=False)
class SceneConfig(tfds.core.BuilderConfig):
    """A recipe, the clips it is applied to, and how groups are drawn.

    Attributes:
      recipe: what to render.
      sources: csv path, or 'synthetic'.
      folder: where the rooms and the list of skipped clips lie.
      run: makes the draws, in order, in worker processes; Beam needs none.
    """

    recipe: SceneRecipe = dataclasses.field(default_factory=SceneRecipe)
    sources: str = "synthetic"
    folder: Path = Path()
    run: Callable[[Iterable[Draw]], Iterator[dict[str, Any]]] | None = None

    def draws(self, split: str) -> Iterator[Draw]:
        """All groups of a split, in order."""
        for index in range(self.recipe.splits()[split]):
            yield Draw(self.recipe, self.sources, self.folder, split, index)


class SceneGroups(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Scene groups rendered on one machine, shard after shard, in the order of their indices.

    TFDS's `GeneratorBasedBuilder` without Beam would hold a split in memory to shuffle it, and
    above 1 GB it needs TensorFlow for that; groups are drawn at random, so order means nothing.
    """

    name = "scene_groups"
    VERSION = tfds.core.Version("1.0.0")
    builder_config: SceneConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self)

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Any]]:
        config, shards = self.builder_config, {}
        assert config.run is not None
        names = list(config.recipe.splits())
        draws = itertools.chain.from_iterable(config.draws(split) for split in names)
        # TFDS writes splits and shards in the order given here, so that all share one iterator
        # and the workers never wait for a shard to be closed.
        examples = config.run(draws)
        for split in names:
            sizes = shard_sizes(config.recipe, split)
            starts = itertools.accumulate(sizes, initial=0)
            shards[split] = [
                functools.partial(_take, examples, start, size)
                for start, size in zip(starts, sizes, strict=False)
            ]
        return shards


class SceneGroupsBeam(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The same groups rendered by Apache Beam."""

    name = "scene_groups"
    VERSION = tfds.core.Version("1.0.0")
    builder_config: SceneConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self)

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
        return {
            split: self._generate_examples(split) for split in self.builder_config.recipe.splits()
        }

    def _generate_examples(self, split: str) -> Any:
        import apache_beam as beam

        return (
            beam.Create(list(self.builder_config.draws(split)))
            | beam.Reshuffle()
            | beam.Map(_keyed_example)
        )


def _keyed_example(draw: Draw) -> tuple[int, dict[str, Any]]:
    return draw.index, draw()


def _take(examples: Iterator[T], start: int, count: int) -> Iterator[tuple[int, T]]:
    return zip(range(start, start + count), examples, strict=False)


class _AsTheyAre(file_adapters.ArrayRecordFileAdapter):
    """Writes records as they are: zstd takes 7 % off waveforms, and four times as long to read."""

    @classmethod
    def write_examples(cls, path: Any, iterator: Iterable[tuple[Any, bytes]]) -> None:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in iterator:
            writer.write(example)
        writer.close()


@contextlib.contextmanager
def _uncompressed() -> Iterator[None]:
    """TFDS has no setting for it; what Beam writes, in other processes, stays compressed."""
    adapters, kind = file_adapters.ADAPTER_FOR_FORMAT, file_adapters.FileFormat.ARRAY_RECORD
    adapters[kind] = _AsTheyAre
    try:
        yield
    finally:
        adapters[kind] = file_adapters.ArrayRecordFileAdapter


class _LocalInfo(tfds.core.DatasetInfo):
    """TFDS would ask Google's bucket for these scenes, and leave an empty folder in /tmp."""

    def initialize_from_bucket(self) -> None:
        pass


def _info(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetInfo:
    config = builder.builder_config
    assert isinstance(config, SceneConfig)
    return _LocalInfo(
        builder=builder,
        description="Spatial mixtures of dry clips in rooms, with captions of what is where.",
        features=scene_features(config.recipe.length, config.recipe.channels),
        disable_shuffling=True,
    )


def shard_sizes(recipe: SceneRecipe, split: str) -> list[int]:
    """Groups in each shard of a split, all but equally many."""
    count, (_, k) = recipe.splits()[split], split_and_k(split)
    members = recipe.permutations_k3 if k == 3 else math.factorial(k)
    in_shard = max(1, SHARD_BYTES // (members * recipe.length * recipe.channels * 2))
    shards = math.ceil(count / in_shard)
    return [count // shards + (shard < count % shards) for shard in range(shards)]


def render_scenes(
    recipe: SceneRecipe,
    sources: str,
    out: str | Path,
    rirs: str | Path | None = None,
    workers: int | None = None,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
    progress: bool = True,
) -> SceneData:
    """Render all scene groups of a recipe into a folder.

    The folder appears when it is whole: rendering goes on in a hidden folder beside it, which
    is renamed at the end and removed after an error.

    Args:
      recipe: what to render.
      sources: a csv of clips, or 'synthetic'.
      out: the folder to make. One that holds the same scenes already is left as it is.
      rirs: a csv of measured impulse responses, instead of simulated rooms.
      workers: processes that render; None: one for each core. The result does not depend on it.
      beam_runner: name of an Apache Beam runner that renders instead of local processes; its
        workers must see `sources` and the parent of `out` under the same paths.
      beam_options: options of the Beam pipeline, such as '--direct_num_workers=4'.
      progress: show progress bars on stderr.

    Returns:
      The opened folder.

    Raises:
      InputError: `out` holds something else, measured responses for FOA, a source or a response
        cannot be used, more than 5 % of the clips are bad, a split lacks clips or rooms, or Beam is
        not installed.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} must be at least 1; leave it out for all cores.")
    pipeline = _beam_pipeline(beam_runner, beam_options)
    if sources != "synthetic":
        sources = os.path.abspath(sources)
    source = open_source(sources, recipe.sources)
    if rirs is not None and not isinstance(recipe.receiver, StereoPair):
        raise InputError(
            f"--rirs {rirs}: measured responses are read for a StereoPair alone, and the recipe's "
            f"receiver is {type(recipe.receiver).__name__}; leave --rirs out."
        )
    measured = load_measured_rirs(rirs, recipe.sample_rate_hz) if rirs is not None else None
    identity = {
        "recipe": recipe_as_json(recipe),
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
        "rirs": None if measured is None else material.rooms_fingerprint(measured),
    }
    out = Path(os.path.realpath(out))
    if _holds_the_same(out, identity):
        if progress:
            line = f"{out}: holds these scenes already; nothing to do."
            print(printable(line), file=sys.stderr)
        return open_scenes(out)
    with staging(out) as folder, WorkerPool(workers or os.cpu_count() or 1, progress) as pool:
        skipped = material.check_clips(pool, source, sources, recipe.sources, recipe.sample_rate_hz)
        usable = collections.Counter(c.split for c in source.clips if c.clip_id not in skipped)
        recipe = recipe.counted(usable)
        t60_s = _make_rooms(pool, recipe, folder, measured)
        material.store_material(
            folder, skipped, {split: len(times) for split, times in t60_s.items()}
        )
        for split in recipe.splits():
            # What is amiss with clips or rooms shows up here, before the long part.
            Draw(recipe, sources, folder, split, 0)()
        run = functools.partial(pool.run, title="scene groups", total=sum(recipe.splits().values()))
        config = SceneConfig(
            name=recipe.name, recipe=recipe, sources=sources, folder=folder, run=run
        )
        builder_class = SceneGroups if pipeline is None else SceneGroupsBeam
        with _quiet(), _uncompressed():
            builder = builder_class(data_dir=folder, config=config, file_format="array_record")
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    beam_runner=beam_runner, beam_options=pipeline
                )
            )
        whole = Path(builder.data_dir)
        manifest = manifest_of(recipe, source, identity, skipped, t60_s)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (whole / MANIFEST).write_text(text, encoding="utf-8")
        write_marks(whole, manifest["fingerprint"], whole.glob("*.array_record-*"))
        put(whole, out, lambda: _holds_the_same(out, identity))
    return open_scenes(out)


def _make_rooms(
    pool: WorkerPool, recipe: SceneRecipe, folder: Path, measured: Sequence[RirRoom] | None
) -> dict[str, list[float]]:
    """Write the rooms of each split that has groups; returns their reverberation times."""
    splits = list(dict.fromkeys(split_and_k(name)[0] for name in recipe.splits()))
    if isinstance(recipe.receiver, Mono):
        return {split: [] for split in splits}
    folders = {split: folder / "rooms" / split for split in splits}
    for path in folders.values():
        path.mkdir(parents=True)
    if measured is not None:
        divided = material.divide_rooms(measured, recipe.room_counts, splits, recipe.seed)
        for split, rooms in divided.items():
            for index, room in enumerate(rooms):
                material.store_room(
                    folders[split], index, material.high_passed(room, recipe.high_pass_hz)
                )
        return {split: [room.t60_s for room in rooms] for split, rooms in divided.items()}
    counts = {split: getattr(recipe.room_counts, split) for split in splits}
    for split, count in counts.items():
        if count < 1:
            raise InputError(
                f"scene recipe: room_counts.{split} {count} must be at least 1, because the split "
                "has scene groups."
            )
    simulations = (
        functools.partial(material.store_simulated_room, recipe, folders[split], split, index)
        for split in splits
        for index in range(counts[split])
    )
    times = pool.run(simulations, title="rooms simulated", total=sum(counts.values()))
    return {split: list(itertools.islice(times, counts[split])) for split in splits}


def _holds_the_same(out: Path, identity: dict[str, Any]) -> bool:
    """Whether `out` is these very scenes; False where there is nothing, else an InputError."""
    if is_free(out, MANIFEST, "set of scenes"):
        return False
    held = open_scenes(out).manifest
    # What a recipe of the first format could not say is what it says by default.
    defaults = {"recipe": recipe_as_json(SceneRecipe())} if held["format"] < FORMAT else {}
    refuse_other(out, held, identity, defaults)
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS tells of downloads that there are none of, on stdout, in bars and in absl's log."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(before)


def _beam_pipeline(runner: str | None, options: Sequence[str]) -> Any:
    """Beam's options, or None without a runner."""
    if runner is None:
        if options:
            raise InputError(
                f"--beam-options {' '.join(options)!r} need --beam-runner, such as 'DirectRunner'."
            )
        return None
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError:
        raise InputError(
            f"--beam-runner {runner!r} needs Apache Beam; install the extra: "
            "pip install 'spatial-clap-jax[beam]'."
        ) from None
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(
            f"--beam-runner {runner!r} is no runner that Beam can load "
            f"({' '.join(str(error).split())}); 'DirectRunner' runs on this machine."
        ) from error
    return PipelineOptions(list(options))
