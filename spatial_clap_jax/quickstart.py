"""The whole way once, on built-in sounds: render, train, evaluate, export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatial_clap_jax import report
from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.seld_scenes import render_clips
from spatial_clap_jax.evaluate import evaluate_in_detail, write_results
from spatial_clap_jax.evaluate_events import PostProcessing, evaluate_events, tuned
from spatial_clap_jax.event_locator import load_locator
from spatial_clap_jax.export import Format, export
from spatial_clap_jax.inference import load
from spatial_clap_jax.shown import printable
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.train.trainer import train

# The config of scenes, that of the model, and the format of its export, for each system.
SYSTEMS: dict[str, tuple[str, str, Format]] = {
    "spatial_clap": ("scenes.py", "spatial_clap.py", "stablehlo"),
    "elsa": ("elsa_scenes.py", "elsa.py", "stablehlo"),
    "m2d_clap": ("clips.py", "m2d_clap.py", "safetensors"),
    "seld": ("seld_scenes.py", "seld.py", "stablehlo"),
}


def quickstart(system: str, out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Renders, trains, evaluates on unseen rooms and clips, exports, and prints a table.

    Args:
      system: one of `SYSTEMS`.
      out: folder for everything that is made; what is there already is not made again.
      seed: of scenes and training.

    Returns:
      The results.
    """
    out = Path(out)
    if system == "seld":
        return _quickstart_seld(out, seed)
    scenes_config, model_config, export_format = SYSTEMS[system]
    recipe = replace(load_config(scenes_config, "quickstart"), seed=seed)
    experiment = replace(load_config(model_config, "quickstart"), seed=seed)
    render_scenes(recipe, "synthetic", out / "scenes")
    train(experiment, out / "scenes", out / "run")
    found = evaluate_in_detail(
        load(out / "run"),
        open_scenes(out / "scenes"),
        split="test",
        probe=isinstance(recipe.receiver, Mono),
    )
    write_results(found.results, out / "results.json")
    report.plot_results(found.results, out / "results.png", found.direction_confusion)
    exported = export(out / "run", out / "exported", export_format)
    report.print_results(found.results)
    _list_files(out, exported)
    return found.results


def _quickstart_seld(out: Path, seed: int) -> dict[str, Any]:
    """The same of sound events in clips with videos."""
    clips_config, model_config, export_format = SYSTEMS["seld"]
    recipe = replace(load_config(clips_config, "quickstart"), seed=seed)
    experiment = replace(load_config(model_config, "quickstart"), seed=seed)
    render_clips(recipe, "synthetic", out / "scenes")
    train(experiment, out / "scenes", out / "run")
    locator, clips = load_locator([out / "run"]), open_clips(out / "scenes")
    results, _ = evaluate_events(locator, clips, "test", tuned(locator, clips, PostProcessing()))
    write_results(results, out / "results.json")
    report.plot_results(results, out / "results.png")
    exported = export(out / "run", out / "exported", export_format)
    report.print_results(results)
    _list_files(out, exported)
    return results


def _list_files(out: Path, exported: Sequence[Path]) -> None:
    for path in (out / "scenes", out / "run", out / "results.json", out / "results.png", *exported):
        print(printable(str(path)))
