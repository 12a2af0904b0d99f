"""Data that are damaged, swapped or gone: named, or skipped in the same way by all that build."""

import builtins
import collections
import dataclasses
import errno
import io
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from fakes import FakeClips, FakeScenes

from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data import builders
from spatial_clap_jax.data.bad_records import BadRecord, BadRecords, StandIn
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.pipeline import PipelineConfig, train_batches
from spatial_clap_jax.data.records import SceneSource
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.data.seld_pipeline import ClipLoader, SeldPipelineConfig, seld_batches
from spatial_clap_jax.data.shard_marks import MARKS
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.data.tower_cache import TowerCache, write_tower_cache
from spatial_clap_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

RECIPE = SceneRecipe(
    name="clips",
    sample_rate_hz=8000,
    duration_s=0.25,
    receiver=Mono(),
    group_counts=GroupCounts(*[0] * 9, train_k0=24, validation_k0=6),
    sources=SourceOptions(synthetic_clips=(2, 1, 1)),
)
TOKENIZER = Tokenizer.train(FakeScenes().manifest["caption_corpus"], 300, 32)


def render(out: Path, recipe: SceneRecipe = RECIPE) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # Four or so groups in a shard.
        patch.setattr(builders, "SHARD_BYTES", 16_000)
        render_scenes(recipe, "synthetic", out, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    return render(tmp_path_factory.mktemp("scenes") / "whole")


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory) -> Path:
    recipe = dataclasses.replace(RECIPE, seed=1)
    return render(tmp_path_factory.mktemp("scenes") / "other", recipe)


@pytest.fixture
def scenes(rendered, tmp_path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "scenes"))


def stored(folder: Path, bad_records: BadRecords = "stop") -> SceneSource:
    """The training groups of a folder, none replaced."""
    return open_scenes(folder, bad_records)._stored("train_k0")


def shard_of(folder: Path, split: str = "train_k0", number: int = 1) -> Path:
    return sorted(folder.glob(f"*{split}*"))[number]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def batches_of(folder: Path, count: int, start: int = 0, rows=None, **changes):
    """Batches of a folder in which bad records are skipped, and what was skipped."""
    config = PipelineConfig(
        captions_per_batch=8, swap=False, bad_records="skip", worker_timeout_s=120, **changes
    )
    data = open_scenes(folder, "skip")
    batches = train_batches(data, config, TOKENIZER, scl=False, seed=3, rows=rows)
    batches.set_state({"step": start})
    try:
        return list(itertools.islice(batches, count)), batches.skipped
    finally:
        batches.close()


def assert_same(ours, theirs, rows=slice(None)):
    for one, other in zip(ours, theirs, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name][rows], err_msg=name)


@pytest.mark.parametrize("position", [110, 200, 2000])
def test_a_damaged_record_is_named_and_its_neighbours_are_read(scenes, position):
    """In lengths, in numbers, in the audio."""
    shard = shard_of(scenes)
    flip(shard, position)
    source = stored(scenes, "skip")
    first = source._starts[1]
    with pytest.raises(InputError) as caught:
        source[first]
    message = str(caught.value)
    assert message.startswith(f"{shard}: record 0 (train_k0/{first:07d}) cannot be read: Corrupted")
    assert "hash mismatch" in message
    assert message.endswith(
        "copy the file again or render the scenes again; --data.bad-records skip trains without it."
    )
    assert "\n" not in message
    assert source[first + 1].scene_id == f"train_k0/{first + 1:07d}"


def test_no_flip_of_a_bit_goes_unnoticed(scenes):
    """What is promised of damage rests on the checksums of ArrayRecord's format."""
    shard = shard_of(scenes)
    content = shard.read_bytes()
    whole = list(ArrayRecordDataSource([str(shard)]))
    end = len(content.rstrip(b"\0"))
    noticed = 0
    for position in [*range(0, 18_000, 97), *range(end - 300, end + 100, 7)]:
        flip(shard, position)
        try:
            assert list(ArrayRecordDataSource([str(shard)])) == whole
        except RuntimeError:
            noticed += 1
        shard.write_bytes(content)
    assert noticed > 150


def test_a_shard_that_vanishes_or_is_cut_in_mid_training_is_named(scenes):
    source = stored(scenes)
    first, second = source._starts[1:3]
    shard_of(scenes, number=2).unlink()
    with pytest.raises(
        InputError, match=rf"00002-of-\d+: record 0 \(train_k0/{second:07d}\) .*No "
    ):
        source[second]
    # While it is open: ArrayRecord then gives records of no length, and no error.
    assert source[first].scene_id
    with shard_of(scenes).open("r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match=rf"00001-of-\d+: record 1 .*{first + 1:07d}\) cannot be"):
        source[first + 1]


