"""CSV sources: formats, splits and refusals; and the fitting of a clip to a length."""

import os
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import soundfile

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.data.sources import (
    SourceOptions,
    active_level_db,
    fit_clip,
    open_source,
)
from spatial_clap_jax.errors import InputError


def write(folder, text, name="clips.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def tone(path, frames=1600, rate_hz=16_000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.sin(np.arange(frames) * 0.1)[:, None] * np.linspace(0.5, 0.1, channels)
    soundfile.write(path, wave.astype("f4"), rate_hz, subtype="FLOAT")
    return wave.astype("f4")


def only(source):
    (clip,) = source.clips
    return clip


# Formats


def test_repeated_rows_and_numbered_columns_are_captions_of_one_clip(tmp_path):
    rows = "filename,caption,split\na.wav,A dog  barks.,train\nb.wav,Rain,val\na.wav,A bark,train\n"
    clips = open_source(write(tmp_path, rows)).clips
    assert [(c.clip_id, c.captions, c.category, c.split) for c in clips] == [
        ("a.wav", ("A dog barks.", "A bark"), "", "train"),
        ("b.wav", ("Rain",), "", "validation"),
    ]
    clotho = 'file_name,caption_1,caption_2,caption_3\nx y.wav,One,,"Two, and three"\n'
    source = open_source(write(tmp_path, clotho, "clotho_captions_evaluation.csv"))
    assert only(source).captions == ("One", "Two, and three")
    assert (only(source).split, source.name) == ("test", "clotho_captions_evaluation")


def test_a_category_alone_is_said_in_several_ways(tmp_path):
    source = open_source(write(tmp_path, "filename,category,split\na.wav,Dog bark,train\n"))
    assert only(source).category == "Dog bark"
    assert only(source).captions == category_phrasings("Dog bark")


def test_labels_stand_for_captions_that_are_blank(tmp_path):
    path = write(tmp_path, "filename,category,caption\na.wav,Dog;Rain,\nb.wav,,a bell rings\n")
    labelled, told = open_source(path).clips
    assert (labelled.category, labelled.captions) == ("Dog;Rain", ("the sound of dog and rain",))
    assert (told.category, told.captions) == ("", ("a bell rings",))


def test_chosen_caption_columns(tmp_path):
    text = "filename,caption,spoken,split\na.wav,X,Y,train\n"
    options = SourceOptions(caption_columns=("spoken",))
    assert only(open_source(write(tmp_path, text), options)).captions == ("Y",)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_line_ends_and_utf_8(tmp_path, mark, end):
    text = end.join(["Filename, Caption ,split", "ä.wav,Ein Hündchen,train", "", ""])
    clip = only(open_source(write(tmp_path, mark + text.encode())))
    assert (clip.clip_id, clip.captions) == ("ä.wav", ("Ein Hündchen",))


def test_audiocaps_reads_sibling_splits_and_finds_audio_in_the_stated_order(tmp_path):
    head = "audiocap_id,youtube_id,start_time,caption\n"
    given = write(tmp_path, head + "7,abc,30,A duck\n", "train.csv")
    write(tmp_path, head + "8,-d_f,0,Wind\n9,-d_f,0,Gusts\n", "test.csv")
    write(tmp_path, head + "5,xyz,0,Rain\n", "val.csv")
    write(tmp_path, "notes\nnothing of ours\n", "notes.csv")
    folder = tmp_path / "waves"
    folder.mkdir()
    source = open_source(given, SourceOptions(audio_folder=str(folder)))
    clips = {clip.clip_id: clip for clip in source.clips}
    assert {name: clip.split for name, clip in clips.items()} == {
        "abc_30": "train",
        "-d_f_0": "test",
        "xyz_0": "validation",
    }
    assert source.name == tmp_path.name
    assert clips["-d_f_0"].captions == ("Wind", "Gusts")
    assert clips["-d_f_0"].recording == "-d_f"
    with pytest.raises(InputError, match=r"train\.csv: row 2: no audio file 'abc_30\.wav' in"):
        source.load(clips["abc_30"], 16_000)
    # Each is preferred to those before it.
    for frames, name in enumerate(
        ("train/abc.wav", "9.mp3", "7.wav", "abc.flac", "abc.wav", "abc_30.ogg", "abc_30.wav"), 1000
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, np.sin(np.arange(frames)), 16_000)
        loaded = source.load(clips["abc_30"], 16_000)
        if name == "9.mp3":
            assert loaded.size == frames - 1
            assert source.load(clips["-d_f_0"], 16_000).size == frames
        else:
            assert loaded.size == frames


# Splits


def folds(tmp_path, **options):
    rows = [
        f"{fold}-{fold}{category}{number}-{take}.ogg,{fold},c{category}"
        for fold in (1, 2, 3, 4)
        for category in range(3)
        for number in range(4)
        for take in "AB"
    ]
    text = "\n".join(["filename,fold,category", *rows])
    return open_source(write(tmp_path, text), SourceOptions(**options))


def test_folds_test_on_the_highest_and_hold_whole_recordings_out(tmp_path):
    source = folds(tmp_path)
    split_of = {}
    for clip in source.clips:
        assert (clip.split == "test") == clip.clip_id.startswith("4-")
        assert split_of.setdefault(clip.recording, clip.split) == clip.split
        assert clip.recording == clip.clip_id.split("-")[1]
    held = [clip for clip in source.clips if clip.split == "validation"]
    # A tenth of 12 recordings a class, two takes each.
    assert Counter(clip.category for clip in held) == {"c0": 2, "c1": 2, "c2": 2}
    assert source.clips == folds(tmp_path).clips
    assert source.clips != folds(tmp_path, seed=1).clips


def test_fold_options(tmp_path):
    source = folds(tmp_path, test_folds=(1, 3), validation_share=0.0)
    assert {clip.clip_id[0] for clip in source.clips if clip.split == "test"} == {"1", "3"}
    assert {clip.split for clip in source.clips} == {"train", "test"}
    with pytest.raises(InputError, match=r"test_folds \(9,\): .* has the folds \[1, 2, 3, 4\]"):
        folds(tmp_path, test_folds=(9,))
    with pytest.raises(InputError, match=r"every fold of \[1, 2, 3, 4\] is a test fold; keep"):
        folds(tmp_path, test_folds=(1, 2, 3, 4))
    one = write(tmp_path, "filename,category,fold\na.wav,x,one\n", "one.csv")
    with pytest.raises(InputError, match=r"row 2: fold 'one' is no whole number"):
        open_source(one)
    plain = write(tmp_path, "filename,category\na.wav,x\n", "plain.csv")
    with pytest.raises(InputError, match=r"test_folds \(4,\): .*plain.csv has no fold column"):
        open_source(plain, SourceOptions(test_folds=(4,)))


def test_spellings_of_splits(tmp_path):
    words = ["Train", "training", "development", "val", "VALID", "dev", "test", "eval"]
    rows = "\n".join(f"{n}.wav,{word},x" for n, word in enumerate(words))
    clips = open_source(write(tmp_path, "filename,split,category\n" + rows)).clips
    assert [clip.split[:2] for clip in clips] == ["tr"] * 3 + ["va"] * 3 + ["te"] * 2
    bad = write(tmp_path, "filename,split,category\na.wav,train,x\nb.wav,trian,x\n")
    with pytest.raises(InputError, match=r"clips\.csv: row 3: split 'trian' is unknown; give one"):
        open_source(bad)


def test_without_split_or_fold_a_tenth_each_is_held_out_by_hash(tmp_path):
    rows = [f"{n}.wav,{'ab'[n % 2]}" for n in range(200)]
    clips = open_source(write(tmp_path, "\n".join(["filename,category", *rows]))).clips
    assert Counter((clip.split, clip.category) for clip in clips) == {
        **{("train", name): 80 for name in "ab"},
        **{("validation", name): 10 for name in "ab"},
        **{("test", name): 10 for name in "ab"},
    }
    # The order of the rows does not matter.
    again = open_source(write(tmp_path, "\n".join(["filename,category", *rows[::-1]]))).clips
    assert set(clips) == set(again)


def test_a_recording_is_never_cut_by_a_split(tmp_path):
    rows = [f"{n}.wav,x,r{n // 5}" for n in range(100)]
    text = "\n".join(["filename,category,recording", *rows])
    split_of = {}
    for clip in open_source(write(tmp_path, text)).clips:
        assert split_of.setdefault(clip.recording, clip.split) == clip.split
    assert Counter(split_of.values()) == {"train": 16, "validation": 2, "test": 2}
    text = "filename,category,recording,split\na.wav,x,r,train\nb.wav,x,r,test\n"
    with pytest.raises(
        InputError, match=r"row 3: recording 'r' is in test, but in train at .*row 2"
    ):
        open_source(write(tmp_path, text))


# Refusals of csv files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"clips\.csv: the csv is empty; list at least one clip"),
        ("filename,caption\n", "the csv has a header and no rows"),
        ("name,caption\na,b\n", r"lacks column filename; it has name, caption: rename"),
        ("filename,split\na,train\n", "lacks column caption or category; it has filename, split"),
        ("filename;caption\na;b\n", "it has filename;caption: rename or add columns .comma"),
        ("filename,caption,caption\na,b,c\n", "column caption stands twice"),
        ("filename,caption\na.wav,b\nc.wav, \n", r"row 3: caption of 'c.wav' is empty; write"),
        ("filename,caption,category\na.wav,.,\n", r"row 2: caption of 'a.wav' is empty"),
        ("filename,category\na.wav,x\nb.wav,;\n", r"row 3: category ';' is empty; give each"),
        ("filename,caption,category\na.wav,b,x;_\n", r"row 2: category 'x;_' is empty; give"),
        ("filename,category\na.wav,\n", r"row 2: category of 'a.wav' is empty"),
        ("filename,caption_1,caption_2\na.wav,,\n", r"row 2: caption_1 of 'a.wav' is empty"),
        ("filename,caption\n,b\n", r"row 2: filename '' is empty or unprintable"),
        ("filename,caption\na\0.wav,b\n", r"row 2: filename 'a\\x00.wav' is empty or unprin"),
        ("filename,caption\na.wav,b,c\n", r"row 2: 3 fields where the header has 2; put"),
        ('filename,caption\na.wav,"b\n', r"row 2: no valid csv \(.*\); mind the double quotes"),
        (b"filename,caption\na.wav,caf\xe9\n", r"row 2: byte 0xe9 is not UTF-8; save the csv as"),
        ("filename,caption\n".encode("utf-16"), r"row 1: byte 0xff is not UTF-8"),
        (
            "filename,category,split\na.wav,x,train\na.wav,y,train\n",
            r"row 3: 'a.wav' has category 'y', but 'x' at .*clips.csv: row 2; make the rows",
        ),
        (
            "filename,category,split\na.wav,x,train\na.wav,x,test\n",
            r"row 3: 'a.wav' has split 'test', but 'train' at",
        ),
        (
            "audiocap_id,youtube_id,start_time,caption\n1,a/b,0,c\n",
            r"row 2: youtube_id 'a/b' holds a slash; give the id alone",
        ),
        (
            "audiocap_id,youtube_id,start_time,caption\n1,..,0,c\n",
            r"row 2: youtube_id '..' leaves the csv's folder",
        ),
    ],
)
def test_bad_csv_files_are_refused_by_row_and_value(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as refusal:
        open_source(path)
    assert str(refusal.value).startswith(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["../a.wav", "x/../../a.wav", "/etc/a.wav", "C:/a.wav", r"..\a.wav", "..", r"C:\a.wav"]
)
def test_a_path_must_stay_in_its_folder(tmp_path, name):
    path = write(tmp_path, f"filename,caption\n{name},b\n")
    with pytest.raises(InputError, match=r"row 2: filename '.*' leaves the csv's folder; give"):
        open_source(path)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no\.csv: no such file; give a csv file, or 'synthetic'"):
        open_source(str(tmp_path / "no.csv"))
    with pytest.raises(InputError, match="is a folder; give a csv file"):
        open_source(str(tmp_path))
    csv = write(tmp_path, "filename,caption\na.wav,b\n")
    with pytest.raises(InputError, match=r"audio_folder 'nowhere' is no folder; give the folder"):
        open_source(csv, SourceOptions(audio_folder="nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 1.0}, r"validation_share 1.0 must be at least 0 and below 1"),
        ({"stereo_clips": "left"}, r"stereo_clips 'left' is unknown; give 'mean', 'first' or"),
        ({"seed": -1}, r"seed -1 and synthetic_clips .* must not be negative"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        SourceOptions(**options)


# Loading


def single(tmp_path, name="a.wav", **options):
    path = write(tmp_path, f"filename,caption,split\n{name},b,train\n")
    source = open_source(path, SourceOptions(**options))
    return source, only(source)


def test_audio_lies_beside_the_csv_or_in_its_audio_folder(tmp_path):
    source, clip = single(tmp_path)
    with pytest.raises(InputError, match=r"clips.csv: row 2: no audio file 'a.wav' in .*; add it"):
        source.load(clip, 16_000)
    wave = tone(tmp_path / "audio" / "a.wav")
    source, clip = single(tmp_path)
    np.testing.assert_array_equal(source.load(clip, 16_000), wave[:, 0])
    assert source.load(clip, 48_000).size == 3 * wave.shape[0]
    assert source.load(clip, 16_000).dtype == np.float32
    other = tone(tmp_path / "other" / "deep" / "a.wav", frames=99)
    source, clip = single(tmp_path, "deep/a.wav", audio_folder=str(tmp_path / "other"))
    np.testing.assert_array_equal(source.load(clip, 16_000), other[:, 0])


def test_stereo_clips_are_mixed_only_by_rule(tmp_path):
    wave = tone(tmp_path / "a.wav", channels=2)
    mean, clip = single(tmp_path)
    np.testing.assert_allclose(mean.load(clip, 16_000), wave.mean(1), atol=1e-7)
    first, clip = single(tmp_path, stereo_clips="first")
    np.testing.assert_array_equal(first.load(clip, 16_000), wave[:, 0])
    refuse, clip = single(tmp_path, stereo_clips="refuse")
    with pytest.raises(InputError, match=r"2 channels, and stereo_clips is 'refuse'; give mono"):
        refuse.load(clip, 16_000)
    wave = tone(tmp_path / "a.wav", channels=4)
    with pytest.raises(InputError, match=r"4 channels, and stereo_clips is 'mean'; .* 'first'\."):
        mean.load(clip, 16_000)
    np.testing.assert_array_equal(first.load(clip, 16_000), wave[:, 0])


def test_a_bad_file_is_refused_with_its_row(tmp_path):
    source, clip = single(tmp_path)
    (tmp_path / "a.wav").touch()
    with pytest.raises(InputError, match=r"clips\.csv: row 2: .*a\.wav: the audio file is empty"):
        source.load(clip, 16_000)
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
    with pytest.raises(InputError, match=r"row 2: .*a\.wav: the clip is silent"):
        source.load(clip, 16_000)
    both = np.random.default_rng(0).normal(0, 0.1, (100, 1))
    soundfile.write(tmp_path / "a.wav", both * [1, -1], 16_000)
    with pytest.raises(InputError, match=r"row 2: .*a\.wav: its two channels cancel in their mean"):
        source.load(clip, 16_000)


def test_a_link_must_stay_in_its_folder(tmp_path):
    home = tmp_path / "home"
    wave = tone(home / "real.wav")
    tone(tmp_path / "secret.wav")
    os.symlink(home / "real.wav", home / "a.wav")
    source, clip = single(home)
    np.testing.assert_array_equal(source.load(clip, 16_000), wave[:, 0])
    (home / "a.wav").unlink()
    os.symlink(tmp_path / "secret.wav", home / "a.wav")
    with pytest.raises(InputError, match=r"row 2: filename 'a.wav' leaves .* by a link; copy the"):
        source.load(clip, 16_000)
    (home / "a.wav").unlink()
    os.symlink(tmp_path, home / "up")
    source, clip = single(home, "up/secret.wav")
    with pytest.raises(InputError, match=r"'up/secret\.wav' leaves .* by a link"):
        source.load(clip, 16_000)
    # The folder that is looked into unasked is no way out either.
    os.symlink(tmp_path, home / "audio")
    source, clip = single(home, "secret.wav")
    with pytest.raises(
        InputError, match=r"'secret.wav' leaves .*/home by a link; copy .* as audio"
    ):
        source.load(clip, 16_000)
    for folder in ("audio", "up"):
        source, clip = single(home, "secret.wav", audio_folder=str(home / folder))
        assert source.load(clip, 16_000).size


def test_the_fingerprint_tells_sources_apart_but_not_their_place(tmp_path):
    prints = set()
    for place in ("one", "two"):
        tone(tmp_path / place / "a.wav")
        prints.add(single(tmp_path / place)[0].fingerprint())
    assert len(prints) == 1
    source = single(tmp_path / "one", stereo_clips="first")[0]
    prints.add(source.fingerprint())
    tone(tmp_path / "one" / "a.wav", frames=1601)
    prints.add(source.fingerprint())
    write(tmp_path / "two", "filename,caption,split,note\na.wav,b,train,x\n")
    prints.add(open_source(str(tmp_path / "two" / "clips.csv")).fingerprint())
    (tmp_path / "two" / "a.wav").unlink()
    prints.add(open_source(str(tmp_path / "two" / "clips.csv")).fingerprint())
    assert len(prints) == 5


def test_a_source_travels_to_workers(tmp_path):
    wave = tone(tmp_path / "a.wav")
    source, clip = pickle.loads(pickle.dumps(single(tmp_path)))
    np.testing.assert_array_equal(source.load(clip, 16_000), wave[:, 0])


# Fitting


def rng(seed=0):
    return np.random.default_rng(seed)


def test_only_silence_at_the_ends_is_trimmed():
    audio = np.array([0, 0.0009, 0.001, 0, 0, -1, 0.5, 0.0005, 0], "f4")
    np.testing.assert_array_equal(
        fit_clip(audio, 8, rng(), "pad"), np.array([0.001, 0, 0, -1, 0.5, 0, 0, 0], "f4")
    )
    # It is measured against the clip's own peak.
    np.testing.assert_array_equal(
        fit_clip(audio / 100, 8, rng(), "pad"), fit_clip(audio, 8, rng(), "pad") / 100
    )


def test_short_clips_are_tiled_or_padded_and_exact_ones_kept():
    audio = np.array([0, 1, 2, 3, 0], "f4")
    np.testing.assert_array_equal(fit_clip(audio, 7, rng(), "tile"), [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(fit_clip(audio, 7, rng(), "pad"), [1, 2, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(fit_clip(audio, 3, rng(), "pad"), [1, 2, 3])
    np.testing.assert_array_equal(fit_clip(np.zeros(5, "f4"), 8, rng()), np.zeros(8))
    assert fit_clip(audio, 7, rng()).dtype == np.float32


def test_crops_are_drawn_by_the_generator_among_those_with_energy():
    # Loud, quiet, loud; the crop of 100 samples must hold half of the best one's energy.
    audio = np.concatenate([np.full(100, 1.0), np.full(400, 0.01), np.full(100, 1.0)])
    audio = audio.astype("f4")
    starts = set()
    for seed in range(60):
        crop = fit_clip(audio, 100, rng(seed))
        assert crop.size == 100
        np.testing.assert_array_equal(crop, fit_clip(audio, 100, rng(seed)))
        assert np.sum(crop**2) >= 49.9
        starts.add(int((crop < 0.5).sum()) * (1 if crop[0] > 0.5 else -1))
    assert len(starts) > 30
    assert min(starts) < 0 < max(starts)


def test_a_crop_is_a_copy_and_costs_little_memory():
    audio = np.random.default_rng(0).standard_normal(30 * 16_000).astype("f4")
    tracemalloc.start()
    crop = fit_clip(audio, 16_000, rng())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert crop.base is None
    assert peak < 12 * audio.nbytes


def test_nothing_can_be_fitted_from_nothing():
    with pytest.raises(InputError, match="audio: holds no samples; give a clip"):
        fit_clip(np.zeros(0, "f4"), 8, rng())
    with pytest.raises(InputError, match=r"rule 'loop' for short clips is unknown; give 'tile'"):
        fit_clip(np.ones(2, "f4"), 8, rng(), "loop")  # type: ignore[arg-type]


def test_active_level_ignores_pauses_and_follows_gain():
    tone = np.sin(2 * np.pi * np.arange(4000) / 40).astype("f4")
    assert active_level_db(tone) == pytest.approx(-3.01, abs=0.01)
    assert active_level_db(0.1 * tone) == pytest.approx(-23.01, abs=0.01)
    with_pauses = np.concatenate([np.zeros(8000, "f4"), tone, np.zeros(4000, "f4")])
    assert active_level_db(with_pauses) == pytest.approx(-3.01, abs=0.01)
    # 20 dB softer still counts, 40 dB softer does not.
    half = 10 * np.log10((0.5 + 0.005) / 2)
    assert active_level_db(np.append(tone, 0.1 * tone)) == pytest.approx(half, abs=0.01)
    assert active_level_db(np.append(tone, 0.01 * tone)) == pytest.approx(-3.01, abs=0.01)


def test_active_level_of_odd_lengths_and_silence():
    assert active_level_db(np.full(3, 0.5, "f4")) == pytest.approx(-6.02, abs=0.01)
    assert active_level_db(np.full(401, 0.5, "f4")) == pytest.approx(-6.02, abs=0.01)
    assert active_level_db(np.zeros(1000, "f4")) == float("-inf")
