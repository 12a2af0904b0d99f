"""The command that scores a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from spatial_clap_jax.arguments import call
from spatial_clap_jax.commands.detecting import detect_and_score
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell, unbroken_stdout

if TYPE_CHECKING:
    from spatial_clap_jax.data.pipeline import Scenes


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
        localise: int = 8000,
        umap: Path | None = None,
        step: int | None = None,
        probe: bool = False,
        text_encoder: Path | None = None,
        active_level_db: float | None = None,
        captions: Literal["drawn", "all"] = "drawn",
        sentences: Path | None = None,
        plain: bool = False,
        foa_format: Literal["acn-sn3d", "acn-n3d", "fuma"] = "acn-sn3d",
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
          plain: the recordings of --scenes are mono and have no place; for a model of ambisonics.
          foa_format: order and gains of the channels of ambisonic recordings (--scenes).
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
        if scenes is None and (plain or foa_format != "acn-sn3d"):
            option = "--plain True" if plain else f"--foa-format {foa_format}"
            raise InputError(
                f"{option}: is said of recordings, --scenes; leave it out, since records of --data "
                "have one convention."
            )
        if is_locator(run):
            if data is None:
                raise InputError(f"{run}: locates events; give --data, clips in DCASE form.")
            detect_and_score([run], data, split, results=out, step=step, plot=plot)
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
            opened = open_scenes(data)
            if umap is not None:
                _check_map(umap, split, opened, model.reads_texts)
            found = evaluate_in_detail(
                model,
                opened,
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
            found, results = (
                None,
                evaluate_recordings(model, scenes, plain=plain, foa_format=foa_format),
            )
        with unbroken_stdout(out is not None):
            report.print_results(results)
        if out is not None:
            write_results(results, out)
        if plot is not None:
            report.plot_results(results, plot, confusion)
        if umap is not None:
            assert found is not None
            assert found.learnt is not None
            report.plot_map(found.learnt, found.embedded[1], umap)

    call(run, arguments, "evaluate")


def _check_map(umap: Path, split: str, scenes: "Scenes", reads_texts: bool) -> None:
    """Refuses a map that could not be drawn, before anything is embedded."""
    if split == "train":
        raise InputError(
            f"--umap {umap}: is fitted on scenes of train_k1 and shows others, which --split train "
            "has not; give --split validation or test."
        )
    if not reads_texts:
        raise InputError(f"--umap {umap}: shows captions, and this model reads none; leave it out.")
    for name in ("train_k1", f"{split}_k1"):
        source = scenes.source(name) if name in scenes.splits else []
        if not len(source) or source[0].words != "elsa":
            raise InputError(
                f"--umap {umap}: needs ambisonic scenes of one source, train_k1 and {split}_k1 "
                f"(--split {split}), and the data have no such {name}; give --data with them."
            )
