"""Mono clips: drawn in turn, rendered without rooms, told by content alone, and in batches."""

import csv
import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_clap_jax.acoustics.receivers import Foa, Mono
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.drawing import by_content, draw_group
from spatial_clap_jax.data.labels import LABELS
from spatial_clap_jax.data.pipeline import PipelineConfig, collate, train_batches
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import Clip, SourceOptions
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.data.wording import meanings
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.experiment import load_config

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

RATE = 8000
RECIPE = SceneRecipe(
    name="clips",
    sample_rate_hz=RATE,
    duration_s=0.25,
    receiver=Mono(),
    group_counts=GroupCounts(*(0,) * 9, train_k0=-2, validation_k0=-1, test_k0=-1),
    sources=SourceOptions(synthetic_clips=(2, 1, 1)),
)


class Ramps:
    """A material of seven clips a split; each sample says which clip it is of, and when."""

    def __init__(self, samples: int = 2000):
        clips = {
            split: tuple(
                Clip(f"{split}{n}", "ab"[n % 2], (f"ramp {n}", f"the ramp {n}."), split, f"r{n}")
                for n in range(7)
            )
            for split in ("train", "test")
        }
        self.clips, self.samples = clips, samples
        self.contents = {split: by_content(of_split) for split, of_split in clips.items()}
        self.rooms = dict.fromkeys(clips, ())

    def load(self, clip: Clip, sample_rate_hz: int) -> np.ndarray:
        # A slope of its own at every place, so that a crop tells where it begins.
        return (1 + np.arange(self.samples) / self.samples).astype(np.float32)


def drawn(count: int, split: str = "test", recipe: SceneRecipe = RECIPE, samples: int = 2000):
    material = Ramps(samples)
    return [draw_group(recipe, material, split, 0, index) for index in range(count)]


def test_every_clip_comes_before_any_comes_again():
    turns = [[group.clips[0] for group in drawn(28)][i : i + 7] for i in (0, 7, 14, 21)]
    for turn in turns:
        assert sorted(turn) == [f"test{n}" for n in range(7)]
    # In a drawn order, and in others afterwards.
    assert len({tuple(turn) for turn in [*turns, sorted(turns[0])]}) == 5
    other = drawn(7, recipe=dataclasses.replace(RECIPE, seed=1))
    assert [group.clips[0] for group in other] != turns[0]


def test_a_clip_is_one_channel_with_its_content_as_caption():
    for group in drawn(7):
        assert group.audio.shape == (1, 1, 2000)
        assert group.scene_id.startswith("test_k0/")
        number = group.clips[0][-1]
        assert group.captions[0] in (f"ramp {number}.", f"the ramp {number}.")
        assert group.permutations.shape == (1, 0)
        assert group.azimuth_deg.size == group.t30_s.size == group.room_size_m.max() == 0
        ramp = group.waveforms()[0, 0]
        # The active level is 30 dB below full scale, within the 3 dB that are drawn.
        assert abs(10 * np.log10(np.mean(ramp**2)) + 30) < 3.01
        np.testing.assert_allclose(ramp / ramp[0], 1 + np.arange(2000) / 2000, atol=1e-3)


def test_places_in_long_clips_and_speeds_are_drawn_for_each_record():
    starts = {
        round(float(g.waveforms()[0, 0, 1000] / np.ptp(g.waveforms())), 3)
        for g in drawn(14, samples=6000)
    }
    assert len(starts) == 14
    # Speed is changed in training alone: as fast, the ramp is as steep.
    slopes = {
        split: [
            round(float(np.ptp(w[100:-100]) / w[100]), 3)
            for g in drawn(7, split)
            for w in g.waveforms()[0]
        ]
        for split in ("train", "test")
    }
    assert len(set(slopes["test"])) == 1
    assert len(set(slopes["train"])) > 4


def test_short_clips_of_base_sound_all_along_and_are_as_recorded():
    recipe = load_config("clips.py", "base")
    [group] = drawn(1, "train", recipe, samples=20_000)
    heard = group.waveforms()[0, 0]
    assert heard.shape == (160_000,)
    # A training crops 6 s out of it, which must never be of silence alone.
    np.testing.assert_allclose(heard[:20_000], Ramps(20_000).load(None, 16_000), atol=1e-4)
    np.testing.assert_array_equal(heard, np.resize(heard[:20_000], 160_000))


