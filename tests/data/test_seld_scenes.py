"""Rendered clips: labels against the simulation, sound against labels, pictures against both."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
from tiny_seld import tiny_seld_recipe

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.stereo_view import picture_position
from spatial_clap_jax.cli import main
from spatial_clap_jax.data import seld_drawing, seld_scenes
from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.scenes import RoomCounts
from spatial_clap_jax.data.seld_drawing import active_frames, draw_clip
from spatial_clap_jax.data.seld_pictures import class_colour, paint_clip, source_half_px
from spatial_clap_jax.data.seld_recipe import ClipCounts, PictureOptions, SeldRecipe
from spatial_clap_jax.data.seld_scenes import render_clips
from spatial_clap_jax.data.sources import Clip
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.experiment import load_config

RECIPE = tiny_seld_recipe()
STEP = 2400
CLASSES = ("bang", "hiss", "buzz")


def rirs_of(azimuth_deg, distance_m):
    """Responses in FOA of places without walls: one sample."""
    azimuth = np.radians(azimuth_deg)
    gains = np.stack([np.ones_like(azimuth), np.sin(azimuth), 0 * azimuth, np.cos(azimuth)], 1)
    return (gains / np.asarray(distance_m)[:, None])[..., None].astype(np.float32)


@dataclasses.dataclass
class OpenAir:
    """Noise bursts of three classes, and places all round without walls."""

    azimuth_deg: tuple[float, ...] = tuple(range(-175, 180, 10))
    distance_m: float = 2.0
    burst: int = 6000

    @property
    def clips(self):
        return {
            "train": tuple(
                Clip(f"{name}{i}", name, (name,), "train", f"{name}{i}")
                for name in CLASSES
                for i in range(4)
            )
        }

    @property
    def contents(self):
        return {}

    @property
    def rooms(self):
        count = len(self.azimuth_deg)
        azimuth_deg = np.float32(self.azimuth_deg)
        distance_m = np.full(count, self.distance_m, np.float32)
        zeros, bands = np.zeros(count, np.float32), np.zeros((count, 0), np.float32)
        rirs = rirs_of(azimuth_deg, distance_m)
        room = RirRoom(
            "open",
            (9.0, 9.0, 9.0),
            0.0,
            rirs,
            azimuth_deg,
            zeros,
            distance_m,
            24_000,
            zeros,
            bands,
            bands,
        )
        return {"train": [room]}

    def load(self, clip, sample_rate_hz):
        rng = np.random.default_rng(list(clip.clip_id.encode()))
        return rng.standard_normal(self.burst).astype(np.float32)


def drawn(index, material=None, **changes):
    recipe = dataclasses.replace(RECIPE, **{"snr_range_db": (60.0, 60.0), **changes})
    return recipe, draw_clip(recipe, material or OpenAir(), CLASSES, "train", index)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    pytest.importorskip("av")
    out = tmp_path_factory.mktemp("seld") / "tiny"
    render_clips(RECIPE, "synthetic", out, workers=1, progress=False)
    return out


def test_a_rendered_folder_is_read_as_dcases(rendered):
    clips = open_clips(rendered)
    assert {split: len(names) for split, names in clips.splits.items()} == RECIPE.splits()
    assert clips.splits["train"] == ("train_000000", "train_000001", "train_000002")
    assert len(clips.classes) == 12
    assert clips.labels == 10
    for name in clips.groups:
        audio, events = clips.audio(name), clips.events(name)
        assert audio.shape == (2, 24_000)
        assert np.abs(audio).max() > 0.003
        assert len(events)
        assert clips.frames(name, 4, (18, 32)).shape == (4, 18, 32, 3)
    manifest = json.loads((rendered / "clips.json").read_text())
    assert manifest["recipe"]["name"] == "tiny"
    assert sum(manifest["clips_by_sources"].values()) == 6


def contents_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_again_is_the_same_whatever_the_workers(rendered, tmp_path):
    again = render_clips(RECIPE, "synthetic", tmp_path / "again", workers=2, progress=False)
    assert contents_of(tmp_path / "again") == contents_of(rendered)
    assert again.fingerprint == open_clips(rendered).fingerprint


def test_damage_to_sound_or_video_is_noticed(rendered, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(rendered, damaged)
    clips = open_clips(damaged)
    name = clips.splits["test"][0]
    for path in damaged.glob(f"*/*/{name}.*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        if path.suffix != ".csv":
            path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}\.wav: is not as it was rendered .*; copy it a"):
        clips.audio(name)
    # A decoder may notice it, too.
    with pytest.raises(InputError, match=rf"{name}\.mp4: "):
        clips.frames(name, 2, (18, 32))
    clips.audio(clips.splits["test"][1])
    # A damaged header shows when a folder is opened; a damaged picture or sound does not.
    shutil.copytree(rendered / "video_dev", damaged / "video_dev", dirs_exist_ok=True)
    # Folders of others, and those from before, have no checksums.
    shutil.copytree(damaged, tmp_path / "old", ignore=shutil.ignore_patterns("checksums.json"))
    assert open_clips(tmp_path / "old").audio(name).shape == (2, 24_000)
    shutil.copytree(damaged, tmp_path / "bad")
    (tmp_path / "bad" / "checksums.json").write_text("[1]")
    with pytest.raises(InputError, match=r"checksums\.json: is not readable as checksums of clips"):
        open_clips(tmp_path / "bad").audio(name)


def test_the_same_folder_is_left_and_another_refused(rendered, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seld_scenes, "WorkerPool", None)
    folder = shutil.copytree(rendered, tmp_path / ":dog:  \x1b[31m")
    held = render_clips(RECIPE, "synthetic", folder)
    assert held == open_clips(folder)
    told = capsys.readouterr().err
    assert told == f"{tmp_path}/:dog:  \\x1b[31m: holds these clips already; nothing to do.\n"
    other = dataclasses.replace(RECIPE, overlap=2)
    with pytest.raises(InputError, match=r"recipe\.overlap is 3 there and 2 here"):
        render_clips(other, "synthetic", rendered)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something that is no set of clips"):
        render_clips(RECIPE, "synthetic", tmp_path)


def test_the_command_renders_clips(tmp_path, capsys):
    pytest.importorskip("av")
    (tmp_path / "clips.py").write_text(
        "from test_seld_scenes import RECIPE\n\ndef get_config(size):\n    return RECIPE\n"
    )
    counts = ("--clip-counts.train", 1, "--clip-counts.validation", 0, "--clip-counts.test", 1)
    arguments = ("--sources", "synthetic", "--out", tmp_path / "out", "--workers", 1, *counts)
    main([str(word) for word in ("render", tmp_path / "clips.py", *arguments)])
    assert "train 1, test 1 clips; 0 bad dry sounds skipped" in capsys.readouterr().out
    assert open_clips(tmp_path / "out").splits["test"] == ("test_000000",)


@pytest.mark.parametrize("size", ["quickstart", "small", "base"])
def test_shipped_recipes_have_clips_of_every_split(size):
    recipe = load_config("configs/seld_scenes.py", size)
    assert isinstance(recipe, SeldRecipe)
    assert recipe.name == size
    assert set(recipe.splits()) == {"train", "validation", "test"}
    # Pictures of the task's shape, so that what is off screen is off the picture too.
    assert recipe.video.width * 9 == recipe.video.height * 16


def test_sounds_without_classes_are_refused(tmp_path):
    (tmp_path / "clips.csv").write_text("filename,caption,split\na.wav,a dog barks,train\n")
    one = dataclasses.replace(RECIPE, clip_counts=ClipCounts(1, 0, 0))
    with pytest.raises(InputError, match=r"1 of 1 clips cannot be used, and at most 5%"):
        render_clips(one, str(tmp_path / "clips.csv"), tmp_path / "out", 1, False)
    assert not (tmp_path / "out").exists()
    source = type("Source", (), {"name": "clips", "clips": (Clip("a", "", ("x",), "train", "a"),)})
    with pytest.raises(InputError, match="clips: 1 clips have no category, such as 'a'"):
        seld_scenes._classes(source(), {})


def test_labels_are_where_the_dry_signal_sounds():
    signal = np.zeros(5 * STEP, np.float32)
    signal[:STEP] = 1.0
    signal[2 * STEP : 3 * STEP] = 0.1  # 20 dB below: sounds
    signal[3 * STEP : 4 * STEP] = 0.02  # 34 dB below: does not
    np.testing.assert_array_equal(np.flatnonzero(active_frames(signal, 2 * STEP, 20)), [2, 4])
    # Half a frame later each piece reaches into two frames.
    np.testing.assert_array_equal(
        np.flatnonzero(active_frames(signal, 2 * STEP + STEP // 2, 20)), [2, 3, 4, 5]
    )
    # What lies before or after the clip is cut.
    np.testing.assert_array_equal(np.flatnonzero(active_frames(signal, -2 * STEP, 20)), [0])
    np.testing.assert_array_equal(np.flatnonzero(active_frames(signal, 18 * STEP, 20)), [18])
    for outside in (-6 * STEP, 20 * STEP, 23 * STEP):
        assert not active_frames(signal, outside, 20).any()


def test_events_keep_to_the_recipe():
    most_of_a_class = most = 0
    crowded = {"events": (6, 8), "event_s": (0.5, 1.0), "duration_s": 2.0, "places_per_room": 8}
    for overlap, index in itertools.product((2, 4), range(20)):
        _, clip = drawn(index, OpenAir(burst=24_000), overlap=overlap, same_class=0.8, **crowded)
        events = clip.events()
        assert len({event.recording for event in clip.placed}) == len(clip.placed)
        assert len({event.place for event in clip.placed}) == len(clip.placed)
        for frame in range(20):
            now = events.category[events.frame == frame]
            assert len(now) <= overlap
            of_class = int(np.bincount(now, minlength=3).max())
            assert of_class <= 3
            most_of_a_class, most = max(most_of_a_class, of_class), max(most, len(now))
        rows = list(zip(events.frame, events.category, events.source, strict=True))
        assert rows == sorted(set(rows))
    # The limits are reached, not merely kept.
    assert (most_of_a_class, most) == (3, 4)


def test_the_louder_channel_is_on_the_side_of_the_label():
    checked = 0
    for index in range(30):
        _, clip = drawn(index, events=(1, 1))
        events = clip.events()
        if not len(events):
            continue
        azimuth_deg, frame = float(events.azimuth_deg[0]), int(events.frame[0])
        assert abs(azimuth_deg) <= 90
        assert events.distance_m[0] == pytest.approx(2.0)
        power = np.square(clip.audio[:, frame * STEP : (frame + 1) * STEP]).mean(axis=1)
        # L = (1 + sin a) s, R = (1 - sin a) s, front and back alike.
        side = math.sin(math.radians(azimuth_deg))
        if abs(side) < 0.9:
            expected_db = 20 * math.log10((1 + side) / (1 - side))
            assert 10 * math.log10(power[0] / power[1]) == pytest.approx(expected_db, abs=0.3)
            checked += 1
    assert checked > 10


def test_between_events_there_is_diffuse_noise_at_the_drawn_level():
    powers = []
    for index in range(12):
        _, clip = drawn(index, events=(1, 1), snr_range_db=(20.0, 20.0))
        sounding = clip.events().frame
        quiet = np.setdiff1d(np.arange(10), [f + d for f in sounding for d in (-1, 0, 1)])
        left, right = clip.audio.reshape(2, 10, STEP)[:, quiet]
        powers.append((np.mean(left**2), np.mean(right**2), np.mean((left - right) ** 2)))
    left, right, side = 10 * np.log10(np.mean(powers, axis=0))
    # W at -50 dB, and a third of its power in the figure-of-eight of each side.
    expected_db = -50 + 10 * math.log10(1 + 1 / 3)
    assert left == pytest.approx(expected_db, abs=1.0)
    assert right == pytest.approx(expected_db, abs=1.0)
    assert side == pytest.approx(-50 + 10 * math.log10(4 / 3), abs=1.0)


def test_on_screen_is_in_front_and_in_the_field_of_view():
    inside = outside_front = behind = 0
    for index in range(60):
        _, clip = drawn(index, events=(3, 3))
        for event in clip.placed:
            expected = abs(event.azimuth_deg) <= 50 + 1e-9
            assert event.on_screen == expected
            folded = abs(event.azimuth_deg) > 90
            inside += expected
            behind += folded and abs(180 - abs(event.azimuth_deg)) < 50
            outside_front += not expected and not folded
        numbers = {(e.category, e.azimuth_deg) for e in clip.placed}
        assert len(numbers) == len(clip.placed)
    # The cases that matter all occur; those behind would be on screen if folded ones were.
    assert min(inside, outside_front, behind) > 5


def mask_of(picture, colour):
    return np.abs(picture.astype(int) - colour).max(axis=-1) < 25


def test_sources_are_painted_at_their_places_while_they_sound():
    options = PictureOptions(width=160, height=90, distractors=2)
    seen = hidden = 0
    for index in range(25):
        recipe, clip = drawn(index, events=(1, 1), video=options)
        (event,) = clip.placed or (None,)
        if event is None:
            continue
        pictures = paint_clip(clip, 3, options, recipe.duration_s)
        assert pictures.shape == (10, 90, 160, 3)
        colour = class_colour(event.category, 3)
        sounding = np.flatnonzero(event.active)
        for label, picture in enumerate(pictures):
            mask = mask_of(picture, colour)
            if not (event.on_screen and sounding[0] <= label <= sounding[-1]):
                assert mask.sum() == 0
                hidden += 1
                continue
            rows, columns = np.nonzero(mask)
            across, down = picture_position(
                np.array(event.azimuth_deg), np.array(event.elevation_deg)
            )
            half_px = source_half_px(event.distance_m, options)
            if abs(across) < 0.8:
                assert columns.mean() + 0.5 == pytest.approx((across + 1) * 80, abs=1.0)
                assert rows.mean() + 0.5 == pytest.approx((down + 1) * 45, abs=half_px / 2)
                assert np.ptp(columns) + 1 == pytest.approx(2 * half_px, rel=0.3)
                # +azimuth is left.
                assert (event.azimuth_deg > 0) == (across < 0)
                seen += 1
    assert min(seen, hidden) > 20


def test_size_tells_distance():
    options = PictureOptions(width=160, height=90)
    near, far = source_half_px(1.0, options), source_half_px(2.0, options)
    # The focal length of 160 pixels over 100 degrees, 67.1, by a quarter of a metre.
    assert near == pytest.approx(80 / math.tan(math.radians(50)) * 0.25)
    assert far == pytest.approx(near / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "name a b must be letters"),
        ({"duration_s": 1.03}, "duration_s 1.03 must be whole steps of 0.1 s"),
        ({"events": (0, 2)}, r"events \(0, 2\) must hold 1 <= fewest <= most"),
        ({"event_s": (0.3, 2.0)}, "event_s .* longest <= duration_s 1"),
        ({"overlap": 0}, "overlap 0 must be at least 1"),
        ({"same_class": 1.2}, "same_class 1.2 must be a share"),
        ({"places_per_room": 2}, "places_per_room 2 must be at least the most events, 3"),
        ({"distance_range_m": (3.0, 4.0)}, "start low enough for the narrowest room"),
        ({"elevation_range_deg": (10.0, -10.0)}, "elevation_range_deg .* low <= high"),
        ({"receiver": Foa(height_m=2.5)}, "leave 0.3 m to the lowest ceiling"),
        ({"snr_range_db": (-1.0, 5.0)}, "snr_range_db"),
        ({"speed_range": (0.1, 1.0)}, "speed_range"),
        ({"clip_counts": ClipCounts(0, 0, 0)}, "clip_counts .* must ask for some clips"),
        ({"room_counts": RoomCounts(1, 0, 1)}, "room_counts.validation 0 must be at least 1"),
    ],
)
def test_wrong_recipes_are_told(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RECIPE, **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 161}, "width 161, height 90 must be even"),
        ({"width": 160, "height": 120}, "must be 16:9"),
        ({"rate_hz": 0}, "rate_hz 0"),
    ],
)
def test_wrong_pictures_are_told(options, message):
    with pytest.raises(InputError, match=message):
        PictureOptions(**options)


def test_a_split_without_sounds_is_told():
    air = OpenAir()
    with pytest.raises(InputError, match="split 'train' has no dry sounds of the classes purr"):
        seld_drawing.draw_clip(RECIPE, air, ("purr",), "train", 0)
