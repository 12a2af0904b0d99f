"""`spatial-clap`: every command is one library call.

Heavy imports stand inside the commands, so that `--help` and mistakes answer at once.
"""

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call, peek, with_content
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.streams import flush_stdout, tell, unbroken_stdout, unbroken_streams
from spatial_clap_jax.train.environment import names_others
from spatial_clap_jax.train.host_memory import keep_freed_memory
from spatial_clap_jax.train.interruption import EXIT_STATUS, Interrupted, Interruption, leave

if TYPE_CHECKING:
    from spatial_clap_jax.data.scenes import SceneRecipe
    from spatial_clap_jax.data.seld_recipe import SeldRecipe
    from spatial_clap_jax.data.sound_events import SoundEvents


# What to do about errors of the system, which say themselves what is wrong.
_ALLOW = "give yourself the right to read and write there, or name another folder"
_REMEDIES = {
    errno.ENOSPC: "make room there, or name another folder",
    errno.EDQUOT: "make room there, or name another folder",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: "name a folder that can be written",
    errno.ENOENT: "see that the path is right, and that what is given is there",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
}


@unbroken_streams()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
        flush_stdout()
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error)
        if told is None:
            raise
        status, line = told
        print(f"spatial-clap: {shown.plain(line)}", file=sys.stderr)
        if isinstance(error, Interrupted):
            leave(status)
        raise SystemExit(status) from None


