"""Commands that make the data of trainings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call, peek
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell

if TYPE_CHECKING:
    from spatial_clap_jax.data.scenes import SceneRecipe
    from spatial_clap_jax.data.seld_recipe import SeldRecipe


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