def test_captions_alone_count_where_there_are_no_categories():
    group = drawn(1)[0]
    named, blank = meanings(group)[0], meanings(dataclasses.replace(group, categories=("",)))[0]
    assert named != blank


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"room_counts": RoomCounts(3, 1, 1)}, r"room_counts .* must be left out for Mono"),
        ({"places_per_room": 6}, r"places_per_room 6 must be left out for Mono"),
        ({"rooms": FloorRanges()}, r"rooms .* must be left out for Mono: it has no room"),
        ({"group_counts": GroupCounts()}, r"group_counts\.train_k1 4000 must be 0 for Mono"),
        ({"group_counts": GroupCounts(*(0,) * 12)}, r"must ask for some groups"),
        (
            {"receiver": Foa(), "rooms": FloorRanges(), "response_s": 2.5},
            r"train_k0 -2 must be >= 0",
        ),
    ],
)
def test_recipes_that_cannot_be(change, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(RECIPE, **change)


def test_counts_are_told_in_turns():
    counts = RECIPE.counted({"train": 5, "validation": 0, "test": 3}).splits()
    assert counts == {"train_k0": 10, "test_k0": 3}
    fixed = dataclasses.replace(RECIPE, group_counts=GroupCounts(*(0,) * 9, train_k0=4))
    assert fixed.counted({"train": 9, "validation": 9, "test": 9}) == fixed
    assert from_plain(SceneRecipe, to_plain(RECIPE)) == RECIPE
    with pytest.raises(InputError, match="ask for some groups"):
        RECIPE.counted({"train": 0, "validation": 0, "test": 0})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips") / "clips"
    render_scenes(RECIPE, "synthetic", out, workers=1, progress=False)
    return out


def test_rendered_clips_come_back(rendered, capsys):
    data = open_scenes(rendered)
    assert data.manifest["groups"] == {"train_k0": 48, "validation_k0": 12, "test_k0": 12}
    assert data.manifest["recipe"]["group_counts"]["train_k0"] == -2
    assert data.manifest["t60_s"] == {}
    for split, times in (("train_k0", 2), ("validation_k0", 1), ("test_k0", 1)):
        groups = list(data.source(split))
        held = Counter(group.clips[0] for group in groups)
        assert set(held.values()) == {times}
        assert len(held) == len(groups) // times
        for group in groups:
            assert group.audio.shape == (1, 1, 2000)
            # No words of places are learnt by a tokenizer.
            if split == "train_k0":
                assert group.captions[0].removesuffix(".") in data.manifest["caption_corpus"]
    assert "on the left side" not in data.manifest["caption_corpus"]
    render_scenes(RECIPE, "synthetic", rendered)
    assert "holds these scenes already" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(InputError, match=r"--rirs x\.csv: .* receiver is Mono; leave --rirs out"):
        render_scenes(RECIPE, "synthetic", rendered, rirs="x.csv", progress=False)


def test_batches_of_plain_clips_alone(rendered):
    data = open_scenes(rendered)
    tokenizer = Tokenizer.train(data.manifest["caption_corpus"], 400, 16)
    config = PipelineConfig(captions_per_batch=6, swap=False)
    for scl in (True, False):
        batches = train_batches(data, config, tokenizer, scl=scl, seed=0)
        one, two = itertools.islice(batches, 2)
        batches.close()
        assert one["audio"].shape == (6, 1, 2000)
        assert len(set(one["group"].tolist()) | set(two["group"].tolist())) == 12
    groups = [data.source("test_k0")[0], data.source("test_k0")[1]]
    batch = collate(groups, tokenizer, labels=tuple(LABELS))
    assert not batch["has_place"].any()
    np.testing.assert_array_equal(batch["audio"][1], groups[1].waveforms()[0])


def test_a_swap_of_one_channel_is_refused(rendered):
    data = open_scenes(rendered)
    tokenizer = Tokenizer.train(data.manifest["caption_corpus"], 400, 16)
    batches = train_batches(
        data, PipelineConfig(captions_per_batch=6), tokenizer, scl=False, seed=0
    )
    with pytest.raises(InputError, match="1 channels; a channel swap mirrors stereo alone"):
        next(batches)
    batches.close()


def test_clips_with_several_labels(tmp_path):
    rows = [("rain;Dog bark", "train"), ("wind", "train"), ("wind|rain; bell", "validation")]
    rows += [("bell", "test"), ("church organ", "test")]
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "category", "split"])
        for number, (category, split) in enumerate(rows):
            noise = np.random.default_rng(number).normal(size=2400) * 0.1
            soundfile.write(tmp_path / f"{number}.wav", noise, RATE)
            table.writerow([f"{number}.wav", category, split])
    recipe = dataclasses.replace(
        RECIPE, group_counts=GroupCounts(*(0,) * 9, train_k0=3, validation_k0=-1, test_k0=-1)
    )
    data = render_scenes(
        recipe, str(tmp_path / "clips.csv"), tmp_path / "out", workers=1, progress=False
    )
    assert data.manifest["categories"] == ["Dog bark", "bell", "church organ", "rain", "wind"]
    assert data.manifest["groups"] == {"train_k0": 3, "validation_k0": 1, "test_k0": 2}
    [group] = data.source("validation_k0")
    assert group.captions == ("the sound of wind, rain, and bell.",)
    train = [group.clips[0] for group in data.source("train_k0")]
    assert sorted(train[:2]) == ["0.wav", "1.wav"]
    told = {group.categories[0]: group.contents[0] for group in data.source("train_k0")}
    assert told["rain;Dog bark"] == ("the sound of rain and dog bark",)
    assert len(told["wind"]) == 4


def test_a_split_without_clips_is_refused(tmp_path):
    recipe = dataclasses.replace(
        RECIPE,
        group_counts=GroupCounts(*(0,) * 9, train_k0=-1, test_k0=2),
        sources=SourceOptions(synthetic_clips=(1, 1, 0)),
    )
    with pytest.raises(InputError, match=r"split 'test' has no clips; give some"):
        render_scenes(recipe, "synthetic", tmp_path / "out", workers=1, progress=False)


@pytest.mark.parametrize("size", ["quickstart", "small", "base"])
def test_the_shipped_recipes(size, tmp_path):
    recipe = load_config("clips.py", size)
    assert isinstance(recipe.receiver, Mono)
    assert recipe.sample_rate_hz == 16_000
    shrunk = dataclasses.replace(
        recipe, duration_s=0.1, sources=SourceOptions(synthetic_clips=(1, 1, 1))
    )
    data = render_scenes(shrunk, "synthetic", tmp_path / "out", workers=1, progress=False)
    assert set(data.splits) == {"train_k0", "validation_k0", "test_k0"}
