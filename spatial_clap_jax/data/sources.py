"""Sources of dry clips: CSV files with captions or categories, and the built-in sound bank."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.data import synthetic
from spatial_clap_jax.data.audio import read_audio, resample
from spatial_clap_jax.errors import InputError

SPLITS = ("train", "validation", "test")
# Spellings in a split column and at the end of a csv's name. 'development' is Clotho's training
# set, while 'dev' is a validation set nearly everywhere else.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Of the recordings, where a csv tells neither split nor fold.
TEST_SHARE = 0.1
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
_ESC_NAME = re.compile(r"\d+-(\d+)-[A-Z](-\d+)?\.\w+")
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


class _Table(NamedTuple):
    """A csv: lower-case header, rows with the words that name each in an error, its bytes."""

    header: list[str]
    rows: list[tuple[str, dict[str, str]]]
    content: bytes


@dataclasses.dataclass
class _Entry:
    """Rows of one file, merged."""

    where: str
    clip_id: str
    stems: tuple[str, ...]
    endings: tuple[str, ...]
    folder: str
    captions: tuple[str, ...]
    category: str
    split: str
    fold: str
    recording: str


class CsvSource:
    """Clips listed in a csv file."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._options = options
        roots = [path.parent, path.parent / "audio"]
        if options.audio_folder is not None:
            roots = [Path(options.audio_folder)]
            if not roots[0].is_dir():
                raise InputError(
                    f"audio_folder {options.audio_folder!r} is no folder; give the folder that "
                    "holds the audio files."
                )
        self._roots = [root for root in roots if root.is_dir()]
        digest = hashlib.sha256()
        prefix, word = _split_word(path)
        tables = {path: _read_table(path)}
        if word and not {"split", "fold"} & set(tables[path].header):
            for sibling in path.parent.iterdir():
                its_prefix, its_word = _split_word(sibling)
                if its_word and (its_prefix, sibling.suffix) == (prefix, path.suffix):
                    tables[sibling] = _read_table(sibling)
        rows = []
        for table_path in sorted(tables):
            digest.update(tables[table_path].content)
            rows += self._entries_of(table_path, tables[table_path])
        entries = _assign_splits(_merge(rows), options, path)
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

    def _find(self, entry: _Entry) -> Path:
        names = [stem + ending for stem in entry.stems for ending in entry.endings]
        for root in self._roots:
            for folder in {str(root): None, os.path.join(root, entry.folder): None}:
                candidates = (os.path.join(folder, name) for name in names)
                found = next(filter(os.path.isfile, candidates), None)
                if found is None:
                    continue
                path = Path(found)
                if not path.resolve().is_relative_to(root.resolve()):
                    raise InputError(
                        f"{entry.where}: filename {path.name!r} is a link that leaves {root}; "
                        "copy the file there, or give its real folder as audio_folder."
                    )
                return path
        raise InputError(
            f"{entry.where}: no audio file {names[0]!r} in "
            f"{' or '.join(str(root) for root in self._roots)}; add it, or give audio_folder."
        )

    def _entries_of(self, path: Path, table: _Table) -> list[_Entry]:
        header, word = table.header, _split_word(path)[1]
        captions = self._options.caption_columns or tuple(
            column for column in header if re.fullmatch(r"caption(_\d+)?", column)
        )
        file_column = next((name for name in ("filename", "file_name") if name in header), "")
        audiocaps = not file_column and {"youtube_id", "start_time"} <= set(header)
        missing = [column for column in captions if column not in header]
        if not file_column and not audiocaps:
            missing.append("filename")
        if not captions and "category" not in header:
            missing.append("caption or category")
        if missing:
            raise InputError(
                f"{path}: lacks column {', '.join(missing)}; it has {', '.join(header)}: rename "
                "or add columns (comma-separated)."
            )
        entries = []
        for where, row in table.rows:
            names_of = _audiocaps_names if audiocaps else _generic_names
            clip_id, stems, recording = names_of(where, row, file_column)
            texts = tuple(" ".join(row[column].split()) for column in captions)
            texts = tuple(text for text in texts if text.strip(". "))
            category = row.get("category", "")
            if not texts and (captions or not category):
                column = captions[0] if captions else "category"
                raise InputError(
                    f"{where}: {column} of {clip_id!r} is empty; write what is heard, or drop the "
                    "row."
                )
            if "split" in header:
                split, fold = _split_of(where, row["split"]), ""
            else:
                fold = row.get("fold", "")
                split = "" if "fold" in header else SPLIT_WORDS.get(word, "")
            entries.append(
                _Entry(
                    where=where,
                    clip_id=clip_id,
                    stems=stems,
                    endings=AUDIO_EXTENSIONS if audiocaps else ("",),
                    folder=word,
                    captions=texts,
                    category=category,
                    split=split,
                    fold=fold,
                    recording=recording,
                )
            )
        return entries


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


