"""Scene groups drawn from tones in rooms of plain gains, where every number can be told."""

import dataclasses

import numpy as np
import pytest

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS, direction_index
from spatial_clap_jax.acoustics.foa import foa_gains, unit_vectors
from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.rooms import FloorRanges, RoomRanges
from spatial_clap_jax.acoustics.spatial_words import direction_word
from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.data.drawing import by_content, draw_group, draw_permutations
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import Clip
from spatial_clap_jax.data.wording import member_words
from spatial_clap_jax.errors import InputError

RATE = 8000
RECIPE = SceneRecipe(name="tones", sample_rate_hz=RATE, duration_s=0.5, level_range_db=3.0)
# Whole numbers of turns in the mixture, so that tones do not leak into each other.
TONE_HZ = {"low": 400.0, "middle": 1000.0, "high": 2200.0}


def tone_clips(categories: dict[str, str] | None = None) -> list[Clip]:
    return [
        Clip(
            f"{tone}-{split}-{n}",
            (categories or {}).get(tone, tone),
            (f"a {tone} tone", f"the {tone} sound"),
            split,
            f"{tone}-{split}",
        )
        for tone in TONE_HZ
        for split in ("train", "test")
        for n in range(2)
    ]


def gain_room(name: str, azimuths: list[float]) -> RirRoom:
    """Place number i reaches L and R with a level ratio of its own."""
    count = len(azimuths)
    rirs = np.zeros((count, 2, 4), np.float32)
    rirs[:, 0, 0] = 1 + np.arange(count)
    rirs[:, 1, 0] = 1
    return RirRoom(
        name=name,
        size_m=(6.0, 5.0, 3.0),
        t60_s=0.3,
        rirs=rirs,
        azimuth_deg=np.array(azimuths, np.float32),
        elevation_deg=np.zeros(count, np.float32),
        distance_m=np.arange(1, count + 1, dtype=np.float32),
        sample_rate_hz=RATE,
        t30_s=np.full(count, 0.3, np.float32),
        drr_bands_db=np.zeros((count, 0), np.float32),
        t30_bands_s=np.zeros((count, 0), np.float32),
    )


class Tones:
    """A material whose clips are one second of a tone, at any level."""

    def __init__(self, clips: list[Clip] | None = None, azimuths: list[float] | None = None):
        clips = tone_clips() if clips is None else clips
        self.contents = {
            split: by_content(clip for clip in clips if clip.split == split)
            for split in ("train", "test")
        }
        azimuths = [80.0, 60.0, 30.0, 0.0, -10.0, -40.0, -70.0] if azimuths is None else azimuths
        self.rooms = {
            split: [gain_room(f"{split}{n}", azimuths) for n in range(3)]
            for split in ("train", "test")
        }

    def load(self, clip: Clip, sample_rate_hz: int) -> np.ndarray:
        tone, _, number = clip.clip_id.split("-")
        turns = TONE_HZ[tone] * np.arange(sample_rate_hz) / sample_rate_hz
        level = 0.01 if number == "0" else 0.5
        return (level * np.sin(2 * np.pi * turns)).astype(np.float32)


def amplitude(audio: np.ndarray, frequency_hz: float) -> np.ndarray:
    turns = frequency_hz * np.arange(audio.shape[-1]) / RATE
    return 2 * np.abs(audio @ np.exp(-2j * np.pi * turns)) / audio.shape[-1]


def tone_of(clip_id: str) -> float:
    return TONE_HZ[clip_id.split("-")[0]]


def test_clips_stand_where_the_permutations_say_at_one_scale():
    material = Tones()
    for index in range(20):
        group = draw_group(RECIPE, material, "test", 3, index)
        room = next(room for room in material.rooms["test"] if room.name == group.room)
        places = [list(room.distance_m).index(distance) for distance in group.distance_m]
        audio = group.waveforms()
        for j, clip in enumerate(group.clips):
            left_right = amplitude(audio, tone_of(clip))
            gains = room.rirs[[places[p] for p in group.permutations[:, j]], :, 0]
            levels = left_right / gains
            # One level for a clip in all members and both channels, within the drawn 3 dB of
            # 30 dB below an RMS of 1.
            np.testing.assert_allclose(levels, levels[0, 0], rtol=2e-3)
            assert abs(20 * np.log10(levels[0, 0] / np.sqrt(2)) + 30) <= 3.05
        assert abs(int(np.abs(group.audio.astype(int)).max()) - round(0.9 * 32767)) <= 1


