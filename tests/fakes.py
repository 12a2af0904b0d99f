"""Small scenes without files or rooms, for tests of everything that reads scene groups."""

import dataclasses
import itertools

import numpy as np

from spatial_clap_jax.acoustics.captions import compose_caption
from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS, direction_index
from spatial_clap_jax.acoustics.foa import foa_gains, unit_vectors
from spatial_clap_jax.acoustics.spatial_captions import PHRASINGS
from spatial_clap_jax.acoustics.spatial_words import wrap_deg
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.data.wording import compose, member_places

# category: (tone in Hz, contents)
CATEGORIES = {
    "bell": (440.0, ("a bell rings", "the sound of a bell")),
    "dog": (700.0, ("a dog barks", "a barking dog", "the barking of a dog")),
    "rain": (1100.0, ("rain falls", "it rains")),
    "siren": (1700.0, ("a siren wails", "a wailing siren")),
    "": (2500.0, ("someone walks over gravel",)),
}
_AZIMUTHS_DEG = (70.0, 30.0, 0.0, -30.0, -70.0)


def fake_group(
    split: str, k: int, index: int, samples: int = 800, sample_rate_hz: int = 16_000
) -> SceneGroup:
    """A group of k tones, each with its own category, panned to k places in distinct directions.

    The azimuth sets level and delay between the channels: +70 is loud and early on the left. Clip
    and place follow from `split`, `k` and `index`, so that groups differ but never change.
    """
    rng = np.random.default_rng([*split.encode(), k, index])
    names = [list(CATEGORIES)[i] for i in rng.permutation(len(CATEGORIES))[:k]]
    azimuth_deg = np.float32([_AZIMUTHS_DEG[i] for i in rng.permutation(5)[:k]])
    azimuth_deg += rng.uniform(-10.0, 10.0, k).astype(np.float32)
    permutations = np.int32(list(itertools.permutations(range(k))))
    time_s = np.arange(samples) / sample_rate_hz
    audio = np.zeros((len(permutations), 2, samples))
    for member, row in enumerate(permutations):
        for name, place in zip(names, row, strict=True):
            left = np.sin(np.radians(azimuth_deg[place]))  # -1 right, +1 left
            for channel, side in enumerate((left, -left)):
                phase = 2 * np.pi * CATEGORIES[name][0] * (time_s + 2e-4 * side)
                audio[member, channel] += (1.0 + 0.8 * side) * np.sin(phase + index)
    scale = float(np.abs(audio).max() / (0.9 * 32767))
    directions = [[direction_index(float(azimuth_deg[i])) for i in row] for row in permutations]
    contents = tuple(CATEGORIES[name][1] for name in names)
    return SceneGroup(
        scene_id=f"{split}_k{k}/{index}",
        audio=np.round(audio / scale).astype(np.int16),
        scale=scale,
        sample_rate_hz=sample_rate_hz,
        clips=tuple(f"{name or 'gravel'}-{index}" for name in names),
        categories=tuple(names),
        contents=contents,
        azimuth_deg=azimuth_deg,
        elevation_deg=np.zeros(k, np.float32),
        distance_m=np.full(k, 1.5, np.float32),
        permutations=permutations,
        captions=tuple(
            compose_caption([c[0] for c in contents], row, rng.permutation(k).tolist())
            for row in directions
        ),
        room="fake",
        room_size_m=np.float32([6.0, 5.0, 3.0]),
        t60_s=0.3,
        t30_s=np.full(k, 0.3, np.float32),
        drr_bands_db=np.zeros((k, 0), np.float32),
        t30_bands_s=np.zeros((k, 0), np.float32),
        words="stereo",
        phrasing=0,
        seed=index,
    )


def fake_foa_group(
    split: str, k: int, index: int, samples: int = 800, sample_rate_hz: int = 16_000
) -> SceneGroup:
    """A group of k tones in FOA, encoded by their directions without a room; k = 0: a plain clip.

    Two or more have different words for their directions.
    """
    like = fake_group(split, max(k, 1), index, samples, sample_rate_hz)
    rng = np.random.default_rng([*split.encode(), k, index, 4])
    middles = 90.0 * rng.permutation(4)[:k]
    azimuth_deg = np.float32([wrap_deg(a) for a in middles + rng.uniform(-30.0, 30.0, k)])
    elevation_deg = rng.uniform(-47.0, 47.0, k).astype(np.float32)
    time_s = np.arange(samples) / sample_rate_hz
    tones = [np.sin(2 * np.pi * CATEGORIES[name][0] * time_s + index) for name in like.categories]
    gains = foa_gains(unit_vectors(azimuth_deg, elevation_deg)) if k else np.ones((1, 4))
    permutations = np.array(list(itertools.permutations(range(k))), np.int32)
    audio = np.stack(
        [
            sum(np.outer(gains[place], tone) for place, tone in zip(row, tones, strict=True))
            for row in (permutations if k else [[0]])
        ]
    )
    scale = float(np.abs(audio).max() / (0.9 * 32767))
    group = dataclasses.replace(
        like,
        scene_id=f"{split}_k{k}/{index}",
        audio=np.round(audio / scale).astype(np.int16),
        scale=scale,
        azimuth_deg=azimuth_deg,
        elevation_deg=elevation_deg,
        distance_m=rng.uniform(0.5, 4.0, k).astype(np.float32),
        permutations=permutations,
        room_size_m=np.float32([7.0, 10.0, 3.0] if k else [0.0, 0.0, 0.0]),
        t30_s=np.full(k, rng.uniform(0.15, 2.0), np.float32),
        drr_bands_db=rng.uniform(-10, 10, (k, 20)).astype(np.float32),
        t30_bands_s=rng.uniform(0.2, 2, (k, 20)).astype(np.float32),
        words="elsa",
        phrasing=int(rng.integers(PHRASINGS)),
    )
    contents = [options[0] for options in group.contents]
    captions = tuple(
        compose(group, contents, places, range(len(contents)), group.phrasing)
        for places in member_places(group)
    )
    return dataclasses.replace(group, captions=captions)


