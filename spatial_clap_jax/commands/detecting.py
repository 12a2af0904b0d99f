"""The command that finds sound events in recordings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell, unbroken_stdout

if TYPE_CHECKING:
    from spatial_clap_jax.data.sound_events import SoundEvents


def detect_command(arguments: list[str]) -> None:
    """Locate sound events in clips or a recording, and score them where labels are."""
    from spatial_clap_jax.evaluate_events import PostProcessing

    def run(
        runs: tyro.conf.Positional[tuple[Path, ...]],
        data: Path | None = None,
        split: str = "test",
        audio: Path | None = None,
        video: Path | None = None,
        out: Path | None = None,
        results: Path | None = None,
        plot: Path | None = None,
        official: bool = False,
        tune: bool = False,
        heard: Path | None = None,
        seen: Path | None = None,
        step: int | None = None,
        after: Annotated[PostProcessing, tyro.conf.arg(name="")] = PostProcessing(),  # noqa: B008
    ) -> None:
        """Averages the tracks of SELD networks, and turns them into events; scores them where the
        clips have labels.

        Args:
          runs: folders of runs or safetensors exports, one or more.
          data: clips in DCASE form; with --out they need no labels, as those of an evaluation set.
          split: train, validation or test.
          audio: in place of --data, a stereo recording of any length.
          video: of that recording, for networks that look.
          out: a new folder for a csv of each clip (frame, class, source, azimuth, distance,
            onscreen); of a recording, the csv.
          results: results.json to write.
          plot: a figure to write (png, svg or pdf): of the scores; of a recording, its events.
          official: score as the public code of DCASE 2025 Task 3 does.
          tune: choose the threshold on the validation clips of --data first.
          heard: cached CLAP features of the clips, where a network takes such; of a recording,
            the CLAP that made those of the training.
          seen: cached OWL-ViT features, or the OWL-ViT, likewise.
          step: checkpoint to take; default: the newest.
          after: what becomes of the tracks.
        """
        if (data is None) == (audio is None):
            raise InputError("detect: give either --data DIR or --audio FILE")
        if audio is None:
            assert data is not None
            detect_and_score(
                runs,
                data,
                split,
                out=out,
                results=results,
                plot=plot,
                official=official,
                tune=tune,
                caches=(heard, seen),
                step=step,
                after=after,
            )
            return
        if results is not None or official or tune:
            raise InputError("detect: --results, --official and --tune are of --data, with labels")
        from spatial_clap_jax.data.event_tables import write_predictions
        from spatial_clap_jax.event_locator import load_locator
        from spatial_clap_jax.event_report import plot_events, print_events
        from spatial_clap_jax.report import check_plot_path

        if plot is not None:
            check_plot_path(plot)
        locator = load_locator(runs, step)
        tracks = locator.locate_recording(audio, video, heard, seen)
        events = after.events(audio.stem, tracks, locator.classes, video)
        print_events(events, locator.classes)
        if out is not None:
            write_predictions(out, events)
        if plot is not None:
            plot_events(events, locator.classes, plot)

    call(run, arguments, "detect")


def detect_and_score(
    runs: Sequence[Path],
    data: Path,
    split: str,
    *,
    out: Path | None = None,
    results: Path | None = None,
    plot: Path | None = None,
    official: bool = False,
    tune: bool = False,
    caches: tuple[Path | None, Path | None] = (None, None),
    step: int | None = None,
    after: Any = None,
) -> None:
    """Finds the events of a split of clips, and scores them where the clips have labels.

    Args:
      runs: networks whose tracks are averaged.
      data: clips in DCASE form.
      split: which of them.
      out: folder for a table of each clip.
      results: file for the scores.
      plot: file for a figure of them.
      official: also score by the challenge's own scorer.
      tune: choose the decoding on the validation split first.
      caches: of what CLAP and OWL-ViT make of the clips.
      step: checkpoint to take; the newest if None.
      after: the decoding; the default one if None.

    Raises:
      InputError: the clips lack labels that are asked for, or do not fit the networks.
    """
    from spatial_clap_jax import report
    from spatial_clap_jax.data.dcase import open_clips
    from spatial_clap_jax.evaluate_events import (
        PostProcessing,
        evaluate_events,
        located_events,
        tuned,
    )
    from spatial_clap_jax.event_locator import load_locator
    from spatial_clap_jax.metrics.scores import check_results_path, write_results

    if results is not None:
        check_results_path(results)
    if plot is not None:
        report.check_plot_path(plot)
    locator = load_locator(runs, step, *caches)
    clips, after = open_clips(data, needs_labels=out is None), after or PostProcessing()
    if not clips.has_labels:
        if results is not None or plot is not None or official or tune:
            raise InputError(
                f"--data {data}: has no labels, which --results, --plot, --official and --tune "
                "need; leave them out, and give --decoding.threshold."
            )
        assert out is not None
        _write_tables(located_events(locator, clips, split, after), out)
        return
    if tune:
        after = tuned(locator, clips, after)
        tell(f"threshold {after.decoding.threshold:g}, chosen on validation clips")
    scores, predictions = evaluate_events(locator, clips, split, after, official)
    with unbroken_stdout(results is not None):
        report.print_results(scores)
    if results is not None:
        write_results(scores, results)
    if plot is not None:
        report.plot_results(scores, plot)
    if out is not None:
        _write_tables(predictions, out)


def _write_tables(predictions: "dict[str, SoundEvents]", out: Path) -> None:
    from spatial_clap_jax.evaluate_events import write_events

    write_events(predictions, out)
    tell(f"{shown.plain(out)}: {len(predictions)} tables")