def test_captions_tell_who_is_where():
    phrases = [direction.phrase for direction in STEREO_DIRECTIONS]
    for index in range(30):
        group = draw_group(RECIPE, Tones(), "test", 3, index)
        for member, caption in enumerate(group.captions):
            told = {}
            for clause in caption.removesuffix(".").split(", and "):
                phrase = next(p for p in phrases if clause.endswith(" " + p))
                told[clause.removesuffix(" " + phrase)] = phrases.index(phrase)
            for j, contents in enumerate(group.contents):
                [content] = set(told) & set(contents)
                azimuth = group.azimuth_deg[group.permutations[member, j]]
                assert told[content] == direction_index(float(azimuth))
        wordings = {tuple(sorted(caption.replace(".", ""))) for caption in group.captions}
        assert len(set(group.captions)) == 6
        assert len(wordings) == 1  # The same words, differently paired.


def test_order_of_mention_does_not_tell_the_place():
    material, left_first = Tones(), 0
    for index in range(300):
        group = draw_group(RECIPE, material, "train", 2, index)
        first = next(j for j in range(2) if group.captions[0].startswith(tuple(group.contents[j])))
        left_first += int(group.azimuth_deg[first] > group.azimuth_deg[1 - first])
    assert abs(left_first - 150) < 4 * np.sqrt(300 / 4)


def test_sources_differ_in_direction_and_category_and_stay_in_their_split():
    for split, k in (("train", 2), ("test", 3)):
        rooms = set()
        for index in range(40):
            group = draw_group(RECIPE, Tones(), split, k, index)
            assert len({direction_index(float(a)) for a in group.azimuth_deg}) == k
            assert len(set(group.categories)) == k
            assert all(f"-{split}-" in clip for clip in group.clips)
            assert group.scene_id == f"{split}_k{k}/{index:07d}"
            rooms.add(group.room)
        assert rooms == {f"{split}{n}" for n in range(3)}


def test_without_categories_recordings_differ():
    clips = tone_clips(dict.fromkeys(TONE_HZ, ""))
    for index in range(40):
        group = draw_group(RECIPE, Tones(clips), "test", 3, index)
        assert len({clip.rsplit("-", 1)[0] for clip in group.clips}) == 3
        assert group.categories == ("", "", "")


def test_one_recording_in_two_categories_is_not_mixed_with_itself():
    clips = [
        Clip("low-test-0", "hum", ("a hum",), "test", "tape"),
        Clip("middle-test-0", "hiss", ("a hiss",), "test", "tape"),
        Clip("high-test-0", "hiss", ("a hiss",), "test", "reel"),
    ]
    for index in range(20):
        group = draw_group(RECIPE, Tones(clips), "test", 2, index)
        assert "high-test-0" in group.clips


def test_draw_depends_on_its_arguments_alone():
    once = draw_group(RECIPE, Tones(), "train", 2, 7)
    material = Tones()
    for index in (3, 9):
        draw_group(RECIPE, material, "train", 1, index)
    again = draw_group(RECIPE, material, "train", 2, 7)
    for field in dataclasses.fields(once):
        np.testing.assert_array_equal(getattr(once, field.name), getattr(again, field.name))
    others = [
        draw_group(RECIPE, material, "train", 2, 8),
        draw_group(RECIPE, material, "test", 2, 7),
        draw_group(RECIPE, material, "train", 3, 7),
        draw_group(dataclasses.replace(RECIPE, seed=1), material, "train", 2, 7),
    ]
    assert len({once.seed, *(other.seed for other in others)}) == 5
    assert all(0 <= other.seed < 2**63 for other in others)


