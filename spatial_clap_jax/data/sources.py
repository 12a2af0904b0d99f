"""Sources of dry clips: CSV files with captions or categories, and the built-in sound bank."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.data import synthetic
from spatial_clap_jax.data.audio import read_audio, resample
from spatial_clap_jax.data.splits import assign_splits
from spatial_clap_jax.data.tables import Entry, merge, read_entries, read_table, split_word
from spatial_clap_jax.errors import InputError

SPLITS = ("train", "validation", "test")
_LEAST_PEAK = 2.0**-16
# The mean of two channels is refused when less than this share of their power is left.
_CANCELLED = 10 ** (-40 / 10)
# A sample counts as silence, and a frame as inactive, this far below the loudest one.
_SILENCE = 10 ** (-60 / 20)
_INACTIVE = 10 ** (-30 / 10)
_FRAME = 400
# A crop holds at least half of the energy of the best one (-3 dB).
_CROP_ENERGY = 0.5


@dataclasses.dataclass(frozen=True)
class Clip:
    """One dry clip.

    Attributes:
      clip_id: unique in its source: the file's name, or what stands for it.
      category: its class, '' where unknown.
      captions: at least one wording of its content.
      split: 'train', 'validation' or 'test'.
      recording: the recording that it was cut from; all clips of one share a split.
    """

    clip_id: str
    category: str
    captions: tuple[str, ...]
    split: str
    recording: str


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How a source is read.

    Attributes:
      audio_folder: where the audio lies; None: the csv's folder, then `audio` in it.
      caption_columns: columns with captions; empty: `caption`, `caption_1`, `caption_2`, ...
      test_folds: folds to test on, where the csv has folds; empty: the highest one.
      validation_share: share of the recordings held out of train where nothing names validation.
      stereo_clips: two channels become their mean, the first one, or a refusal.
      seed: draws the held-out recordings and the synthetic sounds.
      synthetic_clips: clips a class of the synthetic bank in train, validation and test.
    """

    audio_folder: str | None = None
    caption_columns: tuple[str, ...] = ()
    test_folds: tuple[int, ...] = ()
    validation_share: float = 0.1
    stereo_clips: Literal["mean", "first", "refuse"] = "mean"
    seed: int = 0
    synthetic_clips: tuple[int, int, int] = (24, 4, 8)

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise InputError(
                f"validation_share {self.validation_share} must be at least 0 and below 1; "
                "0.1 holds a tenth of the recordings out."
            )
        if self.stereo_clips not in ("mean", "first", "refuse"):
            raise InputError(
                f"stereo_clips {self.stereo_clips!r} is unknown; give 'mean', 'first' or 'refuse'."
            )
        if self.seed < 0 or min(self.synthetic_clips) < 0:
            raise InputError(
                f"seed {self.seed} and synthetic_clips {self.synthetic_clips} must not be "
                "negative; give counts."
            )


@runtime_checkable
class Source(Protocol):
    """Clips with captions, and their audio on demand."""

    @property
    def name(self) -> str: ...

    @property
    def clips(self) -> tuple[Clip, ...]: ...

    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when clips, splits, wording or audio do."""
        ...

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Mono audio of a clip, level as recorded; InputError where the file is bad."""
        ...


def open_source(path_or_name: str, options: SourceOptions = SourceOptions()) -> Source:
    """The built-in bank, or a csv file whose format is told by its columns.

    Formats, all UTF-8 with a header, names of columns in any case:
      - generic (and Clotho): `filename` or `file_name`; captions in `caption`, `caption_1`,
        `caption_2`, ... or in repeated rows; `category`; `split` or else `fold`; `recording`.
      - ESC-10, ESC-50: generic; in names like `1-100032-A.ogg` the middle number is the recording.
      - AudioCaps: `audiocap_id`, `youtube_id`, `start_time`, `caption`. The audio is the first
        that exists of `{youtube_id}_{start_time}`, `{youtube_id}`, `{audiocap_id}`, each with
        .wav, .flac, .ogg, .mp3, in this order.

    Splits: a `split` column, else `fold` (see `SourceOptions.test_folds`), else the csv's name: of
    `train.csv` or `captions_development.csv` the siblings `val.csv`, `captions_evaluation.csv`, ...
    are read as well, and audio may lie in a folder of that word. Else 80 / 10 / 10 of the
    recordings of each category, by hash. Where no clip is in validation, `validation_share` of
    train's recordings, at least one a category, goes there.

    Audio is opened by `load` alone, so a missing or broken file shows up there.

    Args:
      path_or_name: path of the csv, or 'synthetic'.
      options: how to read it.

    Returns:
      The source.

    Raises:
      InputError: the csv is missing, empty, not UTF-8, lacks columns, contradicts itself, has an
        empty caption or a path that leaves its folder, or cuts a recording by its splits.
    """
    if path_or_name == "synthetic":
        return SyntheticSource(options)
    return CsvSource(Path(path_or_name), options)


