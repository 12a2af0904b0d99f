"""Folders in the form of DCASE 2025 Task 3: reading, writing, and what is refused."""

import contextlib
import errno
import os
import pickle
import re
import resource
import shutil
import sys

import numpy as np
import pytest
import soundfile

from spatial_clap_jax.data import audio, dcase, video
from spatial_clap_jax.data.bad_records import BadRecord
from spatial_clap_jax.data.dcase import Clips, open_clips, recording_of, write_checksums
from spatial_clap_jax.data.event_tables import read_events, write_predictions
from spatial_clap_jax.data.seld_pipeline import ClipLoader, Pictures
from spatial_clap_jax.data.sound_events import DCASE_CLASSES, SoundEvents, no_events
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.errors import InputError

HEADER = "frame,class,source,azimuth,distance,onscreen\n"
ROWS = "0,1,0,45,120,1\n0,1,1,-90,250,0\n3,12,0,0,80,0\n"
TRAIN = [
    f"fold3_room{room}_mix00{mix}_deg{deg:03}_start0030"
    for room in (21, 22)
    for mix in (1, 2)
    for deg in (10, 200)
]
TEST = ["fold4_room23_mix001_deg010_start0030", "fold4_room24_mix001_deg355_start0000"]
SAMPLES = 12_000