def test_speed_changes_in_train_alone():
    def peak_hz(split: str, index: int) -> float:
        group = draw_group(RECIPE, Tones(), split, 1, index)
        spectrum = np.abs(np.fft.rfft(group.audio[0, 0], 16 * RECIPE.length))
        return float(np.argmax(spectrum) * RATE / (16 * RECIPE.length)) / tone_of(group.clips[0])

    speeds = [peak_hz("train", index) for index in range(30)]
    assert 0.895 <= min(speeds) < 0.95
    assert 1.05 < max(speeds) <= 1.105
    assert all(abs(peak_hz("test", index) - 1) < 1e-3 for index in range(5))


@pytest.mark.parametrize(("k", "most", "members"), [(1, 6, 1), (2, 1, 2), (3, 6, 6), (3, 2, 2)])
def test_permutations(k, most, members):
    rows = draw_permutations(k, most, np.random.default_rng(0))
    assert rows.shape == (members, k)
    assert rows[0].tolist() == list(range(k))
    assert len({tuple(row) for row in rows.tolist()}) == members
    assert (np.sort(rows, axis=1) == np.arange(k)).all()


def test_permutations_of_three_are_drawn():
    second = {tuple(draw_permutations(3, 2, np.random.default_rng(seed))[1]) for seed in range(60)}
    assert len(second) == 5


def test_too_few_categories():
    clips = [clip for clip in tone_clips() if clip.category != "high"]
    with pytest.raises(InputError, match=r"'test' has clips of 2 .* scene of 3 sources needs 3"):
        draw_group(RECIPE, Tones(clips), "test", 3, 0)


def test_rooms_without_enough_directions():
    draw_group(RECIPE, Tones(azimuths=[0.0, 5.0, 60.0]), "test", 2, 0)
    # A place behind the receiver has no direction class.
    with pytest.raises(InputError, match=r"no room of split 'test' has places in 2 direction"):
        draw_group(RECIPE, Tones(azimuths=[0.0, 5.0, 170.0]), "test", 2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed -1 must"),
        ({"sample_rate_hz": 4000}, "sample_rate_hz 4000 must be >= 8000"),
        ({"duration_s": 0.0}, r"duration_s 0.0 must be above 0"),
        ({"places_per_room": 4}, "places_per_room 4 must"),
        ({"permutations_k3": 7}, r"permutations_k3 7 must be in 1\.\.6"),
        ({"level_range_db": -1.0}, r"level_range_db -1.0 must be >= 0"),
        ({"speed_range": (1.1, 0.9)}, r"speed_range \(1.1, 0.9\) must be two numbers"),
        ({"room_counts": RoomCounts(test=-1)}, "room_counts.test -1 must be >= 0"),
        ({"group_counts": GroupCounts(*[0] * 9)}, "group_counts .* must ask for some groups"),
        ({"name": "a/b"}, "name a/b must"),
    ],
)
def test_recipes_that_cannot_be_rendered(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RECIPE, **change)


FOA_RECIPE = dataclasses.replace(
    RECIPE,
    rooms=FloorRanges(),
    receiver=Foa(),
    distance_range_m=(0.5, 4.0),
    elevation_range_deg=(-47.5, 48.7),
    response_s=2.5,
    group_counts=GroupCounts(train_k0=3),
)


class FoaTones(Tones):
    """Tones in rooms whose responses are plane waves."""

    def __init__(self, azimuths: list[float] | None = None):
        super().__init__()
        azimuths = [0.0, 45.0, 90.0, 135.0, 180.0, -90.0] if azimuths is None else azimuths
        azimuth_deg = np.array(azimuths, np.float32)
        count = len(azimuths)
        elevation_deg = np.linspace(-45, 45, count, dtype=np.float32)
        gains = foa_gains(unit_vectors(azimuth_deg, elevation_deg))
        self.rooms = {
            split: [
                dataclasses.replace(
                    gain_room(f"{split}{n}", azimuths),
                    rirs=gains[..., None].astype(np.float32),
                    elevation_deg=elevation_deg,
                    drr_bands_db=np.full((count, 20), n, np.float32),
                    t30_bands_s=np.full((count, 20), 0.3, np.float32),
                )
                for n in range(3)
            ]
            for split in ("train", "test")
        }