class CsvSource:
    """Clips listed in a csv file."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._options = options
        self._within = path.parent
        roots = [path.parent, path.parent / "audio"]
        if options.audio_folder is not None:
            self._within = Path(options.audio_folder)
            roots = [self._within]
            if not self._within.is_dir():
                raise InputError(
                    f"audio_folder {options.audio_folder!r} is no folder; give the folder that "
                    "holds the audio files."
                )
        self._roots = [root for root in roots if root.is_dir()]
        digest = hashlib.sha256()
        prefix, word = split_word(path)
        tables = {path: read_table(path)}
        if word and not {"split", "fold"} & set(tables[path].header):
            for sibling in path.parent.iterdir():
                its_prefix, its_word = split_word(sibling)
                if its_word and (its_prefix, sibling.suffix) == (prefix, path.suffix):
                    tables[sibling] = read_table(sibling)
        rows = []
        for table_path in sorted(tables):
            digest.update(tables[table_path].content)
            rows += read_entries(table_path, tables[table_path], options.caption_columns)
        entries = merge(rows)
        assign_splits(entries, path, options.test_folds, options.validation_share, options.seed)
        self._csv_digest = digest.hexdigest()
        self.name = path.absolute().parent.name if word and not prefix else path.stem
        self.clips = tuple(
            Clip(
                entry.clip_id,
                entry.category,
                entry.captions or category_phrasings(entry.category),
                entry.split,
                entry.recording,
            )
            for entry in entries
        )
        self._entries = {entry.clip_id: entry for entry in entries}

    def fingerprint(self) -> str:
        """Digest of the csv bytes, the options, the clips and the sizes of their files.

        Where the folder lies does not count.
        """
        digest = hashlib.sha256(self._csv_digest.encode())
        digest.update(repr(dataclasses.replace(self._options, audio_folder=None)).encode())
        for clip in self.clips:
            try:
                size = os.path.getsize(self._find(self._entries[clip.clip_id]))
            except (InputError, OSError):
                size = -1
            digest.update(repr((clip, size)).encode())
        return digest.hexdigest()

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Reads, checks, makes mono as `stereo_clips` says, and resamples.

        Args:
          clip: one of `clips`.
          sample_rate_hz: rate wanted.

        Returns:
          Samples at the level of the file.

        Raises:
          InputError: what `read_audio` refuses, a file outside its folder, too many channels,
            or silence; the row of the csv is named.
        """
        entry = self._entries[clip.clip_id]
        path = self._find(entry)
        try:
            audio, file_rate_hz = read_audio(path)
            mono = resample(self._mono(path, audio), file_rate_hz, sample_rate_hz)
            if np.abs(mono).max(initial=0) < _LEAST_PEAK:
                raise InputError(
                    f"{path}: the clip is silent (no sample reaches half a step of 16 bits); give "
                    "a file with sound in it."
                )
        except InputError as error:
            raise InputError(f"{entry.where}: {error}") from error
        return mono

    def _mono(self, path: Path, audio: Float32[np.ndarray, "c t"]) -> Float32[np.ndarray, "t"]:
        channels, rule = len(audio), self._options.stereo_clips
        if channels == 1 or rule == "first":
            return audio[0]
        if rule == "refuse" or channels > 2:
            remedy = "'first'" if channels > 2 else "'mean' or 'first'"
            raise InputError(
                f"{path}: {channels} channels, and stereo_clips is {rule!r}; give mono files, or "
                f"stereo_clips {remedy}."
            )
        mean = audio.mean(0)
        if audio.any() and np.mean(mean**2) < _CANCELLED * np.mean(audio**2):
            raise InputError(
                f"{path}: its two channels cancel in their mean; give stereo_clips 'first', or "
                "turn the phase of one channel."
            )
        return mean

    def _find(self, entry: Entry) -> Path:
        names = [stem + ending for stem in entry.stems for ending in entry.endings]
        for root in self._roots:
            for folder in {str(root): None, os.path.join(root, entry.folder): None}:
                candidates = (os.path.join(folder, name) for name in names)
                found = next(filter(os.path.isfile, candidates), None)
                if found is None:
                    continue
                path = Path(found)
                if not path.resolve().is_relative_to(self._within.resolve()):
                    raise InputError(
                        f"{entry.where}: filename {str(path.relative_to(root))!r} leaves "
                        f"{self._within} by a link; copy the file there, or give its real "
                        "folder as audio_folder."
                    )
                return path
        raise InputError(
            f"{entry.where}: no audio file {names[0]!r} in "
            f"{' or '.join(str(root) for root in self._roots)}; add it, or give audio_folder."
        )


