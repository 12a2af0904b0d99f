"""Folders of clips in the form of DCASE 2025 Task 3: stereo sound, labels and video.

stereo_dev/<group>/<clip>.wav    metadata_dev/<group>/<clip>.csv    video_dev/<group>/<clip>.mp4

And of clips whose labels are not told, stereo_eval and video_eval.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.progress import track

from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.event_tables import check_table, read_events
from spatial_clap_jax.data.sound_events import DCASE_CLASSES, LABEL_STEP_S, SoundEvents
from spatial_clap_jax.data.sources import SPLITS
from spatial_clap_jax.data.video import check_length, each_frame_at, has_reader
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of, check_regular, json_of

SAMPLE_RATE_HZ = 24_000
AUDIO, LABELS, VIDEO = "stereo_dev", "metadata_dev", "video_dev"
# The same of an evaluation set, which has no labels before a challenge is over.
_EVALUATED = {AUDIO: "stereo_eval", LABELS: "metadata_eval", VIDEO: "video_eval"}
# What a folder that this library rendered says of itself.
MANIFEST = "clips.json"
# And the checksums of its sound and video, which have none of their own.
CHECKSUMS = "checksums.json"
# Of a file without one, this much at either end tells it from others.
_END_BYTES = 2**16
# Of the training recordings, where no group is for validation.
VALIDATION_SHARE = 0.1
# Fewer than this are looked at within seconds.
_WORTH_A_BAR = 2000
_SPLIT_WORDS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one length with their events, read from a folder on demand.

    Attributes:
      folder: where they lie.
      classes: names of the classes, by number.
      fingerprint: changes when labels, sound or pictures do; of files without checksums, sizes and
        ends are looked at.
      splits: names of the clips of 'train', 'validation' and 'test' that there are, sorted.
      groups: the group, a folder, of each clip.
      length: samples of each clip.
      has_video: whether each clip has a video.
      has_labels: whether each clip has labels.
      is_evaluation: whether it is an evaluation set, of folders named so; all of it is 'test'.
    """

    folder: Path
    classes: tuple[str, ...]
    fingerprint: str
    splits: dict[str, tuple[str, ...]]
    groups: dict[str, str] = dataclasses.field(repr=False)
    length: int
    has_video: bool
    has_labels: bool = True
    is_evaluation: bool = False

    @property
    def sample_rate_hz(self) -> int:
        """Of the audio."""
        return SAMPLE_RATE_HZ

    @property
    def duration_s(self) -> float:
        """Length of each clip."""
        return self.length / SAMPLE_RATE_HZ

    @property
    def labels(self) -> int:
        """Label frames in a clip."""
        return _label_frames(self.length)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the renderer noted; empty for recordings of others."""
        return read_clips_manifest(self.folder)

    def audio(self, name: str) -> Float32[np.ndarray, "2 t"]:
        """Samples of a clip, L and R.

        Raises:
          InputError: the file changed since the folder was opened, is cut short, or is not as it
            was rendered.
        """
        path = self.path(AUDIO, name)
        samples, rate_hz = read_audio(path)
        _check_audio(path, len(samples), rate_hz, samples.shape[1], self.length)
        _check_content(self.folder, path)
        return samples

    def events(self, name: str) -> SoundEvents:
        """What sounds where in a clip: the labels.

        Raises:
          InputError: there are no labels, or the file changed since the folder was opened.
        """
        if not self.has_labels:
            raise _no_labels(self.folder, self._kind(LABELS))
        return read_events(self.path(LABELS, name), len(self.classes), self.labels)

    def frames(
        self, name: str, count: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "count height width 3"]:
        """Pictures of a clip, each in the middle of one of `count` equal parts of its time.

        Args:
          name: of the clip.
          count: pictures wanted.
          size: their height and width; None for those of the video.

        Returns:
          RGB.

        Raises:
          InputError: there is no video, PyAV is not installed, or the file cannot be used, see
            `video.each_frame_at`, or is not as it was rendered.
        """
        if not self.has_video:
            raise InputError(
                f"{self.folder}: has no folder {self._kind(VIDEO)}; add the videos, or take a "
                "system that does not look."
            )
        times_s = [(i + 0.5) * self.duration_s / count for i in range(count)]
        path = self.path(VIDEO, name)
        frames = np.stack([*each_frame_at(path, times_s, size, at_least_s=self.duration_s)])
        _check_content(self.folder, path)
        return frames

    def path(self, kind: str, name: str) -> Path:
        """Where the sound, the labels or the video of a clip lie.

        Args:
          kind: `AUDIO`, `LABELS` or `VIDEO`.
          name: of the clip.
        """
        return _path(self.folder, self._kind(kind), self.groups[name], name)

    def _kind(self, kind: str) -> str:
        return _EVALUATED[kind] if self.is_evaluation else kind


def open_clips(folder: str | Path, needs_labels: bool = True) -> Clips:
    """Looks through a folder in the form of DCASE 2025 Task 3.

    The headers of all audio and video and all labels are checked; audio and video are read on
    demand. A group is in the split that its name says (`dev-train-sony`, `dev-test-tau`,
    `dev-val-...`); where none is for validation, a tenth of the training recordings is held out,
    chosen by a hash of their names: clips of one recording (`fold3_room21_mix001_deg010_start0030`)
    stay together.

    Args:
      folder: holds `stereo_dev`, `metadata_dev` and, for systems that look, `video_dev`; or, where
        there is no `stereo_dev`, an evaluation set: `stereo_eval`, `video_eval` and perhaps
        `metadata_eval`.
      needs_labels: False lets the folder of labels be missing.

    Returns:
      The clips; small and picklable.

    Raises:
      InputError: a folder or file is missing, audio is not stereo at 24 kHz of one length, labels
        cannot be used, or a video is no video or ends before its audio; the message names file,
        line and rule.

    Reference: DCASE 2025 Challenge, Task 3; the share for validation is our choice.
    """
    folder = Path(folder).absolute()
    is_evaluation = not (folder / AUDIO).is_dir() and (folder / _EVALUATED[AUDIO]).is_dir()
    kinds = {kind: _EVALUATED[kind] if is_evaluation else kind for kind in (AUDIO, LABELS, VIDEO)}
    groups = _groups_of_clips(folder, kinds[AUDIO])
    has_labels, has_video = ((folder / kinds[kind]).is_dir() for kind in (LABELS, VIDEO))
    if needs_labels and not has_labels:
        raise _no_labels(folder, kinds[LABELS])
    manifest = read_clips_manifest(folder)
    classes = tuple(manifest.get("classes", DCASE_CLASSES))
    can_look = has_reader()
    digest = hashlib.sha256(repr(classes).encode())
    length = None
    for name in _shown(sorted(groups)):
        path = _path(folder, kinds[AUDIO], groups[name], name)
        header = _header(path)
        length = header.frames if length is None else length
        _check_audio(path, header.channels, header.samplerate, header.frames, length)
        content = b""
        if has_labels:
            table = _path(folder, kinds[LABELS], groups[name], name)
            content = _content(_existing(table, path))
            check_table(table, content, len(classes), _label_frames(length))
        told = (groups[name], name, header.frames, _mark(folder, path))
        digest.update(repr(told).encode() + content)
        if has_video:
            video = _existing(_path(folder, kinds[VIDEO], groups[name], name), path)
            digest.update(repr(_mark(folder, video)).encode())
            if can_look:
                check_length(video, length / SAMPLE_RATE_HZ)
    assert length is not None
    splits = {"test": tuple(sorted(groups))} if is_evaluation else _splits(folder, groups)
    return Clips(
        folder,
        classes,
        digest.hexdigest(),
        splits,
        groups,
        length,
        has_video,
        has_labels,
        is_evaluation,
    )


def recording_of(name: str) -> str:
    """The recording that a clip was cut from.

    Example:
      >>> recording_of("fold4_room23_mix001_deg010_start0030")
      'fold4_room23_mix001'
    """
    return re.sub(r"_deg\d+_start\d+$", "", name)


def _path(folder: Path, kind: str, group: str, name: str) -> Path:
    ending = {"stereo": ".wav", "metadata": ".csv", "video": ".mp4"}[kind.split("_")[0]]
    return folder / kind / group / f"{name}{ending}"


@functools.lru_cache(maxsize=4)
def read_clips_manifest(folder: Path) -> dict[str, Any]:
    """What a folder of clips says of itself; empty for recordings of others.

    Raises:
      InputError: it cannot be read, or names no classes.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json_of(path)
        classes = manifest["classes"]
        if not isinstance(classes, list) or not classes:
            raise TypeError("classes are no list")
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no names")
        # Half of a surrogate pair raises a ValueError.
        "".join(classes).encode()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: tells no classes ({' '.join(str(error).split())}); render the clips again, "
            "or remove the file if they are DCASE's."
        ) from error
    return manifest


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all sound and video of a folder of clips into it."""
    paths = [path for kind in (AUDIO, VIDEO) for path in (folder / kind).glob("*/*")]
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in sorted(paths)}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=0) + "\n", encoding="utf-8")


def _checksum(path: Path) -> int:
    # Against damage, not against people: CRC-32 costs a fifth of decoding the file.
    return zlib.crc32(path.read_bytes())


@functools.lru_cache(maxsize=4)
def _checksums(folder: Path) -> dict[str, int]:
    """Checksums by path; none where others made the clips, or before there were any."""
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        return {str(name): int(value) for name, value in json_of(path).items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: is not readable as checksums of clips ({' '.join(str(error).split())}); copy "
            "the whole folder again."
        ) from error


def _mark(folder: Path, path: Path) -> int:
    """Tells a file from others of its name: its checksum, or, where it has none, `_ends`."""
    known = _checksums(folder).get(path.relative_to(folder).as_posix())
    return _ends(path) if known is None else known


def _ends(path: Path) -> int:
    """A checksum of a file's size, its first and its last bytes: reading all of it takes long."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(_END_BYTES)
            file.seek(max(size - _END_BYTES, 0))
            return zlib.crc32(file.read(_END_BYTES), zlib.crc32(first, zlib.crc32(b"%d" % size)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again.") from error


def _check_content(folder: Path, path: Path) -> None:
    wanted = _checksums(folder).get(path.relative_to(folder).as_posix())
    if wanted is not None and _checksum(path) != wanted:
        raise InputError(
            f"{path}: is not as it was rendered (another checksum); copy it again, or render the "
            "clips again."
        )


def _no_labels(folder: Path, kind: str) -> InputError:
    return InputError(
        f"{folder}: has no folder {kind}, and training and scores need labels; add it, or have "
        "`spatial-clap detect --out` write what is heard."
    )


def _groups_of_clips(folder: Path, audio: str) -> dict[str, str]:
    """The group of each clip."""
    if not (folder / audio).is_dir():
        raise InputError(
            f"{folder}: has no folder {audio}; give the folder that holds {AUDIO}, {LABELS} "
            f"and {VIDEO}."
        )
    groups: dict[str, str] = {}
    for path in sorted((folder / audio).glob("*/*.wav")):
        group = path.parent.name
        other = groups.setdefault(path.stem, group)
        if other != group:
            raise InputError(
                f"{path}: a clip of this name is in group {other} too; give each clip a name of "
                "its own."
            )
    if not groups:
        raise InputError(f"{folder / audio}: holds no <group>/<clip>.wav; add the clips.")
    return groups


def _shown(names: Sequence[str]) -> Iterator[str]:
    yield from track(
        names,
        "clips checked",
        console=Console(stderr=True),
        transient=True,
        disable=len(names) < _WORTH_A_BAR,
    )


def _header(path: Path) -> Any:
    try:
        check_regular(path)
        return soundfile.info(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(
            f"{path}: cannot be decoded as audio ({' '.join(str(error).split())}); give a whole "
            "copy of the file, as wav."
        ) from error


def _check_audio(path: Path, channels: int, rate_hz: int, samples: int, length: int) -> None:
    if channels != 2:
        raise InputError(
            f"{path}: {channels} channel(s); clips are stereo, L and R: render or cut it again "
            "with two."
        )
    if rate_hz != SAMPLE_RATE_HZ:
        raise InputError(
            f"{path}: sample rate {rate_hz} Hz; clips are at {SAMPLE_RATE_HZ} Hz: resample the "
            "file (soxr, for example)."
        )
    if samples != length or not _label_frames(length):
        raise InputError(
            f"{path}: {samples} samples where the other clips have {length}; all clips of a "
            f"folder last equally long, at least {LABEL_STEP_S:g} s: cut them again."
        )


def _label_frames(length: int) -> int:
    return round(length / SAMPLE_RATE_HZ / LABEL_STEP_S)


def _existing(path: Path, audio: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file, and {audio} needs it; add it or remove the clip.")
    return path


def _content(table: Path) -> bytes:
    try:
        return bytes_of(table)
    except (OSError, ValueError) as error:
        raise InputError(f"{table}: cannot be read ({error}); copy the file again.") from error


def _splits(folder: Path, groups: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    split_of = {group: _split_of(folder, group) for group in set(groups.values())}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in sorted(groups):
        names[split_of[groups[name]]].append(name)
    if not names["validation"]:
        held = _held_out(names["train"])
        names["validation"] = [name for name in names["train"] if recording_of(name) in held]
        names["train"] = [name for name in names["train"] if recording_of(name) not in held]
    return {split: tuple(members) for split, members in names.items() if members}


def _split_of(folder: Path, group: str) -> str:
    named = {_SPLIT_WORDS[word] for word in re.split(r"[-_ ]", group) if word in _SPLIT_WORDS}
    if len(named) != 1:
        raise InputError(
            f"{folder / AUDIO / group}: the group's name must hold one of "
            f"{', '.join(_SPLIT_WORDS)}, to tell its split; rename it, as dev-train-sony."
        )
    return named.pop()


def _held_out(train: Sequence[str]) -> set[str]:
    """A tenth of the recordings, but neither all nor none of several."""
    recordings = sorted(
        {recording_of(name) for name in train},
        key=lambda recording: hashlib.sha256(recording.encode()).digest(),
    )
    count = max(1, round(VALIDATION_SHARE * len(recordings))) if len(recordings) > 1 else 0
    return set(recordings[:count])
