"""Scene groups on disk to host batches: shuffle, augment, tokenise, batch, hand to each process.

The groups of step s follow from the seed and s alone. A global batch is laid out first (captions of
plain clips, of single sources, then those of mixtures, members of a group side by side) and every
process reads only the groups of its own rows of it; so neither the number of processes nor that of
workers changes what is trained on, and the whole state of the iterator is one number.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import grain
import numpy as np

from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.data import transforms
from spatial_clap_jax.data.bad_records import BadRecords, Replacing, StandIn
from spatial_clap_jax.data.batch_workers import BatchWorkers, Built
from spatial_clap_jax.data.labels import check_labels, label_rows
from spatial_clap_jax.data.rewritten import Rewritten
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.sentences import Sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.data.wording import meanings, number_of
from spatial_clap_jax.errors import InputError

# Steps that an endless iterator is good for.
ENDLESS = 2**40

Batch = dict[str, np.ndarray]


@runtime_checkable
class Scenes(Protocol):
    """What the pipeline needs of an opened data set; `open_scenes` gives one.

    A source of groups travels to the workers by pickle.
    """

    @property
    def splits(self) -> Collection[str]: ...

    def source(self, split: str) -> Sequence[SceneGroup]: ...


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How scene groups become batches.

    Attributes:
      captions_per_batch: captions in a global batch, over all processes.
      mixture_share: share of the captions that tell of two sources; where only one of the splits
        `train_k1` and `train_k2` exists, all captions are of that one.
      plain_share: share of all captions that tell of plain clips (`train_k0`); the rest is shared
        as `mixture_share` says. Where the data are plain clips alone, all captions are of them.
      workers: processes that build batches; 0 builds them in threads of this process. Workers pay
        where there are cores beside those that train.
      threads: threads that build batches, in each worker or, without workers, here.
      prefetch: batches built ahead, in each worker or, without workers, here.
      gain_db: lowest and highest joint gain; (0, 0) changes nothing.
      swap: mirror left and right of every second group, drawn; stereo alone.
      rotate: turn each field about the vertical axis by a drawn angle and mirror every second one;
        first-order ambisonics alone.
      shift: shift each mixture circularly in time.
      redraw: draw phrasing and mention order of captions anew in each epoch.
      phrases: sets of direction phrases that `redraw` draws from (`PHRASE_SETS`).
      rivals: without SCL, bring with each mixture of two sources the caption of the permutation
        that is not in the batch.
      rewritten_share: share of the captions of one source or none that are told as a language
        model rewrote them (`spatial-clap rewrite`), where it did; these scenes are not rotated.
      sentences: folder of sentence embeddings of the captions (`spatial-clap embed-text`), for
        models that learn from them.
      bad_records: what becomes of a training record that cannot be read: 'stop' ends the run with
        its name; 'skip' has another, drawn by its number, stand for it, and counts it.
      worker_timeout_s: longest wait for a batch of a worker, its start included.
    """

    captions_per_batch: int = 64
    mixture_share: float = 0.75
    workers: int = 0
    threads: int = 1
    prefetch: int = 2
    gain_db: tuple[float, float] = (-6.0, 6.0)
    swap: bool = True
    shift: bool = True
    redraw: bool = True
    phrases: tuple[str, ...] = ("side",)
    rivals: bool = False
    plain_share: float = 0.0
    rotate: bool = False
    rewritten_share: float = 0.0
    sentences: Path | None = None
    bad_records: BadRecords = "stop"
    worker_timeout_s: float = 300.0

    # The data of runs from before there were others.
    kind_by_default: ClassVar[bool] = True

    def __post_init__(self):
        for name, smallest in (
            ("captions_per_batch", 1),
            ("workers", 0),
            ("threads", 1),
            ("prefetch", 1),
        ):
            value = getattr(self, name)
            if value < smallest:
                raise InputError(f"{name}: {value} is too small; give at least {smallest}.")
        check_worker_timeout(self.worker_timeout_s)
        for name in ("mixture_share", "plain_share", "rewritten_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name}: {getattr(self, name)} is no share; give 0 to 1.")
        if self.swap and self.rotate:
            raise InputError(
                "rotate: True, but a rotation turns ambisonics and `swap` mirrors stereo; set swap "
                "False for the one, rotate False for the other."
            )
        low, high = self.gain_db
        if not low <= high:
            raise InputError(f"gain_db: {self.gain_db} is no range; give the lower gain first.")
        if not self.phrases or (self.phrases != ("side",) and not self.redraw):
            raise InputError(
                f"phrases: {self.phrases} need redraw True and at least one set; give ('side',) or "
                "set redraw."
            )
        for phrases in self.phrases:
            phrase_set(phrases)

    @property
    def rows(self) -> int:
        """Rows of a global batch."""
        return self.captions_per_batch

    def with_rows(self, rows: int) -> PipelineConfig:
        """The same for global batches of another size."""
        return dataclasses.replace(self, captions_per_batch=rows)


