"""Whether a folder holds a run, and whether what is to go on is that run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.checkpoint import has_checkpoints
from spatial_clap_jax.train.description import has_description, read_description
from spatial_clap_jax.train.experiment import Experiment

# What may change from one start of a run to the next: it changes no result.
_FREE_TO_CHANGE = ("log_every", "checkpoint_every", "keep", "keep_every", "wandb", "tokenizer")
_FREE_TO_CHANGE_IN = {"data": ("workers", "threads", "prefetch"), "init": ("verbose",)}


def resumed_experiment(workdir: Path) -> dict[str, Any] | None:
    """The experiment of the run that a folder's checkpoints belong to; None without any.

    Raises:
      InputError: the checkpoints are there, and what describes them is not.
    """
    if not has_checkpoints(workdir):
        return None
    if not has_description(workdir):
        raise InputError(
            f"{workdir}: has checkpoints but no description.json; put it back, or take "
            "another --workdir."
        )
    return read_description(workdir).get("experiment")


def check_unchanged(
    found: Mapping[str, Any], plain: Mapping[str, Any], fingerprint: str, workdir: Path
) -> None:
    """Refuses to go on with a run as another experiment, or with other data.

    Args:
      found: the run's description.
      plain: the experiment that is to go on, as plain JSON.
      fingerprint: of the data.
      workdir: the run's folder.

    Raises:
      InputError: the description lacks something, or something differs, all of which is named.
    """
    for key in ("experiment", "data_fingerprint", "tokenizer", "max_tokens"):
        if key not in found:
            raise InputError(
                f"{workdir}/description.json: has no {key!r}; restore the file, or take "
                "another --workdir."
            )
    # Through the classes, so that what an older description leaves out is what it is by default.
    there = to_plain(from_plain(Experiment, found["experiment"]))
    differences = _differences(_comparable(there), _comparable(plain))
    if found["data_fingerprint"] != fingerprint:
        differences.append("data: another recipe, seed or source")
    if differences:
        raise InputError(
            f"{workdir}: holds a run that differs: {'; '.join(differences)}; "
            "take another --workdir, or the same settings."
        )


def _comparable(experiment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in experiment.items() if k not in _FREE_TO_CHANGE}
    for part, free in _FREE_TO_CHANGE_IN.items():
        kept[part] = {k: v for k, v in experiment.get(part, {}).items() if k not in free}
    return kept


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Dotted keys with both values, where two plain trees differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            line
            for key in sorted(there.keys() | here.keys())
            for line in _differences(there.get(key), here.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if there == here else [f"{path} {there!r} there, {here!r} here"]