class SyntheticSource:
    """The procedural bank: clips are numbers until they are loaded."""

    name = "synthetic"

    def __init__(self, options: SourceOptions) -> None:
        self._seed = options.seed
        self._keys: dict[str, tuple[int, int]] = {}
        clips = []
        for part, split in enumerate(SPLITS):
            for category in synthetic.CATEGORIES:
                for number in range(options.synthetic_clips[part]):
                    clip_id = f"{category}/{split}/{number}"
                    self._keys[clip_id] = part, number
                    clips.append(
                        Clip(clip_id, category, category_phrasings(category), split, clip_id)
                    )
        self.clips = tuple(clips)

    def fingerprint(self) -> str:
        """Digest of the generator's version, the seed and the clips."""
        described = repr((self.name, synthetic.VERSION, self._seed, self.clips))
        return hashlib.sha256(described.encode()).hexdigest()

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Synthesises a clip; the same samples at every call."""
        key = (self._seed, *self._keys[clip.clip_id])
        return synthetic.synthesise(clip.category, key, sample_rate_hz)


def fit_clip(
    audio: Float32[np.ndarray, "t"],
    length: int,
    rng: np.random.Generator,
    rule: Literal["tile", "pad"] = "tile",
) -> Float32[np.ndarray, "u"]:
    """A clip made `length` samples long.

    Samples more than 60 dB below the peak are trimmed at both ends, never between. What is longer
    then is cropped at a start drawn among those whose crop holds at least half of the energy of
    the best one; what is shorter is repeated or followed by zeros. The level stays.

    Args:
      audio: mono samples.
      length: samples wanted.
      rng: draws the start of a crop; nothing is drawn for a clip that need not be cropped.
      rule: 'tile' repeats a short clip, 'pad' follows it with zeros.

    Returns:
      `length` samples.

    Raises:
      InputError: `audio` holds no samples, or the rule is unknown.

    Reference: our choice.

    Example:
      >>> fit_clip(np.float32([0, 1, 2, 0]), 5, np.random.default_rng(0), "tile")
      array([1., 2., 1., 2., 1.], dtype=float32)
    """
    if audio.size == 0:
        raise InputError("audio: holds no samples; give a clip with sound in it.")
    if rule not in ("tile", "pad"):
        raise InputError(f"rule {rule!r} for short clips is unknown; give 'tile' or 'pad'.")
    magnitude = np.abs(audio)
    heard = np.flatnonzero(magnitude >= _SILENCE * magnitude.max())
    audio = audio[heard[0] : heard[-1] + 1]
    if audio.size > length:
        total = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
        energy = total[length:] - total[:-length]
        start = rng.choice(np.flatnonzero(energy >= _CROP_ENERGY * energy.max()))
        return audio[start : start + length].copy()
    if rule == "tile":
        return np.resize(audio, length)
    return np.pad(audio, (0, length - audio.size))


def at_active_level(audio: Float32[np.ndarray, "t"], level_db: float) -> Float32[np.ndarray, "t"]:
    """A clip brought to an active level; silence stays as it is.

    Args:
      audio: mono samples.
      level_db: wanted, as `active_level_db` measures it.
    """
    gain_db = level_db - active_level_db(audio)
    return audio * np.float32(10 ** (gain_db / 20)) if np.isfinite(gain_db) else audio


def active_level_db(audio: Float32[np.ndarray, "t"]) -> float:
    """Level of a clip while it sounds, so that pauses do not make an event seem soft.

    RMS over the frames of 400 samples whose power is within 30 dB of the loudest frame's.

    Args:
      audio: mono samples.

    Returns:
      dB with RMS 1 as 0 dB (a full-scale sine has -3.01); -inf for silence.

    Reference: our choice, after the idea of ITU-T P.56 (active speech level).
    """
    energy = np.add.reduceat(
        np.square(audio, dtype=np.float64), starts := np.arange(0, audio.size, _FRAME)
    )
    lengths = np.diff(np.append(starts, audio.size))
    power = energy / lengths
    if not power.any():
        return float("-inf")
    active = power >= _INACTIVE * power.max()
    return float(10 * np.log10(energy[active].sum() / lengths[active].sum()))