def write_clip(folder, group, name, video=True):
    for kind in ("stereo_dev", "metadata_dev", "video_dev"):
        (folder / kind / group).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).uniform(-0.5, 0.5, (SAMPLES, 2))
    soundfile.write(folder / "stereo_dev" / group / f"{name}.wav", noise, 24_000)
    (folder / "metadata_dev" / group / f"{name}.csv").write_text(HEADER + ROWS)
    if video:
        pictures = np.zeros((15, 32, 64, 3), np.uint8)
        pictures[:] = (np.arange(15) * 17)[:, None, None, None]
        write_video(folder / "video_dev" / group / f"{name}.mp4", pictures, 30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("dcase")
    for name in TRAIN:
        write_clip(folder, "dev-train-sony" if "room21" in name else "dev-train-tau", name)
    for name in TEST:
        write_clip(folder, "dev-test-sony", name)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(whole, tmp_path / "clips")
    return tmp_path / "clips"


def test_a_folder_in_dcases_form_is_read(whole):
    clips = open_clips(whole)
    assert clips.classes == DCASE_CLASSES
    assert (clips.duration_s, clips.sample_rate_hz, clips.labels) == (0.5, 24_000, 5)
    assert clips.has_video
    assert clips.manifest == {}
    name = TEST[0]
    path = whole / "stereo_dev" / "dev-test-sony" / f"{name}.wav"
    audio = clips.audio(name)
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, soundfile.read(path, dtype="float32")[0].T)
    events = clips.events(name)
    np.testing.assert_array_equal(events.frame, [0, 0, 3])
    np.testing.assert_array_equal(events.category, [1, 1, 12])
    np.testing.assert_array_equal(events.source, [0, 1, 0])
    np.testing.assert_array_equal(events.azimuth_deg, [45, -90, 0])
    np.testing.assert_allclose(events.distance_m, [1.2, 2.5, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(events.on_screen, [True, False, False])
    frames = clips.frames(name, 5, (16, 32))
    assert frames.shape == (5, 16, 32, 3)
    # The middles of fifths of half a second, at 30 pictures a second: 1, 4, 7, 10, 13.
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [17, 68, 119, 170, 221], atol=4)


def test_splits_keep_recordings_together(whole):
    clips = open_clips(whole)
    assert set(clips.splits) == {"train", "validation", "test"}
    assert clips.splits["test"] == tuple(TEST)
    held = {recording_of(name) for name in clips.splits["validation"]}
    # One of the four recordings, both of its clips.
    assert len(held) == 1
    assert len(clips.splits["validation"]) == 2
    assert held.isdisjoint({recording_of(name) for name in clips.splits["train"]})
    assert sorted(clips.splits["train"] + clips.splits["validation"]) == sorted(TRAIN)
    assert open_clips(whole).splits == clips.splits


def test_a_group_for_validation_is_taken_as_it_is(folder):
    write_clip(folder, "dev-val-sim", "mine")
    clips = open_clips(folder)
    assert clips.splits["validation"] == ("mine",)
    assert clips.splits["train"] == tuple(TRAIN)


def test_clips_travel_to_workers(whole):
    clips = open_clips(whole)
    copy = pickle.loads(pickle.dumps(clips))
    assert copy == clips
    np.testing.assert_array_equal(copy.audio(TEST[0]), clips.audio(TEST[0]))


def test_the_fingerprint_follows_the_labels_not_the_place(whole, folder):
    before = open_clips(whole).fingerprint
    assert open_clips(folder).fingerprint == before
    table = folder / "metadata_dev" / "dev-test-sony" / f"{TEST[0]}.csv"
    table.write_text(HEADER + ROWS.replace("45", "46"))
    assert open_clips(folder).fingerprint != before


@pytest.mark.parametrize("kind", ["stereo_dev", "video_dev"])
@pytest.mark.parametrize("has_checksums", [True, False])
def test_the_fingerprint_follows_what_is_heard_and_seen(folder, tmp_path, kind, has_checksums):
    """Other sound of the same length, and other pictures in as many bytes."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = next((other / kind / "dev-test-sony").iterdir())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    if has_checksums:
        for place in (folder, other):
            write_checksums(place)
    assert open_clips(other).fingerprint != open_clips(folder).fingerprint


def test_the_fingerprint_of_clips_without_checksums_sees_both_ends(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(10**6))
    seen = {dcase._ends(path)}
    for place in (0, 65_535, 10**6 - 65_536, 10**6 - 1):
        content = bytearray(10**6)
        content[place] = 1
        path.write_bytes(content)
        seen.add(dcase._ends(path))
    assert len(seen) == 5
    path.write_bytes(bytes(100_000))
    assert dcase._ends(path) not in seen


def test_sound_alone_will_do(folder):
    shutil.rmtree(folder / "video_dev")
    clips = open_clips(folder)
    assert not clips.has_video
    with pytest.raises(InputError, match="has no folder video_dev; add the videos"):
        clips.frames(TEST[0], 5, (16, 32))


def spoil_audio(audio=None, rate_hz=24_000):
    def spoil(folder):
        samples = np.zeros((SAMPLES, 2)) if audio is None else audio
        soundfile.write(folder / "stereo_dev/dev-test-sony" / f"{TEST[0]}.wav", samples, rate_hz)

    return spoil


def spoil_table(text):
    def spoil(folder):
        (folder / "metadata_dev/dev-test-sony" / f"{TEST[0]}.csv").write_text(text)

    return spoil


def remove(path):
    def spoil(folder):
        (folder / path).unlink()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_audio(np.zeros(SAMPLES)), r"\.wav: 1 channel\(s\); clips are stereo, L and R"),
        (spoil_audio(rate_hz=48_000), r"sample rate 48000 Hz; clips are at 24000 Hz: resample"),
        (
            spoil_audio(np.zeros((SAMPLES - 1, 2))),
            r"11999 samples where the other clips have 12000",
        ),
        (
            spoil_table("frame,class,source,azimuth\n"),
            r"\.csv: line 1: the header lacks distance, onscreen; it must be frame,class",
        ),
        (
            spoil_table(HEADER + "3,0,0,0,100,0\n2,0,0,0,100,0\n"),
            r"\.csv: line 3: frame 2 must not be below the one before; sort rows",
        ),
        (
            spoil_table(HEADER + "5,0,0,0,100,0\n"),
            r"line 2: frame 5 must lie in 0\.\.4, the clip's frames",
        ),
        (
            spoil_table(HEADER + "0,0,0,0,100,0\n\n1,13,0,0,100,0\n"),
            r"line 4: class 13 must lie in 0\.\.12",
        ),
        (
            spoil_table(HEADER + "0,0,0,91,100,0\n"),
            r"line 2: azimuth 91 must lie in -90\.\.90 degrees; fold what is behind",
        ),
        (spoil_table(HEADER + "0,0,0,0,-1,0\n"), r"line 2: distance -1 must be 0 cm or more"),
        (spoil_table(HEADER + "0,0,-1,0,10,0\n"), r"line 2: source -1 must be 0 or more"),
        (spoil_table(HEADER + "0,0,0,0,10,2\n"), r"line 2: onscreen 2 must be 0 or 1"),
        (spoil_table(HEADER + "0,0,0,0.5,10,0\n"), r"line 2: '0,0,0,0\.5,10,0' holds what is no"),
        (spoil_table(HEADER + "0,0,0,0,10\n"), r"line 2: 5 cells '0,0,0,0,10'; a row has 6"),
        (
            remove(f"metadata_dev/dev-test-sony/{TEST[0]}.csv"),
            r"\.csv: no such file, and .*\.wav needs it; add it or remove the clip",
        ),
        (
            remove(f"video_dev/dev-test-sony/{TEST[1]}.mp4"),
            r"\.mp4: no such file, and .*\.wav needs it",
        ),
        (
            lambda folder: shutil.rmtree(folder / "metadata_dev"),
            r"has no folder metadata_dev, and training and scores need labels; add it, or have `sp",
        ),
        (
            lambda folder: shutil.rmtree(folder / "stereo_dev"),
            r"has no folder stereo_dev; give the folder that holds stereo_dev",
        ),
        (
            lambda folder: write_clip(folder, "dev-train-tau", TEST[0]),
            r"a clip of this name is in group dev-test-sony too",
        ),
        (
            lambda folder: write_clip(folder, "extra", "more"),
            r"stereo_dev/extra: the group's name must hold one of train, val, validation, test",
        ),
        (
            lambda folder: (folder / "clips.json").write_text("{}"),
            r"clips\.json: tells no classes \('classes'\); render the clips again",
        ),
    ],
)
def test_what_is_wrong_is_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message) as refusal:
        open_clips(folder)
    assert "\n" not in str(refusal.value)


def test_a_video_that_ends_too_early_is_told_by_name(folder):
    path = folder / "video_dev" / "dev-test-sony" / f"{TEST[0]}.mp4"
    opened = open_clips(folder)
    write_video(path, np.zeros((9, 32, 64, 3), np.uint8), 30)
    message = re.escape(f"{path}: the video lasts 0.30 s, shorter than the 0.50 s of its audio")
    with pytest.raises(InputError, match=message):
        open_clips(folder)
    # And so is one that has changed since.
    with pytest.raises(InputError, match=message):
        opened.frames(TEST[0], 5, (16, 32))
    path.write_bytes(b"not a video")
    with pytest.raises(InputError, match=r"\.mp4: cannot be decoded as video"):
        open_clips(folder)


def test_without_a_reader_of_videos_sound_can_be_opened(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    clips = open_clips(folder)
    assert clips.audio(TEST[0]).shape == (2, SAMPLES)
    with pytest.raises(InputError, match="video needs PyAV"):
        clips.frames(TEST[0], 5, (16, 32))


@contextlib.contextmanager
def no_file_left():
    """The next file that is opened is one too many."""
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def unread(whole):
    """What is said of a whole clip that was read once, and now is not."""
    loader = ClipLoader(open_clips(whole), Pictures(2, (16, 32)))
    loader[TEST[0]]

    def told(pictures: bool = True) -> InputError:
        spoilt = loader if pictures else ClipLoader(loader.clips, None)
        with pytest.raises(InputError) as caught:
            spoilt[TEST[0]]
        return caught.value

    return told


def fails(error):
    def call(*args, **words):
        raise error

    return call


@pytest.mark.parametrize("of", ["sound", "pictures"])
def test_a_whole_clip_is_not_bad_where_no_file_can_be_opened(monkeypatch, unread, of):
    if of == "pictures":
        monkeypatch.setattr(Clips, "audio", lambda *_: np.zeros((2, SAMPLES), np.float32))
        monkeypatch.setattr(Clips, "events", lambda *_: no_events())
    with no_file_left():
        error = unread(of == "pictures")
    assert not isinstance(error, BadRecord)
    assert str(error) == (
        f"{TEST[0]}: could not be read now (Too many open files), which does not tell that it is "
        "bad; raise `ulimit -n`, or give fewer data.workers, then start again."
    )


def test_a_library_that_is_missing_makes_no_clip_bad(monkeypatch, unread):
    monkeypatch.setitem(sys.modules, "av", None)
    error = unread()
    assert not isinstance(error, BadRecord)
    assert str(error).startswith("video needs PyAV, which is not installed; install the extra")


def test_a_failing_disk_makes_no_sound_bad(monkeypatch, unread):
    monkeypatch.setattr(soundfile.SoundFile, "read", fails(soundfile.LibsndfileError(2)))
    assert isinstance(unread(), BadRecord)
    monkeypatch.setattr(audio, "read_through", fails(OSError(errno.EIO, "Input/output error")))
    error = unread()
    assert not isinstance(error, BadRecord)
    assert "could not be read now (Input/output error)" in str(error)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
def test_what_ffmpeg_says_of_damage_is_told_from_the_machine(monkeypatch, unread, code):
    import av

    with pytest.raises(av.FFmpegError) as caught:
        av.error.err_check(-code)
    monkeypatch.setattr(video, "_timed", fails(caught.value))
    assert isinstance(unread(), BadRecord)
    for error in (OSError(errno.ESTALE, "Stale file handle"), MemoryError("no room")):
        monkeypatch.setattr(video, "read_through", fails(error))
        told = unread()
        assert not isinstance(told, BadRecord)
        assert re.search(r"read now \((Stale file handle|no room)\)", str(told))


def as_evaluation_set(folder):
    """Without its labels, under the names of the challenge's evaluation set."""
    shutil.rmtree(folder / "metadata_dev")
    for kind in ("stereo", "video"):
        (folder / f"{kind}_eval").mkdir()
        (folder / f"{kind}_dev" / "dev-test-sony").rename(folder / f"{kind}_eval" / "eval")
        shutil.rmtree(folder / f"{kind}_dev")


def test_labels_may_be_missing_where_nobody_needs_them(folder):
    labelled = open_clips(folder)
    shutil.rmtree(folder / "metadata_dev")
    clips = open_clips(folder, needs_labels=False)
    assert not clips.has_labels
    assert clips.splits == labelled.splits
    np.testing.assert_array_equal(clips.audio(TEST[0]), labelled.audio(TEST[0]))
    with pytest.raises(InputError, match=r"has no folder metadata_dev, and training and scores"):
        clips.events(TEST[0])


def test_an_evaluation_set_is_for_tests(folder):
    labelled = open_clips(folder)
    audio, azimuth_deg = labelled.audio(TEST[0]), labelled.events(TEST[0]).azimuth_deg
    frames = labelled.frames(TEST[1], 5, (16, 32))
    as_evaluation_set(folder)
    with pytest.raises(InputError, match=r"has no folder metadata_eval, and training and scores"):
        open_clips(folder)
    clips = open_clips(folder, needs_labels=False)
    assert clips.splits == {"test": tuple(TEST)}
    assert clips.has_video
    np.testing.assert_array_equal(clips.audio(TEST[0]), audio)
    np.testing.assert_array_equal(clips.frames(TEST[1], 5, (16, 32)), frames)
    # Labels that are told later are read.
    (folder / "metadata_eval" / "eval").mkdir(parents=True)
    for name in TEST:
        (folder / "metadata_eval" / "eval" / f"{name}.csv").write_text(HEADER + ROWS)
    np.testing.assert_array_equal(open_clips(folder).events(TEST[0]).azimuth_deg, azimuth_deg)


def test_predictions_come_back_as_they_were_written(tmp_path):
    events = SoundEvents(
        np.int32([0, 4, 4, 49]),
        np.int32([3, 3, 0, 12]),
        np.int32([0, 1, 0, 0]),
        np.float32([-90, 90, 13, 0]),
        np.float32([0.07, 2.29, 4.01, 10.0]),
        np.array([False, True, False, True]),
    )
    path = tmp_path / "clip.csv"
    write_predictions(path, events)
    assert path.read_text().splitlines()[:2] == [HEADER.strip(), "0,3,0,-90,7,0"]
    read = read_events(path, 13, 50)
    for field in ("frame", "category", "source", "azimuth_deg", "distance_m", "on_screen"):
        ours, theirs = getattr(read, field), getattr(events, field)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    # Rounded, and nothing is written over unless told.
    turned = SoundEvents(
        *(getattr(events, f) for f in ("frame", "category", "source")),
        events.azimuth_deg * np.float32(0.99),
        events.distance_m,
        events.on_screen,
    )
    with pytest.raises(InputError, match=r"clip\.csv: is there already and is not overwritten"):
        write_predictions(path, turned)
    np.testing.assert_array_equal(read_events(path, 13, 50).azimuth_deg, events.azimuth_deg)
    write_predictions(path, turned, overwrite=True)
    np.testing.assert_array_equal(read_events(path, 13, 50).azimuth_deg, [-89, 89, 13, 0])
    assert os.listdir(tmp_path) == ["clip.csv"]


def test_a_clip_without_events_is_a_header(tmp_path):
    write_predictions(tmp_path / "clip.csv", no_events())
    assert (tmp_path / "clip.csv").read_text() == HEADER
    assert len(read_events(tmp_path / "clip.csv", 13, 50)) == 0


def test_predictions_that_cannot_be_written_are_refused(tmp_path):
    backwards = SoundEvents(
        np.int32([1, 0]),
        *[np.zeros(2, np.int32)] * 2,
        *[np.zeros(2, np.float32)] * 2,
        np.zeros(2, bool),
    )
    with pytest.raises(InputError, match="events are not in the order of their frames; sort"):
        write_predictions(tmp_path / "clip.csv", backwards)
    with pytest.raises(InputError, match=r"clip\.csv: cannot be written \(No such file"):
        write_predictions(tmp_path / "none" / "clip.csv", no_events())
    with pytest.raises(InputError, match=r"clip\.csv: cannot be read \(No such file"):
        read_events(tmp_path / "clip.csv", 13, 50)