def _generic_names(
    where: str, row: dict[str, str], column: str
) -> tuple[str, tuple[str, ...], str]:
    """Clip id, names that its file may have (endings apart), and recording."""
    name = row[column].replace("\\", "/")
    _check_name(where, column, name)
    clip_id = os.path.normpath(name)
    esc = _ESC_NAME.fullmatch(os.path.basename(clip_id)) if "fold" in row else None
    recording = row.get("recording") or (esc[1] if esc else clip_id)
    return clip_id, (clip_id,), recording


def _audiocaps_names(
    where: str, row: dict[str, str], _column: str
) -> tuple[str, tuple[str, ...], str]:
    """The same for AudioCaps, whose rows name a video and a second."""
    for column in ("youtube_id", "start_time", "audiocap_id"):
        value = row.get(column, "0")
        _check_name(where, column, value)
        if "/" in value or "\\" in value:
            raise InputError(f"{where}: {column} {value!r} holds a slash; give the id alone.")
    video, clip_id = row["youtube_id"], f"{row['youtube_id']}_{row['start_time']}"
    return clip_id, (clip_id, video, row.get("audiocap_id", clip_id)), video


def _read_table(path: Path) -> _Table:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {kind}; give a csv file, or 'synthetic' for the built-in bank.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: row {row}: byte 0x{content[error.start]:02x} is not UTF-8; save the csv as "
            "UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    table: list[tuple[str, dict[str, str]]] = []
    try:
        for fields in reader:
            where = f"{path}: row {reader.line_num}"
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if not header:
                header = [field.lower() for field in fields]
                twice = sorted({name for name in header if name and header.count(name) > 1})
                if twice:
                    raise InputError(
                        f"{path}: column {', '.join(twice)} stands twice; give each its own name "
                        "(captions: caption_1, caption_2, ...)."
                    )
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{where}: {len(fields)} fields where the header has {len(header)}; put "
                    "double quotes around fields that hold commas."
                )
            table.append((where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise InputError(
            f"{path}: row {reader.line_num}: no valid csv ({error}); mind the double quotes."
        ) from error
    if not table:
        kind = "has a header and no rows" if header else "is empty"
        raise InputError(f"{path}: the csv {kind}; list at least one clip.")
    return _Table(header, table, content)


def _check_name(where: str, column: str, name: str) -> None:
    if not name or not name.isprintable():
        raise InputError(f"{where}: {column} {name!r} is empty or unprintable; give a file's name.")
    leaves = (
        name.startswith("/")
        or re.match("[A-Za-z]:/", name)
        or os.path.normpath(name).split("/")[0] == ".."
    )
    if leaves:
        raise InputError(
            f"{where}: {column} {name!r} leaves the csv's folder; give paths inside it, or its "
            "folder as audio_folder."
        )


def _split_of(where: str, value: str) -> str:
    split = SPLIT_WORDS.get(value.lower())
    if split is None:
        raise InputError(
            f"{where}: split {value!r} is unknown; give one of {', '.join(SPLIT_WORDS)}."
        )
    return split


def _split_word(path: Path) -> tuple[str, str]:
    """('captions_', 'val') for captions_val.csv; ('', '') where the name ends in no split."""
    match = re.fullmatch(r"(?:(.*[_\-. ])|)([a-z]+)", path.stem, re.IGNORECASE)
    if match and match[2].lower() in SPLIT_WORDS:
        return match[1] or "", match[2].lower()
    return "", ""


def _merge(rows: Iterable[_Entry]) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for row in rows:
        first = entries.setdefault(row.clip_id, row)
        for column in ("category", "split", "fold", "recording"):
            old, new = getattr(first, column), getattr(row, column)
            if old != new:
                raise InputError(
                    f"{row.where}: {row.clip_id!r} has {column} {new!r}, but {old!r} at "
                    f"{first.where}; make the rows of one file agree."
                )
        first.captions = tuple(dict.fromkeys(first.captions + row.captions))
        first.stems = tuple(dict.fromkeys(first.stems + row.stems))
    return list(entries.values())


def _assign_splits(
    entries: Sequence[_Entry], options: SourceOptions, path: Path
) -> Sequence[_Entry]:
    folded = any(entry.fold for entry in entries)
    if options.test_folds and not folded:
        raise InputError(
            f"test_folds {options.test_folds}: {path} has no fold column in use; leave them out."
        )
    if folded:
        _split_by_fold(entries, options, path)
    elif not all(entry.split for entry in entries):
        for entry in entries:
            entry.split = "train"
        _hold_out(entries, "test", TEST_SHARE, options.seed)
        # Of what is left, so that it is `validation_share` of all.
        _hold_out(entries, "validation", options.validation_share / (1 - TEST_SHARE), options.seed)
    if not any(entry.split == "validation" for entry in entries):
        _hold_out(entries, "validation", options.validation_share, options.seed)
    owners: dict[str, _Entry] = {}
    for entry in entries:
        owner = owners.setdefault(entry.recording, entry)
        if owner.split != entry.split:
            raise InputError(
                f"{entry.where}: recording {entry.recording!r} is in {entry.split}, but in "
                f"{owner.split} at {owner.where}; keep a recording in one split."
            )
    return entries


def _split_by_fold(entries: Sequence[_Entry], options: SourceOptions, path: Path) -> None:
    for entry in entries:
        if not re.fullmatch(r"\d+", entry.fold):
            raise InputError(
                f"{entry.where}: fold {entry.fold!r} is no whole number; number the folds."
            )
    folds = {int(entry.fold) for entry in entries}
    test = set(options.test_folds) or {max(folds)}
    if not test <= folds:
        raise InputError(
            f"test_folds {options.test_folds}: {path} has the folds {sorted(folds)}; choose there."
        )
    if test == folds:
        raise InputError(
            f"{path}: every fold of {sorted(folds)} is a test fold; keep folds to train on, or "
            "give a split column."
        )
    for entry in entries:
        entry.split = "test" if int(entry.fold) in test else "train"


def _hold_out(entries: Sequence[_Entry], split: str, share: float, seed: int) -> None:
    """Moves whole recordings out of train, a share of each category's, by hash."""
    strata: dict[str, list[str]] = {}
    category_of: dict[str, str] = {}
    for entry in entries:
        if entry.split == "train" and entry.recording not in category_of:
            category_of[entry.recording] = entry.category
            strata.setdefault(entry.category, []).append(entry.recording)
    chosen: set[str] = set()
    for recordings in strata.values():
        count = max(1, round(share * len(recordings))) if share and len(recordings) > 1 else 0
        recordings.sort(key=lambda name: hashlib.sha256(f"{seed} {split} {name}".encode()).digest())
        chosen.update(recordings[:count])
    for entry in entries:
        if entry.recording in chosen and entry.split == "train":
            entry.split = split