class Building(Protocol):
    """Who builds batches, and how far ahead; see `PipelineConfig`."""

    @property
    def workers(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def prefetch(self) -> int: ...
    @property
    def worker_timeout_s(self) -> float: ...


def check_worker_timeout(seconds: float) -> None:
    """Refuses a wait that no worker could keep to.

    Raises:
      InputError: it is not above 0, or without an end.
    """
    if not 0 < seconds < math.inf:
        raise InputError(
            f"worker_timeout_s: {seconds:g} is no wait; give seconds above 0 that end, such as 300."
        )


class TrainBatches(grain.DatasetIterator[Batch]):
    """Endless iterator over batches whose state is the number of the next step.

    A state restores with any number of workers, threads and processes. After an error the next call
    tries the same step again, with new workers.

    Args:
      steps: batches by step.
      config: who builds them.
      samples: names of what the global batch of a step is made of.
    """

    def __init__(
        self,
        steps: grain.MapDataset[Built],
        config: Building,
        samples: Callable[[int], list[str]],
    ):
        super().__init__()
        self._steps = steps
        self._config = config
        self._samples = samples
        self._next_step = 0
        self._running: grain.DatasetIterator[Built] | BatchWorkers | None = None
        self._skipped: collections.Counter[str] = collections.Counter()

    def __next__(self) -> Batch:
        try:
            batch, skipped = next(self._start())
        except BaseException:
            self._stop()
            raise
        self._next_step += 1
        self._skipped.update(skipped)
        return batch

    @property
    def skipped(self) -> collections.Counter[str]:
        """Records that could not be read, and how often one was wanted in the batches given out.

        It begins empty with each iterator, and counts the rows that are built here.
        """
        return self._skipped.copy()

    def get_state(self) -> dict[str, Any]:
        """The number of the next step, for a checkpoint."""
        return {"step": self._next_step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues with the batch that followed when `state` was taken."""
        self._stop()
        self._next_step = int(state["step"])

    def samples(self, step: int) -> list[str]:
        """Names of what the global batch of a step was made of; the first step is 1."""
        return self._samples(step - 1)

    def start_prefetch(self) -> None:
        """Starts building batches, so that the first one is there when it is asked for."""
        running = self._start()
        # Worker processes begin by themselves.
        if isinstance(running, grain.DatasetIterator):
            running.start_prefetch()

    def close(self) -> None:
        """Ends threads and workers; may be called twice."""
        if not self._closed:
            self._closed = True
            self._stop()

    def _start(self) -> Iterator[Built]:
        self._assert_not_closed()
        if self._running is None:
            config = self._config
            if config.workers:
                self._running = BatchWorkers(
                    self._steps,
                    self._next_step,
                    workers=config.workers,
                    threads=config.threads,
                    ahead=config.prefetch,
                    timeout_s=config.worker_timeout_s,
                )
            else:
                options = grain.ReadOptions(
                    num_threads=config.threads,
                    prefetch_buffer_size=max(config.threads, config.prefetch),
                )
                self._running = iter(self._steps[self._next_step :].to_iter_dataset(options))
        return self._running

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def train_batches(
    scenes: Scenes,
    config: PipelineConfig,
    tokenizer: Tokenizer,
    *,
    scl: bool,
    seed: int,
    rows: Sequence[int] | None = None,
    labels: Collection[str] = (),
    rewrites: Mapping[tuple[str, int], Rewritten] | None = None,
    sentences: Sentences | None = None,
    classes: Sequence[str] = (),
) -> TrainBatches:
    """Endless, reshuffled, augmented training batches of this process.

    With SCL both members of a two-source group are in the batch, side by side; without, one drawn
    member of each of twice as many groups, so that the number of captions is the same.

    Args:
      scenes: the data; its splits `train_k1` and `train_k2` are read, or the one that exists;
        where there is neither, `train_k0` alone.
      config: batch size, mix, augmentation, workers.
      tokenizer: for the captions; those that are too long are cut.
      scl: whether the permuted members of a group stay together.
      seed: order and augmentation follow from it.
      rows: which rows of each global batch are built here, ascending; None for all.
      labels: which of `LABELS` and `CONTENT_LABELS` the batches hold.
      rewrites: captions for `config.rewritten_share`, see `read_rewrites`.
      sentences: vectors of the captions, for the label `sentence`; see `check_clips`.
      classes: names of the classes, for the labels `categories`, `events` and `rival_events`.

    Returns:
      Iterator over `audio` float32 [b, c, t], `tokens` int32 [b, n], `token_mask` bool [b, n],
      `group` int32 [b] (same number = same scene group) and `meaning` int32 [b] (same number =
      same contents in the same directions), b = rows built here. It has `get_state`,
      `set_state` and `close`; close it. With `config.rivals` also `rival_tokens`,
      `rival_token_mask` and `has_rival` bool [b]; and the `labels`.

    Raises:
      InputError: no training split, no plain clips where some are wanted, rows that are not in the
        batch, rivals with SCL, no rewrites where some are wanted, or a label that is unknown or
        lacks its sentences or classes.
    """
    if scl and config.rivals:
        raise InputError(
            "data.rivals: True, but with SCL the rivals are in the batch; set loss.scl to False, "
            "or leave rivals out."
        )
    if config.rewritten_share and not rewrites:
        raise InputError(
            f"data.rewritten_share: {config.rewritten_share}, but the scenes have no rewritten "
            "captions; run `spatial-clap rewrite` on their folder, or set 0."
        )
    total = config.captions_per_batch
    check_labels(labels, sentences, classes)
    members = 2 if scl else 1
    plain = _plain_captions(scenes, config)
    singles = _single_captions(scenes, config, members, total - plain)
    wanted = list(range(total)) if rows is None else [int(row) for row in rows]
    if not wanted or wanted != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < total:
        raise InputError(
            f"rows: {wanted[:3]}... of a batch of {total} captions; give ascending ones from 0 to "
            f"{total - 1}, each once."
        )
    parts, start = [], 0
    for split, captions, of_group in (
        ("train_k0", plain, 1),
        ("train_k1", singles, 1),
        ("train_k2", total - plain - singles, members),
    ):
        if captions:
            groups = _augmented(scenes, split, config, members, seed, rewrites or {})
            here = [row - start for row in wanted if start <= row < start + captions]
            parts.append(_Part(groups, captions // of_group, _by_group(here, of_group)))
            start += captions
    collated = functools.partial(
        collate,
        tokenizer=tokenizer,
        rivals=config.rivals,
        labels=tuple(sorted(labels)),
        sentences=sentences,
        classes=tuple(classes),
    )
    build = functools.partial(_build_batch, tuple(parts), collated)
    steps = grain.MapDataset.range(ENDLESS).map(build)
    return TrainBatches(steps, config, functools.partial(_samples, tuple(parts)))


def collate(
    groups: Sequence[SceneGroup],
    tokenizer: Tokenizer,
    rivals: bool = False,
    labels: Collection[str] = (),
    sentences: Sentences | None = None,
    classes: Sequence[str] = (),
) -> Batch:
    """One batch of all members of the groups, in their order.

    Args:
      groups: scene groups of one rate and length.
      tokenizer: for the captions; those that are too long are cut.
      rivals: whether rivals are in the batch; a scene without one has its own caption there.
      labels: which of `LABELS` and `CONTENT_LABELS` are in the batch.
      sentences: vectors of the captions, for the label `sentence`.
      classes: names of the classes, for the labels `categories`, `events` and `rival_events`.

    Returns:
      The batch that `train_batches` describes.

    Raises:
      InputError: a caption has no vector, or a label of a clip is no class.
    """
    rows = sum(len(group.captions) for group in groups)
    audio = np.empty((rows, *groups[0].audio.shape[1:]), np.float32)
    row = 0
    for group in groups:
        for member in group.audio:
            # Converted straight into the batch, then scaled while it is in the cache.
            audio[row] = member
            audio[row] *= np.float32(group.scale)
            row += 1
    tokens, mask = tokenizer.encode(
        [caption for group in groups for caption in group.captions], truncate=True
    )
    batch = {
        "audio": audio,
        "tokens": tokens,
        "token_mask": mask,
        "group": np.array(
            [number_of(group.scene_id) for group in groups for _ in group.captions], np.int32
        ),
        "meaning": np.array([m for group in groups for m in meanings(group)], np.int32),
    }
    if rivals:
        texts = [(group.rivals[:1] or (c,))[0] for group in groups for c in group.captions]
        has_rival = [bool(group.rivals) for group in groups for _ in group.captions]
        batch["rival_tokens"], batch["rival_token_mask"] = tokenizer.encode(texts, truncate=True)
        batch["has_rival"] = np.array(has_rival)
    return batch | label_rows(groups, labels, sentences, classes)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Which of the `per_step` groups of each step are built here, and which members of each."""

    groups: grain.MapDataset[SceneGroup]
    per_step: int
    wanted: tuple[tuple[int, tuple[int, ...]], ...]


def _by_group(rows: Sequence[int], members: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Rows that lie side by side by group, as (group, its members)."""
    return tuple(
        (group, tuple(row % members for row in of_group))
        for group, of_group in itertools.groupby(rows, lambda row: row // members)
    )


def _build_batch(
    parts: Sequence[_Part], collated: Callable[[list[SceneGroup]], Batch], step: int
) -> Built:
    groups, skipped = [], []
    for part in parts:
        for index, members in part.wanted:
            # Grain's elements may be None, where a filter dropped one; there is no filter here.
            group = cast(SceneGroup, part.groups[step * part.per_step + index])
            if isinstance(group, StandIn):
                skipped += group.instead_of
            is_whole = len(members) == len(group.captions)
            groups.append(group if is_whole else transforms.take_members(group, members))
    return Built(collated(groups), tuple(skipped))


def _samples(parts: Sequence[_Part], step: int) -> list[str]:
    """Ids of the scene groups of a global batch."""
    return [
        cast(SceneGroup, part.groups[step * part.per_step + index]).scene_id
        for part in parts
        for index in range(part.per_step)
    ]


def _plain_captions(scenes: Scenes, config: PipelineConfig) -> int:
    """How many captions of a global batch are of plain clips: an even number, or all."""
    if "train_k0" in scenes.splits and not {"train_k1", "train_k2"} & set(scenes.splits):
        return config.captions_per_batch
    wanted = 2 * round(config.captions_per_batch * config.plain_share / 2)
    if wanted and "train_k0" not in scenes.splits:
        raise InputError(
            f"plain_share: {config.plain_share} of the captions, but there is no split train_k0 "
            f"among {sorted(scenes.splits)}; render plain clips, or set plain_share 0."
        )
    return wanted


def _single_captions(scenes: Scenes, config: PipelineConfig, members: int, total: int) -> int:
    """How many of `total` captions, those of a batch without the plain, are of single sources."""
    if not total:
        return 0
    has_singles, has_mixtures = ("train_k1" in scenes.splits, "train_k2" in scenes.splits)
    if not has_singles and not has_mixtures:
        raise InputError(
            f"scenes: no split train_k1 or train_k2 among {sorted(scenes.splits)}; render some."
        )
    if not has_mixtures:
        return total
    if not has_singles:
        if total % members:
            raise InputError(
                f"captions_per_batch: {total} is odd, but two-source groups have two members each;"
                " give an even number."
            )
        return 0
    # Pairs without SCL too, so that the mix is the same with and without.
    return total - 2 * round(total * config.mixture_share / 2)


def _augmented(
    scenes: Scenes,
    split: str,
    config: PipelineConfig,
    members: int,
    seed: int,
    rewrites: Mapping[tuple[str, int], Rewritten],
) -> grain.MapDataset[SceneGroup]:
    """The groups of a split without end, reshuffled and drawn anew in each epoch."""
    # Not seed + k: the order of one seed's mixtures must not be that of the next seed's singles.
    split_seed = np.random.SeedSequence([seed, *split.encode()]).generate_state(1)[0]
    source = _source(scenes, split)
    if config.bad_records == "skip":
        source = Replacing(source)
    groups = grain.MapDataset.source(source).seed(int(split_seed))
    groups = groups.shuffle().repeat()
    # Where no caption of theirs is wanted, the others are dropped before work is done on them.
    if members == 1 and not config.rivals:
        groups = groups.random_map(transforms.draw_member)
    groups = groups.random_map(functools.partial(transforms.joint_gain, range_db=config.gain_db))
    tell = functools.partial(
        transforms.tell_rewritten, rewrites=rewrites, share=config.rewritten_share
    )
    for wanted, transform in (
        (config.rewritten_share > 0, tell),
        (config.swap, transforms.random_swap),
        (config.rotate, transforms.random_rotation),
        (config.shift, transforms.time_shift),
        (config.redraw, functools.partial(transforms.redraw_captions, phrases=config.phrases)),
        (config.rivals, transforms.draw_member_among_rivals),
    ):
        if wanted:
            groups = groups.random_map(transform)
    return groups


def _source(scenes: Scenes, split: str) -> Sequence[SceneGroup]:
    if split not in scenes.splits:
        raise InputError(f"split: {split!r} is not one of {sorted(scenes.splits)}.")
    source = scenes.source(split)
    if not len(source):
        raise InputError(f"split: {split!r} holds no scenes; render it again.")
    return source