def test_a_shard_of_other_scenes_is_named(scenes, other_seed):
    shard = shard_of(scenes)
    shutil.copyfile(shard_of(other_seed), shard)
    with pytest.raises(InputError, match=r"00001-of-\d+: is a shard of other scenes, .*; copy the"):
        open_scenes(scenes)
    # Of a folder from before there were marks each record is held to its seed.
    (scenes / MARKS).unlink()
    source = stored(scenes)
    with pytest.raises(InputError, match=r"record 0 .*: it holds a scene of seed \d+, not \d+; "):
        source[source._starts[1]]
    # And to its number.
    shutil.copyfile(shard_of(scenes, number=0), shard)
    with pytest.raises(InputError, match=r"holds scene train_k0/0000000, not train_k0/00000"):
        stored(scenes)[source._starts[1]]


def test_marks_of_other_scenes_are_refused(scenes, other_seed):
    shutil.copyfile(other_seed / MARKS, scenes / MARKS)
    with pytest.raises(InputError, match=r"shards\.json: tells of other scenes than the manifest"):
        open_scenes(scenes)
    (scenes / MARKS).write_text("[]")
    with pytest.raises(InputError, match=r"shards\.json: is not readable as marks of shards"):
        open_scenes(scenes)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            r"Too many .*; raise `ulimit -n`, or give f",
        ),
        (RuntimeError("open() failed: Too many open files; opening x"), "raise `ulimit -n`"),
        (OSError(errno.EIO, "Input/output error"), r"\(Input/output error\), .*; mend that, then"),
        (RuntimeError("pread() failed: Input/output error"), "Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (MemoryError(), r"\(MemoryError\), which does not tell that it is bad; give more memory"),
    ],
)
@pytest.mark.parametrize("of", ["_check", "_records"])
def test_what_the_machine_lacks_is_no_fault_of_a_record(scenes, monkeypatch, error, told, of):
    class Failing:
        def __call__(self, shard):
            raise error

        def __getitem__(self, index):
            raise error

    groups = open_scenes(scenes, "skip").source("train_k0")
    monkeypatch.setattr(SceneSource, of, Failing())
    with pytest.raises(InputError, match=rf"could not be read now .*{told}") as caught:
        groups[0]
    assert not isinstance(caught.value, BadRecord)
    assert str(caught.value).startswith(str(shard_of(scenes, number=0)))