def fake_clip(
    split: str, index: int, samples: int = 800, sample_rate_hz: int = 16_000
) -> SceneGroup:
    """One tone in one channel, without a place: the left channel of a single source."""
    like = fake_group(split, 1, index, samples, sample_rate_hz)
    return dataclasses.replace(
        like,
        scene_id=f"{split}_k0/{index}",
        audio=like.audio[:, :1],
        azimuth_deg=like.azimuth_deg[:0],
        elevation_deg=like.elevation_deg[:0],
        distance_m=like.distance_m[:0],
        permutations=np.zeros((1, 0), np.int32),
        captions=(f"{like.contents[0][0]}.",),
        room="",
        room_size_m=np.zeros(3, np.float32),
        t60_s=0.0,
        t30_s=like.t30_s[:0],
        drr_bands_db=like.drr_bands_db[:0],
        t30_bands_s=like.t30_bands_s[:0],
    )


@dataclasses.dataclass(frozen=True)
class FakeScenes:
    """What `open_scenes` gives, in memory: `{train,validation,test}_k{1,2,3}`, but no train_k3.

    Attributes:
      groups: number of groups in each split.
      samples: length of the audio.
      sample_rate_hz: its rate.
      splits: names of the splits that exist.
      foa: whether they are in FOA, with the words of ELSA; if not, those of k = 0 are mono.
    """

    groups: int = 8
    samples: int = 800
    sample_rate_hz: int = 16_000
    splits: tuple[str, ...] = (
        *("train_k1", "train_k2"),
        *("validation_k1", "validation_k2"),
        *("test_k1", "test_k2", "test_k3"),
    )
    foa: bool = False

    def source(self, split: str) -> list[SceneGroup]:
        name, k = split.split("_k")
        if k == "0" and not self.foa:
            return [
                fake_clip(name, i, self.samples, self.sample_rate_hz) for i in range(self.groups)
            ]
        make = fake_foa_group if self.foa else fake_group
        return [
            make(name, int(k), i, self.samples, self.sample_rate_hz) for i in range(self.groups)
        ]

    @property
    def manifest(self) -> dict[str, list[str]]:
        return {
            "categories": [name for name in CATEGORIES if name],
            "caption_corpus": [
                compose_caption([content], [direction])
                for _, contents in CATEGORIES.values()
                for content in contents
                for direction in range(len(STEREO_DIRECTIONS))
            ],
        }


class FakeClips:
    """Clips of `data.dcase` in memory: noise, random events, and pictures of one grey each."""

    sample_rate_hz, classes, fingerprint, has_video = 24_000, ("a bell", "a dog"), "fake", True

    def __init__(self, clips: int = 4, duration_s: float = 0.4):
        self.duration_s, self.labels = duration_s, round(duration_s * 10)
        self.splits = {"train": tuple(f"clip{i}" for i in range(clips)), "test": ("clip_t",)}
        self.decoded: list[str] = []

    def _rng(self, name: str, what: str) -> np.random.Generator:
        return np.random.default_rng([*f"{name} {what}".encode()])

    def audio(self, name: str) -> np.ndarray:
        samples = round(self.duration_s * self.sample_rate_hz)
        return self._rng(name, "audio").normal(0, 0.1, (2, samples)).astype(np.float32)

    def events(self, name: str) -> SoundEvents:
        rng = self._rng(name, "events")
        whole = lambda high: rng.integers(0, high, self.labels).astype(np.int32)  # noqa: E731
        return SoundEvents(
            np.arange(self.labels, dtype=np.int32),
            whole(2),
            whole(2),
            rng.uniform(-90, 90, self.labels).astype(np.float32),
            rng.uniform(1, 3, self.labels).astype(np.float32),
            rng.random(self.labels) < 0.5,
        )

    def frames(self, name: str, count: int, size: tuple[int, int]) -> np.ndarray:
        self.decoded.append(name)
        grey = self._rng(name, "frames").integers(0, 256, (count, 1, size[1], 1))
        return np.broadcast_to(grey, (count, *size, 3)).astype(np.uint8)
