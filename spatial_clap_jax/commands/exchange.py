"""Commands that write models for others, and read those of others."""

from pathlib import Path
from typing import Literal

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call
from spatial_clap_jax.streams import tell


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
