"""Batches of labelled clips: laws of mirroring and mixing; the same for any split of the work."""

import dataclasses
import pickle

import numpy as np
import pytest
from fakes import FakeClips

from spatial_clap_jax.data.seld_pipeline import (
    ClipLoader,
    LabelledClip,
    Pictures,
    SeldPipelineConfig,
    collate_clips,
    seld_batches,
)
from spatial_clap_jax.errors import InputError

PICTURES = Pictures(2, (4, 6))
STILL = SeldPipelineConfig(clips_per_batch=3, gain_db=(0.0, 0.0), swap=False)


def first(config: SeldPipelineConfig, count: int = 2, loader: ClipLoader | None = None, **kwargs):
    """The first batches."""
    loader = loader or ClipLoader(FakeClips(), PICTURES, cache_mib=1)
    batches = seld_batches(loader, config, seed=1, **kwargs)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def clip(name: str = "clip0", **changes) -> LabelledClip:
    return dataclasses.replace(ClipLoader(FakeClips(), PICTURES)[name], **changes)


def as_batch(*clips: LabelledClip):
    return collate_clips(clips, 4, ("a bell", "a dog"))


def test_a_batch_holds_clips_as_they_are():
    clips = FakeClips()
    batch = first(STILL)[0]
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "audio": ((3, 2, 9600), "float32"),
        "targets": ((3, 4, 6, 5, 2), "float32"),
        "frames": ((3, 2, 4, 6, 3), "uint8"),
    }
    names = [
        next(n for n in clips.splits["train"] if np.array_equal(clips.audio(n), row))
        for row in batch["audio"]
    ]
    assert len(set(names)) == 3
    for row, name in enumerate(names):
        np.testing.assert_array_equal(batch["frames"][row], clips.frames(name, 2, (4, 6)))


def test_a_mirrored_clip_has_everything_on_the_other_side():
    seen = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    ours = clip(frames=frames, seen=seen)
    theirs = ours.mirrored()
    np.testing.assert_array_equal(theirs.audio, ours.audio[[1, 0]])
    np.testing.assert_array_equal(theirs.frames[:, :, 0], frames[:, :, 5])
    np.testing.assert_array_equal(theirs.seen[:, 0], seen[:, 2])
    plain, mirrored = as_batch(ours)["targets"], as_batch(theirs)["targets"]
    # y = sin(azimuth) alone changes its sign.
    np.testing.assert_allclose(mirrored[:, :, :, 2], -plain[:, :, :, 2], atol=1e-6)
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(mirrored[:, :, :, kept], plain[:, :, :, kept], atol=1e-6)
    twice = theirs.mirrored()
    np.testing.assert_array_equal(twice.audio, ours.audio)
    np.testing.assert_array_equal(twice.frames, frames)


def test_mixed_clips_hold_the_events_of_both():
    one, other = clip("clip0"), clip("clip1")
    both = one.mixed(other)
    np.testing.assert_allclose(both.audio, one.audio + other.audio)
    assert len(both.events) == len(one.events) + len(other.events)
    assert (np.diff(both.events.frame) >= 0).all()
    # Two sources of a class in a frame, where each has one: slots B0 and B1.
    active = as_batch(both)["targets"][0, :, :, 0].sum(axis=(1, 2))
    np.testing.assert_array_equal(active, 2.0)
    mean = (one.frames.astype(float) + other.frames) / 2
    assert np.abs(both.frames - mean).max() <= 0.5


def test_the_same_clips_come_in_any_split_of_the_work():
    config = dataclasses.replace(STILL, swap=True, mix_share=0.5, gain_db=(-6.0, 6.0))
    whole = first(config, 3)
    parts = [first(config, 3, rows=rows) for rows in ([0], [1, 2])]
    threads = first(dataclasses.replace(config, threads=2), 3)
    for step in range(3):
        for name, rows in whole[step].items():
            np.testing.assert_array_equal(
                np.concatenate([part[step][name] for part in parts]), rows
            )
            np.testing.assert_array_equal(threads[step][name], rows)


def test_an_iterator_goes_on_where_it_stood():
    config = dataclasses.replace(STILL, mix_share=0.5)
    straight = first(config, 3)[2]
    batches = seld_batches(ClipLoader(FakeClips(), PICTURES), config, seed=1)
    next(batches)
    batches.set_state({"step": 2})
    resumed = next(batches)
    batches.close()
    np.testing.assert_array_equal(resumed["audio"], straight["audio"])


def test_every_second_clip_is_mirrored_and_gains_lie_in_their_range():
    config = dataclasses.replace(STILL, swap=True, clips_per_batch=64)
    clips = FakeClips()
    swapped = [
        any(np.array_equal(clips.audio(n)[::-1], row) for n in clips.splits["train"])
        for row in first(config, 1)[0]["audio"]
    ]
    assert 16 <= sum(swapped) <= 48
    loud = first(dataclasses.replace(STILL, gain_db=(6.0, 6.0)), 1)[0]["audio"]
    np.testing.assert_allclose(loud, first(STILL, 1)[0]["audio"] * 10 ** (6 / 20), rtol=1e-5)


def test_pictures_are_decoded_once_while_there_is_room():
    for mib, decoded in ((1, 4), (0, 12)):
        clips = FakeClips()
        loader = ClipLoader(clips, PICTURES, cache_mib=mib)
        for _ in range(3):
            for name in clips.splits["train"]:
                loader[name]
        assert len(clips.decoded) == decoded
    assert "frames" not in first(STILL, 1, ClipLoader(FakeClips(), None))[0]


def test_a_loader_travels_to_workers():
    loader = pickle.loads(pickle.dumps(ClipLoader(FakeClips(), PICTURES, cache_mib=1)))
    np.testing.assert_array_equal(loader["clip0"].audio, clip("clip0").audio)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips_per_batch": 0}, "clips_per_batch: 0 is too small; give at least 1"),
        ({"mix_share": 1.5}, "mix_share: 1.5 is no share; give 0 to 1"),
        ({"gain_db": (3.0, -3.0)}, "gain_db: .* is no range; give the lower gain first"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SeldPipelineConfig(**changes)


def test_a_split_without_clips_is_refused():
    with pytest.raises(InputError, match="has no clips of the split 'validation'"):
        seld_batches(ClipLoader(FakeClips(), None), STILL, seed=0, split="validation")