def test_foa_sources_are_encoded_where_the_permutations_say():
    for index in range(10):
        group = draw_group(FOA_RECIPE, FoaTones(), "test", 2, index)
        assert (group.words, group.audio.shape) == ("elsa", (2, 4, 4000))
        gains = foa_gains(unit_vectors(group.azimuth_deg, group.elevation_deg))
        for j, clip in enumerate(group.clips):
            levels = amplitude(group.waveforms(), tone_of(clip))
            expected = np.abs(gains[group.permutations[:, j]])
            np.testing.assert_allclose(levels / levels[:, :1], expected, atol=3e-3)
        words = [direction_word(float(azimuth)) for azimuth in group.azimuth_deg]
        assert None not in words
        assert len(set(words)) == 2
        assert group.drr_bands_db.shape == (2, 20)
        assert group.captions[0] != group.captions[1]


def test_a_single_source_may_stand_between_the_words():
    groups = [draw_group(FOA_RECIPE, FoaTones(), "test", 1, index) for index in range(60)]
    words = {member_words(group)[0][0].direction for group in groups}
    assert words == {"front", "left", "back", "right", None}
    assert len({group.phrasing for group in groups}) > 50
    for group in groups:
        assert any(content in group.captions[0] for content in group.contents[0])


def test_a_plain_clip_is_the_mono_signal_in_all_channels_and_its_content():
    for index in range(5):
        group = draw_group(FOA_RECIPE, FoaTones(), "test", 0, index)
        assert group.audio.shape == (1, 4, 4000)
        assert (group.audio == group.audio[:, :1]).all()
        assert amplitude(group.waveforms(), tone_of(group.clips[0]))[0, 0] > 0
        assert group.captions[0].removesuffix(".") in group.contents[0]
        assert group.scene_id == f"test_k0/{index:07d}"
        assert group.permutations.shape == (1, 0)
        assert len(group.azimuth_deg) == len(group.distance_m) == len(group.t30_s) == 0
        assert group.drr_bands_db.shape == (0, 20)


def test_two_sources_need_words_to_tell_them_apart():
    with pytest.raises(InputError, match=r"no room of split 'test' has places in 2 direction cla"):
        draw_group(FOA_RECIPE, FoaTones([0.0, 45.0, 135.0]), "test", 2, 0)
    overhead = FoaTones([0.0, 90.0])
    for room in overhead.rooms["test"]:
        room.elevation_deg[1] = 80.0
    with pytest.raises(InputError, match=r"no room of split 'test' has places in 2 direction cla"):
        draw_group(FOA_RECIPE, overhead, "test", 2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rooms": RoomRanges()}, "rooms .* must be FloorRanges for Foa"),
        ({"receiver": Foa(height_m=2.4)}, "receiver.height_m 2.4 must leave 0.3 m to the ceiling"),
        ({"elevation_range_deg": (-89.0, 89.0), "distance_range_m": (1.2, 4.0)}, "lowest room of"),
        ({"elevation_range_deg": (10.0, -10.0)}, "elevation_range_deg .* hold -90 <= low <= high"),
        ({"distance_range_m": (0.0, 4.0)}, "distance_range_m .* must hold 0 < low"),
        (
            {"distance_range_m": (2.0, 4.0), "elevation_range_deg": (0.0, 0.0)},
            "start low enough for the narrowest room, 2.72 m",
        ),
        ({"response_s": 1.0}, "response_s 1.0 must be at least 2.00"),
    ],
)
def test_ambisonic_recipes_that_cannot_be_rendered(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(FOA_RECIPE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rooms": FloorRanges()}, "rooms .* must be RoomRanges for a StereoPair"),
        ({"elevation_range_deg": (-10.0, 10.0)}, r"elevation_range_deg .* must be \(0.0, 0.0\)"),
        ({"response_s": 1.0}, "response_s 1.0 must be 0.5 for a StereoPair"),
        ({"group_counts": GroupCounts(test_k0=1)}, "group_counts.test_k0 1 must be 0"),
    ],
)
def test_stereo_recipes_with_what_is_for_ambisonics(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_recipes_name_their_receiver_in_json():
    assert to_plain(FOA_RECIPE)["receiver"]["kind"] == "Foa"
    for recipe in (RECIPE, FOA_RECIPE):
        assert from_plain(SceneRecipe, to_plain(recipe)) == recipe
