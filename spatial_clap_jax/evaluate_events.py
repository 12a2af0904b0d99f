"""Events of a folder of clips, located by one SELD network or several, and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from spatial_clap_jax.data.dcase import VIDEO, Clips
from spatial_clap_jax.data.event_tables import write_predictions
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.event_locator import EventLocator, Tracks
from spatial_clap_jax.key_points import PersonConfig, correct_persons, read_persons
from spatial_clap_jax.metrics.scores import Results
from spatial_clap_jax.metrics.seld import score, seld_results
from spatial_clap_jax.seld_tracks import DecodingConfig, decode

# The thresholds that `tuned` tries.
_THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


@dataclasses.dataclass(frozen=True)
class PostProcessing:
    """What becomes of tracks after the network.

    Attributes:
      decoding: threshold, smoothing, merging.
      key_points: folder of key points of persons, {clip}.json each; None for none. A clip without
        a file has no persons that anyone has looked for, and stays as it is.
      persons: the rule by which they correct events.
    """

    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    key_points: Path | None = None
    persons: PersonConfig = dataclasses.field(default_factory=PersonConfig)

    def __post_init__(self) -> None:
        if self.key_points is not None and not self.key_points.is_dir():
            raise InputError(
                f"key_points: {self.key_points} is no folder; give one of {{clip}}.json files."
            )

    def events(
        self, name: str, tracks: Tracks, classes: Sequence[str], video: Path | None = None
    ) -> SoundEvents:
        """Events of one clip.

        Args:
          name: of the clip.
          tracks: of the clip.
          classes: names of the classes.
          video: of the clip, in whose pixels the key points are where they do not tell.

        Raises:
          InputError: its key points cannot be read.
        """
        events = decode(tracks, self.decoding)
        path = None if self.key_points is None else self.key_points / f"{name}.json"
        if path is None or not path.is_file():
            return events
        return correct_persons(events, read_persons(path, video), classes, self.persons)


def located_events(
    locator: EventLocator,
    clips: Clips,
    split: str,
    processing: PostProcessing,
    progress: bool = True,
) -> dict[str, SoundEvents]:
    """Events of all clips of a split.

    Raises:
      InputError: there is no such split, or the clips do not fit the networks.
    """
    tracks = locator.locate_clips(clips, _names(clips, split), progress)
    return _events(tracks, clips, locator.classes, processing)


def evaluate_events(
    locator: EventLocator,
    clips: Clips,
    split: str = "test",
    processing: PostProcessing | None = None,
    official: bool = False,
    progress: bool = True,
) -> tuple[Results, dict[str, SoundEvents]]:
    """Scores networks on the clips of one split; see `metrics.seld.seld_results`.

    Args:
      locator: one network or several.
      clips: with labels.
      split: train, validation or test.
      processing: after the network; None for the defaults.
      official: score as the public code of the task does.
      progress: show a progress bar on stderr.

    Returns:
      Flat scores, and the predicted events of each clip.
    """
    predictions = located_events(locator, clips, split, processing or PostProcessing(), progress)
    references = {name: clips.events(name) for name in predictions}
    tells = any(member.system.config.on_screen for member in locator.members)
    results = seld_results(
        predictions, references, locator.classes, clips.labels, official, on_screen=tells
    )
    return results, predictions


def tuned(
    locator: EventLocator,
    clips: Clips,
    processing: PostProcessing,
    split: str = "validation",
    progress: bool = True,
) -> PostProcessing:
    """The processing with the threshold that suits a split best, by F over classes.

    Args:
      locator: one network or several.
      clips: with labels.
      processing: all but the threshold.
      split: never the one that is reported.
      progress: show a progress bar on stderr.

    Raises:
      InputError: the split has no clips.

    Reference: our choice.
    """
    names = _names(clips, split)
    tracks = locator.locate_clips(clips, names, progress)
    references = {name: clips.events(name) for name in names}

    def with_threshold(threshold: float) -> PostProcessing:
        decoding = dataclasses.replace(processing.decoding, threshold=threshold)
        return dataclasses.replace(processing, decoding=decoding)

    def macro_f(threshold: float) -> float:
        predictions = _events(tracks, clips, locator.classes, with_threshold(threshold))
        return score(predictions, references, locator.classes, clips.labels).macro.f.value

    return with_threshold(max(_THRESHOLDS, key=macro_f))


def write_events(predictions: dict[str, SoundEvents], out: str | Path) -> None:
    """Writes a table for each clip, as the task takes them.

    Args:
      predictions: events by clip.
      out: a new or an empty folder.

    Raises:
      InputError: the folder holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out}: holds something; nothing is overwritten: give a new or an empty folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, events in predictions.items():
        write_predictions(out / f"{name}.csv", events)


def _events(
    tracks: Mapping[str, Tracks], clips: Clips, classes: Sequence[str], processing: PostProcessing
) -> dict[str, SoundEvents]:
    return {
        name: processing.events(
            name, each, classes, clips.path(VIDEO, name) if clips.has_video else None
        )
        for name, each in tracks.items()
    }


def _names(clips: Clips, split: str) -> tuple[str, ...]:
    if not clips.splits.get(split):
        raise InputError(
            f"--split {split}: the folder has no such clips; choose one of "
            f"{', '.join(sorted(clips.splits)) or 'none'}."
        )
    return clips.splits[split]