def test_a_folder_that_cannot_be_opened_now_is_called_no_bad_one(scenes, monkeypatch):
    """Whichever of its files is the first that the system gives no handle for."""
    opened, opens, allowed = [], builtins.open, 0
    refused: list[str] = []

    def scarce(file, *args, **kwargs):
        if str(file).startswith(str(scenes)):
            if len(opened) == allowed:
                raise OSError(errno.EMFILE, "Too many open files", str(file))
            opened.append(file)
        return opens(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", scarce)
    monkeypatch.setattr(io, "open", scarce)
    told = (
        r"could not be read now \(Too many open files\), which does not tell that it is bad; raise"
    )
    while True:
        opened.clear()
        try:
            open_scenes(scenes)
            break
        except InputError as error:
            refused.append(str(error))
        allowed += 1
    assert all(re.match(f"{scenes}.*: {told}", line) for line in refused), refused
    assert len({Path(file).name for file in opened}) >= 4


def spoil(folder: Path, other: Path) -> set[int]:
    """A missing shard, one of other scenes, a damaged record; returns the numbers of all groups."""
    starts = [*stored(folder)._starts, 24]
    shutil.copyfile(shard_of(other), shard_of(folder))
    flip(shard_of(folder, number=-1), 2000)
    shard_of(folder, number=0).unlink()
    return {*range(starts[2]), starts[-2]}


@pytest.mark.slow
def test_what_stands_for_bad_records_is_the_same_for_all_that_build(rendered, other_seed, scenes):
    bad = spoil(scenes, other_seed)
    with pytest.raises(InputError, match=r"scenes: lacks .*00000-of-\d+; copy the whole folder"):
        open_scenes(scenes)
    whole, skipped = batches_of(scenes, 6)
    # Six batches of eight are both epochs of 24 groups; a bad one may also be drawn as a stand-in.
    numbers = collections.Counter(int(name[-8:-1]) for name in skipped.elements())
    assert set(numbers) == bad
    assert all(count >= 2 for count in numbers.values())
    assert skipped.total() == numbers.total()
    # What is not bad is as it was, and in its place.
    unspoiled, none = batches_of(rendered, 6)
    assert not none
    ids = {row["group"].tobytes(): row for row in unspoiled}
    assert len(ids) == 6
    kept = [
        np.all(a["audio"] == b["audio"], axis=(1, 2)) for a, b in zip(whole, unspoiled, strict=True)
    ]
    assert sum(row.sum() for row in kept) == 48 - 2 * len(bad)
    # Threads, processes, restarts.
    assert_same(batches_of(scenes, 6, threads=3, prefetch=4)[0], whole)
    resumed, counted = batches_of(scenes, 2, start=4)
    assert_same(resumed, whole[4:])
    assert counted < skipped
    halves = [batches_of(scenes, 6, rows=rows) for rows in (range(4), range(4, 8))]
    for rows, (half, _) in zip((slice(4), slice(4, 8)), halves, strict=True):
        assert_same(half, whole, rows)
    assert halves[0][1] + halves[1][1] == skipped
    by_workers, told = batches_of(scenes, 6, workers=2)
    assert_same(by_workers, whole)
    assert told == skipped


def test_a_run_stops_at_a_bad_record_unless_told_otherwise(scenes):
    flip(shard_of(scenes), 2000)
    config = PipelineConfig(captions_per_batch=24, swap=False)
    batches = train_batches(open_scenes(scenes), config, TOKENIZER, scl=False, seed=0)
    with pytest.raises(InputError, match=r"record 0 \(train_k0/\d{7}\) cannot be read: Corrupted"):
        next(batches)
    batches.close()


def test_too_many_bad_records_stop_a_run_that_skips(scenes):
    for shard in scenes.glob("*train_k0*"):
        shard.unlink()
    with pytest.raises(InputError, match=r"20 records one after another .*, too many .*: /.*read"):
        batches_of(scenes, 6)


def test_groups_that_scores_are_measured_on_are_never_replaced(scenes):
    flip(shard_of(scenes, "validation_k0", 0), 2000)
    flip(shard_of(scenes, "train_k0", 0), 2000)
    # The damage lies inside: a folder is opened without reading it.
    data = open_scenes(scenes, "skip")
    assert isinstance(data.source("train_k0")[0], StandIn)
    with pytest.raises(InputError, match=r"validation_k0/0000000\) cannot be read"):
        data.source("validation_k0")[0]
    shard_of(scenes, "validation_k0", 0).unlink()
    with pytest.raises(InputError, match="lacks scene_groups-validation_k0"):
        open_scenes(scenes, "skip")


class SpoiledClips(FakeClips):
    """Clips of which one has lost its file."""

    def audio(self, name):
        if name == "clip2":
            raise InputError("clip2.wav: no such audio file; check the path.")
        return super().audio(name)


def test_clips_that_cannot_be_read_are_skipped_alike():
    loader = ClipLoader(SpoiledClips(clips=6), None)
    settings = {"clips_per_batch": 4, "mix_share": 0.5}
    stops = seld_batches(loader, SeldPipelineConfig(**settings), seed=1)
    with pytest.raises(InputError, match=r"clip2\.wav: no such audio file"):
        list(itertools.islice(stops, 3))
    stops.close()

    def some(start=0, rows=None, **changes):
        config = SeldPipelineConfig(**{**settings, **changes}, bad_records="skip")
        batches = seld_batches(loader, config, seed=1, rows=rows)
        batches.set_state({"step": start})
        found = list(itertools.islice(batches, 6 - start))
        batches.close()
        return found, batches.skipped

    whole, skipped = some()
    # Six batches of four are four epochs; it may also be the second of a mix.
    assert set(skipped) == {"clip2"}
    assert skipped["clip2"] >= 4
    # Neither a mirrored clip nor a mix loses the count.
    assert some(swap=False)[1] == skipped
    assert some(mix_share=0.0)[1].total() < skipped.total() < some(mix_share=1.0)[1].total()
    assert_same(some(threads=2)[0], whole)
    assert_same(some(start=3)[0], whole[3:])
    assert_same(some(rows=(1, 2))[0], whole, slice(1, 3))


class UnreadClips(FakeClips):
    """Clips of which one cannot be read, for a reason that is told as `open_clips` tells it."""

    def __init__(self, reason: BaseException):
        super().__init__(clips=6)
        self.reason = reason

    def audio(self, name):
        if name == "clip2":
            raise InputError("clip2.wav: cannot be read; check the file.") from self.reason
        return super().audio(name)


@pytest.mark.parametrize(
    "reason",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError("Unable to allocate 1 GiB"),
    ],
)
def test_no_clip_stands_for_one_that_the_machine_cannot_read(reason):
    config = SeldPipelineConfig(clips_per_batch=6, bad_records="skip")
    batches = seld_batches(ClipLoader(UnreadClips(reason), None), config, seed=1)
    told = getattr(reason, "strerror", None) or str(reason)
    with pytest.raises(InputError, match=rf"clip2: could not be read now \({told}\)") as caught:
        next(batches)
    batches.close()
    assert not isinstance(caught.value, BadRecord)


def test_damaged_features_of_a_clip_are_named(tmp_path):
    cache = write_tower_cache(
        tmp_path / "cache",
        ["one", "two"],
        lambda name: np.full((4, 100), len(name), np.float32),
        source="clap",
        tower="1",
        fingerprint="of the clips",
        shape=(4, 100),
        step_s=0.5,
    )
    (shard,) = cache.folder.glob("*.array_record")
    flip(shard, 110)
    with pytest.raises(
        InputError, match=r"00000-of-00001\.array_record: record 0 cannot be .*run e"
    ):
        cache["one"]
    assert cache["two"].shape == (4, 100)
    vanishing = TowerCache(cache.folder)
    shard.unlink()
    with pytest.raises(InputError, match=r"record 1 cannot be read: open\(\) failed: No such file"):
        vanishing["two"]


@pytest.mark.parametrize("config", [PipelineConfig, SeldPipelineConfig])
@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wait_that_nothing_can_keep_to_is_refused(config, seconds):
    with pytest.raises(InputError, match=r"worker_timeout_s: .* is no wait; give seconds above 0"):
        config(worker_timeout_s=seconds)