def _told(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of what a user can mend; None of what is ours to mend."""
    match error:
        case Interrupted():
            return EXIT_STATUS, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted"
        case RunStopped():
            return 3, str(error)
        case InputError():
            return 2, str(error)
        case OSError():
            # A full disk, a folder that may not be written: where, what and the remedy.
            place = f"{error.filename}: " if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "mend that")
            return 2, f"{place}{error.strerror or error}; {remedy}, then start again."
    return None


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name == "--version":
        from spatial_clap_jax import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{name}: no such command; did you mean {nearest}? commands: {', '.join(COMMANDS)}"
        )
    if name in _TRAINING:
        # Before the imports, which start threads.
        keep_freed_memory()
    COMMANDS[name](rest)


def _overview() -> str:
    lines = [
        "usage: spatial-clap COMMAND ...",
        "",
        "Audio-text models that know what sounds and where.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.__doc__ or '').splitlines()[0]}")
    lines += ["", "spatial-clap COMMAND --help tells the options of one."]
    return "\n".join(lines)


def quickstart_command(arguments: list[str]) -> None:
    """Render, train, evaluate and export a small model on built-in sounds."""
    from spatial_clap_jax.quickstart import SYSTEMS, quickstart

    def run(system: str = "spatial_clap", out: Path = Path("quickstart"), seed: int = 0) -> None:
        """Renders scenes of the built-in sound bank, trains on them, evaluates on unseen rooms
        and clips, and exports; minutes on two cores, no files needed.

        Args:
          system: which system.
          out: folder for scenes, run and export; a second call goes on where one stopped.
          seed: of scenes and training.
        """
        if system not in SYSTEMS:
            raise InputError(f"--system {system}: unknown; choose one of {', '.join(SYSTEMS)}")
        with unbroken_stdout():
            quickstart(system, out, seed)

    call(run, arguments, "quickstart")


def render_command(arguments: list[str]) -> None:
    """Render scenes, or clips with video, from dry sounds."""
    config, size = peek(arguments, default="scenes.py")
    from spatial_clap_jax.data.scenes import SceneRecipe
    from spatial_clap_jax.data.seld_recipe import SeldRecipe
    from spatial_clap_jax.train.experiment import load_config

    recipe = load_config(config, size)
    if isinstance(recipe, SceneRecipe):
        _render_scenes(arguments, recipe)
    elif isinstance(recipe, SeldRecipe):
        _render_clips(arguments, recipe)
    else:
        raise InputError(
            f"{config}: gives no recipe; give a file like configs/scenes.py or "
            "configs/seld_scenes.py"
        )


def _render_scenes(arguments: list[str], recipe_default: "SceneRecipe") -> None:
    from spatial_clap_jax.data.builders import render_scenes
    from spatial_clap_jax.data.scenes import SceneRecipe

    def run(
        config: tyro.conf.Positional[Path],
        sources: str,
        out: Path,
        size: str = "small",
        rirs: Path | None = None,
        workers: int | None = None,
        beam_runner: str | None = None,
        beam_options: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        recipe: Annotated[SceneRecipe, tyro.conf.arg(name="")] = recipe_default,
    ) -> None:
        """Renders a config's scenes from clips into a folder of records.

        Args:
          config: a Python file with get_config(size), for example configs/scenes.py.
          sources: a csv of clips, or 'synthetic' for the built-in bank.
          out: folder for the scenes.
          size: quickstart, small or base.
          rirs: a csv of measured impulse responses (filename, azimuth_deg, elevation_deg,
            distance_m, room), in place of simulated rooms.
          workers: processes; default: one a core.
          beam_runner: render under Apache Beam with this runner (extra `beam`).
          beam_options: an option of the Beam runner; may be given several times.
          recipe: everything that decides which scenes are rendered.
        """
        data = render_scenes(
            recipe,
            sources,
            out,
            rirs=rirs,
            workers=workers,
            beam_runner=beam_runner,
            beam_options=beam_options,
        )
        groups = ", ".join(f"{split} {len(data.source(split))}" for split in data.splits)
        skipped = len(data.manifest["skipped_clips"])
        tell(f"{shown.plain(out)}: {groups} scene groups; {skipped} bad clips skipped")

    call(run, arguments, "render")


def _render_clips(arguments: list[str], recipe_default: "SeldRecipe") -> None:
    from spatial_clap_jax.data.seld_recipe import SeldRecipe
    from spatial_clap_jax.data.seld_scenes import render_clips

    def run(
        config: tyro.conf.Positional[Path],
        sources: str,
        out: Path,
        size: str = "small",
        workers: int | None = None,
        recipe: Annotated[SeldRecipe, tyro.conf.arg(name="")] = recipe_default,
    ) -> None:
        """Renders a config's clips, sound with labels and video, into a folder of DCASE's form.

        Args:
          config: a Python file with get_config(size), for example configs/seld_scenes.py.
          sources: a csv of dry sounds with categories, or 'synthetic' for the built-in bank.
          out: folder for the clips.
          size: quickstart, small or base.
          workers: processes; default: one a core.
          recipe: everything that decides which clips are rendered.
        """
        clips = render_clips(recipe, sources, out, workers=workers)
        counts = ", ".join(f"{split} {len(names)}" for split, names in clips.splits.items())
        skipped = len(clips.manifest["skipped_clips"])
        tell(f"{shown.plain(out)}: {counts} clips; {skipped} bad dry sounds skipped")

    call(run, arguments, "render")


def rewrite_command(arguments: list[str]) -> None:
    """Have captions of scenes rewritten by a language model, each checked."""

    def run(
        data: tyro.conf.Positional[Path],
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        cache: Path = Path("~/.cache/spatial_clap_jax/rewrites"),
        split: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        variants: int = 1,
        workers: int = 8,
    ) -> None:
        """Writes rewritten.jsonl into the folder of scenes; captions whose rewrite says more or
        less than theirs keep their template. A start after a failure goes on where it stopped.

        Args:
          data: folder that `render` wrote, of first-order ambisonics.
          url: base of an OpenAI-compatible endpoint, such as http://localhost:8000/v1.
          model: a model that it serves.
          key_variable: environment variable that holds its key; none is sent where it is unset.
          cache: folder for answers, so that nothing is asked twice.
          split: whose captions; may be given several times. Default: train_k0 and train_k1.
          variants: rewrites asked of each caption, 1 to 5.
          workers: prompts under way at once.
        """
        from spatial_clap_jax.data.builders import open_scenes
        from spatial_clap_jax.data.language_model import Cached, Endpoint
        from spatial_clap_jax.data.rewriting import rewrite_scenes
        from spatial_clap_jax.data.rewritten import REWRITTEN

        scenes = open_scenes(data)
        counts = rewrite_scenes(
            scenes,
            scenes.manifest["fingerprint"],
            Cached(Endpoint(url, model, key_variable), cache.expanduser()),
            data / REWRITTEN,
            splits=split,
            variants=variants,
            workers=workers,
        )
        refused = {reason: count for reason, count in counts.items() if reason != "rewritten"}
        tell(f"{shown.plain(data / REWRITTEN)}: {counts['rewritten']} rewrites")
        tell(f"{sum(refused.values())} refused, their templates stay")
        for reason, count in sorted(refused.items(), key=lambda item: -item[1]):
            tell(f"  {count:>6}  {shown.plain(reason)}")

    call(run, arguments, "rewrite")


def train_command(arguments: list[str]) -> None:
    """Train a system on rendered scenes; resumes by itself."""
    # Before the imports, which take seconds: a signal must find its listener. Others that may be
    # waiting already would wait in vain for a process that exits.
    with Interruption.current(exits=not names_others()) as interruption:
        _train(arguments, interruption)


def _train(arguments: list[str], interruption: Interruption) -> None:
    config, size = peek(arguments, default="spatial_clap.py")
    from spatial_clap_jax.train.failures import shared
    from spatial_clap_jax.train.processes import join_processes

    several = False
    if not {"-h", "--help"} & set(arguments):
        several = join_processes()
        # JAX listens for SIGTERM, too, where there are several processes.
        interruption.listen()
    with shared(_told) if several else contextlib.nullcontext():
        _train_here(arguments, config, size)


def _train_here(arguments: list[str], config: str, size: str) -> None:
    from spatial_clap_jax.train.experiment import Experiment, load_config
    from spatial_clap_jax.train.processes import is_first_process
    from spatial_clap_jax.train.trainer import train
    from spatial_clap_jax.validation import Validation

    experiment_default = load_config(config, size)
    if not isinstance(experiment_default, Experiment):
        raise InputError(f"{config}: gives no experiment; give a file like configs/spatial_clap.py")
    arguments, experiment_default = with_content(arguments, experiment_default, size)

    def run(
        config: tyro.conf.Positional[Path],
        data: Path,
        workdir: Path,
        size: str = "small",
        accept: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment_default,
    ) -> None:
        """Trains a config's experiment; goes on from the newest whole checkpoint in --workdir.

        At SIGTERM or Ctrl-C it saves and exits with status 75: the same command goes on. A second
        signal exits at once. Status 3: the numbers of the run went wrong, and what happened is in
        --workdir.

        Of a system with a choice of content encoders, --model.content htsat, cnn or m2d takes
        another one, untrained, with its front end; --init.audio a trained one.

        Args:
          config: a Python file with get_config(size), for example configs/spatial_clap.py.
          data: folder that `render` wrote.
          workdir: folder for checkpoints and logs.
          size: quickstart, small or base.
          accept: what may differ from the run that --workdir holds: 'dataset', or a key such as
            optimizer.learning_rate; may be given several times.
          experiment: everything that decides the run.
        """
        result = train(experiment, data, workdir, accept=accept, validation=Validation)
        if is_first_process():
            tell(f"{shown.plain(result.workdir)}: trained to step {result.step}")

    call(run, arguments, "train")


def study_command(arguments: list[str]) -> None:
    """Train and test several models alike, and compare them; goes on where it stopped."""
    config, size = peek(arguments, default="spatial_clap_findings.py")
    from spatial_clap_jax.study import Study, run_study
    from spatial_clap_jax.train.experiment import load_config

    study = load_config(config, size)
    if not isinstance(study, Study):
        raise InputError(
            f"{config}: gives no study; give a file like configs/studies/spatial_clap_findings.py"
        )

    def run(
        config: tyro.conf.Positional[Path],
        data: Path,
        workdir: Path,
        sources: str | None = None,
        seeds: int = 3,
        size: str = "small",
        rows: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    ) -> None:
        """Trains every row of a study with every seed, tests all under all conditions, and writes
        results.json, table.md and figures into --workdir, anew after each test.

        Args:
          config: a Python file with get_config(size), for example
            configs/studies/spatial_clap_findings.py.
          data: folder that `render` wrote; rendered first where it is missing and --sources given.
          workdir: folder for trainings, tests and results.
          sources: the csv of clips (or 'synthetic') that the data are rendered from; without it,
            conditions that need scenes of their own are left out.
          seeds: trainings a row.
          size: quickstart, small or base.
          rows: name of a row to train and test; may be given several times. Default: all.
        """
        with unbroken_stdout():
            run_study(study, data, workdir, seeds=seeds, sources=sources, rows=rows)
        tell(f"{shown.plain(workdir)}: results.json, table.md and figures")

    call(run, arguments, "study")


def plan_command(arguments: list[str]) -> None:
    """Compile a training step for a TPU slice that is elsewhere, and say what it needs."""
    if not {"gpu", "--topology=gpu"} & set(arguments):
        # A TPU or GPU of this machine is left to whoever runs on it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    config, size = peek(arguments, default="spatial_clap.py")
    from spatial_clap_jax.train.experiment import Experiment, load_config
    from spatial_clap_jax.train.plan import plan, print_plan

    experiment_default = load_config(config, size)
    if not isinstance(experiment_default, Experiment):
        raise InputError(f"{config}: gives no experiment; give a file like configs/spatial_clap.py")
    arguments, experiment_default = with_content(arguments, experiment_default, size)

    def run(
        config: tyro.conf.Positional[Path],
        topology: str,
        global_batch: int | None = None,
        size: str = "small",
        json: bool = False,
        largest: bool = True,
        fast: bool = False,
        experiment: tyro.conf.FlagConversionOff[
            Annotated[Experiment, tyro.conf.arg(name="")]
        ] = experiment_default,
    ) -> None:
        """Compiles the training step ahead of time; nothing runs, and no TPU is needed.

        Args:
          config: a Python file with get_config(size), for example configs/spatial_clap.py.
          topology: a TPU slice (v5e:16x16, v5p:4x4x4), several (v5e:16x16*2), or cpu or gpu for
            the devices of this machine.
          global_batch: captions in a batch, over all chips; default: the config's.
          size: quickstart, small or base.
          json: print one JSON object in place of a table.
          largest: compile a second time, for the largest batch that fits.
          fast: compile with little effort: sooner, but memory and its traffic come out higher.
          experiment: everything that decides the run.
        """
        found = plan(experiment, topology, global_batch, largest=largest, fast=fast)
        if json:
            print(dumps(asdict(found)))
        else:
            print_plan(found)

    call(run, arguments, "plan", style=(tyro.conf.AvoidSubcommands,))


def evaluate_command(arguments: list[str]) -> None:
    """Evaluate a run or an export on scenes, or on recordings of one's own."""

    def run(
        run: tyro.conf.Positional[Path],
        data: Path | None = None,
        split: str = "test",
        scenes: Path | None = None,
        out: Path | None = None,
        plot: Path | None = None,
        gallery: int = 200,
        localise: int = 2000,
        umap: Path | None = None,
        step: int | None = None,
        probe: bool = False,
        text_encoder: Path | None = None,
        active_level_db: float | None = None,
        captions: Literal["drawn", "all"] = "drawn",
        sentences: Path | None = None,
    ) -> None:
        """Retrieval, direction, content and content-space assignment, each beside chance; of
        ambisonic scenes also elevation, distance, room, 3-D localisation and moved directions; of
        mono clips their labels by prompt, by a trained head and by a linear probe.

        Args:
          run: folder of a run or of an export.
          data: folder that `render` wrote.
          split: train, validation or test.
          scenes: in place of --data, a csv of recordings (filename, caption, and
            wrong_captions separated by '|').
          out: results.json to write.
          plot: a figure to write (png, svg or pdf).
          gallery: scenes in a retrieval gallery.
          localise: training scenes that 3-D localisation of ambisonic scenes learns from; 0
            leaves it out.
          umap: a map of embeddings of ambisonic scenes to write (png, svg or pdf; extra `umap`),
            fitted on those training scenes.
          step: checkpoint to take; default: the newest; 0: what the run drew before its first step.
          probe: train a linear probe on features of the plain clips of train, choose its
            regularisation on those of validation, and test it on those of --split.
          text_encoder: for an M2D-CLAP of sentence embeddings, what made these.
          active_level_db: for an M2D-CLAP whose run does not tell, the level that recordings (not
            scenes that `render` wrote) are brought to.
          captions: all: of mono clips, also retrieval over the whole split by all captions of each
            clip, as figures of AudioCaps and Clotho are computed.
          sentences: for an M2D-CLAP of sentence embeddings, in place of their encoder, a folder
            that `embed-text` wrote of the captions and prompts (embed-text DATA --split test).
        """
        from spatial_clap_jax import report
        from spatial_clap_jax.data.builders import open_scenes
        from spatial_clap_jax.evaluate import (
            check_results_path,
            evaluate_in_detail,
            evaluate_recordings,
            write_results,
        )
        from spatial_clap_jax.event_locator import is_locator
        from spatial_clap_jax.inference import load

        if (data is None) == (scenes is None):
            raise InputError("evaluate: give either --data DIR or --scenes FILE.csv")
        if out is not None:
            check_results_path(out)
        if plot is not None:
            report.check_plot_path(plot)
        if umap is not None:
            report.check_plot_path(umap)
            report.check_map_extra()
            if data is None or not localise:
                raise InputError(f"--umap {umap}: needs --data, and --localise above 0.")
        if captions == "all" and data is None:
            raise InputError("--captions all: needs --data with mono clips; leave it out.")
        if probe and data is None:
            raise InputError("--probe True: needs --data with plain clips; leave it out.")
        if is_locator(run):
            if data is None:
                raise InputError(f"{run}: locates events; give --data, clips in DCASE form.")
            _detect([run], data, split, results=out, step=step, plot=plot)
            return
        model = load(
            run,
            step=step,
            text_encoder=text_encoder,
            active_level_db=active_level_db,
            sentences=sentences,
        )
        confusion = None
        if data is not None:
            found = evaluate_in_detail(
                model,
                open_scenes(data),
                split=split,
                gallery=gallery,
                localise=localise,
                probe=probe,
                captions=captions,
            )
            results, confusion = found.results, found.direction_confusion
            if found.probe_strength is not None:
                tell(f"linear probe: C = {found.probe_strength:g}, chosen on validation clips")
        else:
            assert scenes is not None
            found, results = None, evaluate_recordings(model, scenes)
        with unbroken_stdout(out is not None):
            report.print_results(results)
        if out is not None:
            write_results(results, out)
        if plot is not None:
            report.plot_results(results, plot, confusion)
        if umap is not None:
            if found is None or found.learnt is None:
                raise InputError(
                    f"--umap {umap}: needs ambisonic scenes of one source, train_k1 among "
                    "them; give --data with such scenes."
                )
            report.plot_map(found.learnt, found.embedded[1], umap)

    call(run, arguments, "evaluate")


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
            _detect(
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


def _detect(
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


def export_command(arguments: list[str]) -> None:
    """Export a run's model for others to load."""

    def run(
        run: tyro.conf.Positional[Path],
        out: Path,
        format: Literal["stablehlo", "safetensors", "hf-clap", "m2d-clap"] = "stablehlo",
        step: int | None = None,
    ) -> None:
        """Writes the model as compiled programs, as plain tensors, or for other programs.

        Args:
          run: folder of a run or of a safetensors export.
          out: folder to write in.
          format: stablehlo (runs without this library, on cpu, cuda and tpu), safetensors,
            hf-clap (content and text encoder as a ClapModel), or m2d-clap (an M2D-CLAP's tensors
            as its public code names them).
          step: checkpoint to take; default: the newest.
        """
        from spatial_clap_jax.export import export

        for path in export(run, out, format, step=step):
            tell(shown.plain(path, None))

    call(run, arguments, "export")


def convert_command(arguments: list[str]) -> None:
    """Convert published weights (CLAP, M2D-CLAP, RoBERTa, OWL-ViT, ...) into a folder of ours."""

    def run(
        source: tyro.conf.Positional[str],
        out: Path,
        tokenizer: Path | None = None,
        verbose: bool = False,
    ) -> None:
        """Reads every tensor of published weights, or says which it does not know.

        Args:
          source: a folder of Hugging Face's (ClapModel, RoBERTa, BERT, sentence-transformers,
            OwlViTForObjectDetection) or its name on the hub; a .pt, .pth or .safetensors of
            LAION-CLAP, Spatial-CLAP or M2D-CLAP.
          out: folder to write in.
          tokenizer: a tokenizer.json, or a folder with one, where the source brings none.
          verbose: say of every tensor what became of it.
        """
        from spatial_clap_jax.convert import convert

        files, report = convert(source, out, tokenizer)
        for line in report.lines if verbose else [report.summary]:
            tell(shown.plain(line))
        for path in files:
            tell(shown.plain(path, None))

    call(run, arguments, "convert")


def embed_text_command(arguments: list[str]) -> None:
    """Embed captions once, for trainings that learn from sentence embeddings."""

    def run(
        captions: tyro.conf.Positional[Path],
        out: Path,
        text_encoder: str | None = None,
        vectors: Path | None = None,
        split: Literal["train", "validation", "test"] = "train",
    ) -> None:
        """Writes a vector for each distinct caption; a start after a failure goes on where it
        stopped, and what is finished or of other captions is never overwritten.

        Args:
          captions: a csv with captions (caption, caption_1, ...; where it has none, category), or
            a folder of mono clips that `render` wrote.
          out: folder to write, for train --data.sentences, or for evaluate --sentences.
          text_encoder: a text encoder as `convert` takes or writes them, or the folder of a run.
          vectors: in its place, an .npy of vectors that another program made: floats, a row for
            each distinct caption, in the order of data.sentences.captions_of.
          split: of a folder of clips: train, the captions that trainings need; validation or test,
            those of its clips and the prompts of all categories, which evaluate --sentences asks.
        """
        from spatial_clap_jax.embed_sentences import embed_sentences, store_vectors

        if vectors is not None and text_encoder is None:
            found = store_vectors(captions, vectors, out, split=split)
        elif text_encoder is not None and vectors is None:
            found = embed_sentences(captions, text_encoder, out, split=split)
        else:
            given = "neither" if vectors is None else "both"
            raise InputError(
                f"embed-text: --text-encoder and --vectors: {given} given; give one of them."
            )
        tell(f"{shown.plain(out)}: {len(found)} sentence embeddings of width {found.width}")

    call(run, arguments, "embed-text")


def embed_command(arguments: list[str]) -> None:
    """Cosines between a recording and texts; features of clips for trainings."""

    def run(
        run: tyro.conf.Positional[Path],
        audio: tyro.conf.Positional[Path],
        text: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        out: Path | None = None,
        kind: Literal["joint", "scene", "frames"] = "joint",
        frames: int | None = None,
        text_encoder: str | None = None,
        plain: bool = False,
        foa_format: Literal["acn-sn3d", "acn-n3d", "fuma"] = "acn-sn3d",
        step: int | None = None,
        active_level_db: float | None = None,
    ) -> None:
        """Embeds a recording of any length and rate, and says how near each text is; or runs a
        frozen tower over a folder of clips, for trainings that read what it made.

        Args:
          run: folder of a run or of an export; for clips also a converted OWL-ViT.
          audio: a recording with the channels that the model takes; or a folder of clips in DCASE
            form, of which --kind frames goes into a folder, --out. A start after a failure goes on
            where it stopped.
          text: a text; may be given several times.
          out: write the embedding of the recording to this .npy file, features to this .npz file.
          kind: what --out holds: joint, the embedding that texts are compared with; or what the
            encoder of an M2D-CLAP hears, of the whole by scene (features), of every moment by
            frames (features, times_ms).
          frames: pictures of a clip that an OWL-ViT looks at; 10 where nothing is said.
          text_encoder: of an M2D-CLAP of sentence embeddings, the encoder that made these.
          plain: the recording is mono and has no place; for a model of ambisonics.
          foa_format: order and gains of an ambisonic recording's channels.
          step: checkpoint of a run to take; default: the newest.
          active_level_db: for an M2D-CLAP whose run does not tell, the level that the recording is
            brought to.
        """
        from spatial_clap_jax.data.audio import read_audio
        from spatial_clap_jax.embedding_files import save_embedding, save_features
        from spatial_clap_jax.inference import load

        if audio.is_dir():
            from spatial_clap_jax.embed_clips import embed_clips

            if kind != "frames" or text or out is None:
                raise InputError(
                    f"embed: {audio} is a folder of clips; give --kind frames and --out alone"
                )
            cache = embed_clips(run, audio, out, frames)
            shape = " x ".join(map(str, cache.shape))
            tell(f"{shown.plain(out)}: {len(cache)} clips, {shape} numbers each")
            return
        if frames is not None:
            raise InputError(f"embed: --frames {frames} is of a folder of clips; leave it out")
        if kind != "joint" and (text or out is None):
            raise InputError(f"embed: --kind {kind} goes to a file; give --out alone")
        if not text and out is None:
            raise InputError('embed: give --text "..." (any number of times), or --out FILE.npy')
        recording = read_audio(audio)
        model = load(run, step=step, text_encoder=text_encoder, active_level_db=active_level_db)
        try:
            if kind == "joint":
                embedding = model.embed_audio(*recording, plain=plain, foa_format=foa_format)
            elif kind == "scene":
                features = {"features": model.embed_scene(*recording)}
            else:
                moments, times_ms = model.embed_frames(*recording)
                features = {"features": moments, "times_ms": times_ms}
        except InputError as error:
            raise InputError(f"{audio}: {error}") from error
        if out is not None and kind == "joint":
            save_embedding(embedding, out)
        elif out is not None:
            save_features(out, **features)
        if text:
            cosines = model.embed_text(list(text)) @ embedding
            for cosine, line in sorted(zip(cosines.tolist(), text, strict=True), reverse=True):
                print(f"{cosine:+.4f}  {shown.plain(line)}")

    call(run, arguments, "embed")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": quickstart_command,
    "render": render_command,
    "rewrite": rewrite_command,
    "train": train_command,
    "study": study_command,
    "plan": plan_command,
    "evaluate": evaluate_command,
    "detect": detect_command,
    "export": export_command,
    "convert": convert_command,
    "embed": embed_command,
    "embed-text": embed_text_command,
}
_TRAINING = ("quickstart", "train", "study")


if __name__ == "__main__":
    main()
