"""Ambisonic scenes in memory, and a model that knows all of them, for tests of evaluation."""

import dataclasses
import itertools
import re

import numpy as np

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.acoustics.spatial_captions import compose_spatial_caption
from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DIRECTIONS_8,
    DISTANCES,
    ELEVATIONS,
    REVERBERATIONS,
    direction_word_8,
)
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.wording import member_words

CATEGORIES = ("dog bark", "rain", "rooster", "sea waves", "helicopter")
SIZES = ("small", "large")
AZIMUTHS_DEG = (0.0, 90.0, 180.0, -90.0, 30.0, 45.0, 140.0, -170.0)


def foa_group(split: str, k: int, index: int, samples: int = 24) -> SceneGroup:
    """A group of k clips at k places; its audio is noise that no other group has."""
    rng = np.random.default_rng([*split.encode(), k, index])
    names = tuple(rng.permutation(CATEGORIES)[: max(k, 1)].tolist())
    contents = tuple(category_phrasings(name)[:2] for name in names)
    turn = int(rng.integers(4))
    # Mixtures: distinct direction words; single sources: some between the words.
    places = [(turn + i) % 4 for i in range(k)] if k > 1 else [index % 8] * k
    azimuth_deg = np.float32([AZIMUTHS_DEG[i] for i in places])
    elevation_deg = np.float32([(0.0, 45.0, -45.0)[index % 3]] * k)
    distance_m = np.float32([(0.7, 1.5, 3.0)[index % 3]] * k)
    side_m = (6.0, 9.0, 12.0)[index // 2 % 3]
    t30_s = np.float32([(0.15, 0.5, 1.3)[index // 3 % 3]] * k)
    permutations = np.array(list(itertools.permutations(range(k))), np.int32)
    group = SceneGroup(
        scene_id=f"{split}_k{k}/{index}",
        audio=rng.integers(-9999, 9999, (len(permutations), 4, samples)).astype(np.int16),
        scale=1.0,
        sample_rate_hz=16_000,
        clips=tuple(f"{name}-{index}" for name in names),
        categories=names,
        contents=contents,
        azimuth_deg=azimuth_deg,
        elevation_deg=elevation_deg,
        distance_m=distance_m,
        permutations=permutations,
        captions=(),
        # Of one size and one reverberation time.
        room=f"room {index % 18}",
        room_size_m=np.float32([side_m, side_m, 3.0]),
        t60_s=0.5,
        t30_s=t30_s,
        drr_bands_db=np.zeros((k, 20), np.float32),
        t30_bands_s=np.zeros((k, 20), np.float32),
        words="elsa",
        phrasing=0,
        seed=index,
    )
    wording = [options[0] for options in contents]
    captions = [compose_spatial_caption(wording, places) for places in member_words(group)]
    return dataclasses.replace(group, captions=tuple(captions))


@dataclasses.dataclass(frozen=True)
class FoaScenes:
    """What `open_scenes` gives, in memory."""

    groups: int = 48
    splits: tuple[str, ...] = ("train_k1", "test_k0", "test_k1", "test_k2")

    def source(self, split: str) -> list[SceneGroup]:
        name, k = split.split("_k")
        return [foa_group(name, int(k), i) for i in range(self.groups)]


class Knowing:
    """Embeds a scene as what is true of it, and a text as what it says.

    Args:
      scenes: all scenes that it will hear.
      channels: what it takes; of one channel, it hears contents alone.
    """

    def __init__(self, scenes: FoaScenes, channels: int = 4):
        self.channels = channels
        self.texts: set[str] = set()
        self._of_audio = {
            member[:channels].astype(np.float32).tobytes(): _true(group, row, channels)
            for split in scenes.splits
            for group in scenes.source(split)
            for member, row in zip(group.audio, group.permutations, strict=True)
        }

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        return _unit(np.stack([self._of_audio[np.float32(row).tobytes()] for row in audio]))

    def embed_text(self, texts: list[str]) -> np.ndarray:
        self.texts.update(texts)
        return _unit(np.stack([_said(text) for text in texts]))


def _true(group: SceneGroup, row: np.ndarray, channels: int) -> np.ndarray:
    caption = group.captions[group.permutations.tolist().index(row.tolist())]
    if channels == 1 or not len(row):
        return _said(group.contents[0][0])
    vector = _said(caption)
    azimuth, elevation = np.radians([group.azimuth_deg[row[0]], group.elevation_deg[row[0]]])
    flat = np.cos(elevation)
    # Where exactly, too faintly to move anything else.
    vector[-4:-1] = 0.2 * np.array(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
    )
    vector[-1] = 0.1 * group.distance_m[row[0]]
    if len(row) == 1:
        sector = direction_word_8(float(group.azimuth_deg[0]))
        vector[_EIGHT] = [word == sector for word in DIRECTIONS_8]
    return vector


_EIGHT = slice(29, 37)


def _said(text: str) -> np.ndarray:
    """Binding of contents and directions [20], contents [5], directions [4, 8], the rest."""
    binding = np.zeros((len(CATEGORIES), len(DIRECTIONS)))
    contents, directions = np.zeros(len(CATEGORIES)), np.zeros(len(DIRECTIONS))
    for clause in text.split(", and "):
        rows = [any(p in clause for p in category_phrasings(c)) for c in CATEGORIES]
        at = [_holds(clause, word) for word in DIRECTIONS]
        contents += rows
        directions += at
        binding += np.outer(rows, at)
    eight = [_holds(text, word) for word in DIRECTIONS_8]
    others = [_holds(text, word) for word in (*ELEVATIONS, *DISTANCES, *SIZES, *REVERBERATIONS)]
    return np.concatenate([binding.ravel(), contents, directions, eight, others, np.full(4, 1e-6)])


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w-]){word}(?![\w-])", text) is not None


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.float32(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
