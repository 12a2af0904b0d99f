"""Whether a folder holds a run, and whether what is to go on is that run."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of, count_of, parsed_json
from spatial_clap_jax.train.checkpoint import (
    first_saved_step,
    has_checkpoints,
    has_noted_saves,
)
from spatial_clap_jax.train.description import has_description, read_description
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.metrics_log import has_metrics, read_metrics

# What may change from one start of a run to the next: of a run whose records and disk are whole it
# changes no result. Every start notes it.
_FREE_TO_CHANGE = (
    *("log_every", "checkpoint_every", "evaluate_every", "keep", "keep_every", "wandb"),
    *("tokenizer", "failed_save", "health"),
)
_FREE_TO_CHANGE_IN = {
    "data": ("workers", "threads", "prefetch", "worker_timeout_s", "bad_records"),
    "init": ("verbose",),
}

# Differences of data that are named; another recipe may differ in all.
_LISTED = 8


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
    found = read_description(workdir).get("experiment")
    if not isinstance(found, dict | None):
        raise InputError(f"{workdir}/description.json: experiment is no object; restore the file.")
    return found


def check_never_saved(workdir: Path, checkpoint_every: int) -> None:
    """Refuses a fresh start in a folder that had checkpoints which are gone.

    A run that was killed before its first checkpoint was whole may start again, however far it had
    come.

    Args:
      workdir: the run's folder, without checkpoints.
      checkpoint_every: steps between checkpoints. What a run of an older version has saved is not
        noted: where its log goes on past the second one, it has saved.

    Raises:
      InputError: a checkpoint was once whole.
    """
    rows = read_metrics(workdir) if has_metrics(workdir) else []
    logged = max((row["step"] for row in rows), default=0)
    saved = max(first_saved_step(workdir) or 0, _latest_resumed_step(workdir))
    if saved or (not has_noted_saves(workdir) and logged > 2 * checkpoint_every):
        raise InputError(
            f"{workdir}: had come to step {max(logged, saved)}, but its checkpoints are gone; put "
            "them back, or take another --workdir to start anew."
        )


def _latest_resumed_step(workdir: Path) -> int:
    """The latest step that a start of the run went on from; 0 where none did.

    What cannot be read in the file, which people may add to, tells nothing.
    """
    steps = [0]
    with contextlib.suppress(OSError, ValueError):
        for line in bytes_of(workdir / "starts.jsonl").split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                steps.append(count_of(parsed_json(line)["from_step"]))
    return max(steps)


def check_unchanged(
    found: Mapping[str, Any],
    plain: Mapping[str, Any],
    fingerprint: str,
    workdir: Path,
    accepted: Sequence[str] = (),
    dataset: Mapping[str, Any] | None = None,
) -> tuple[list[str], list[str]]:
    """Refuses to go on with a run as another experiment, or with other data, unless told to.

    Args:
      found: the run's description.
      plain: the experiment that is to go on, as plain JSON.
      fingerprint: of the data.
      workdir: the run's folder.
      accepted: keys that may differ, with all that lies below them: 'optimizer.learning_rate',
        'optimizer', or 'dataset' for the data themselves.
      dataset: what tells the data from others, as the run's description holds it; those of before
        hold the fingerprint alone.

    Returns:
      The differences that were accepted, in words; and the keys of `accepted` under which nothing
      differs, as where a run that was accepted before is started by the same command.

    Raises:
      InputError: the description lacks something, something else differs, all of which is named,
        or a run has no key of an accepted name.
    """
    for key in ("experiment", "data_fingerprint", "tokenizer", "max_tokens"):
        if key not in found:
            raise InputError(
                f"{workdir}/description.json: has no {key!r}; restore the file, or take "
                "another --workdir."
            )
    tokenizer, tokens = found["tokenizer"], found["max_tokens"]
    if not isinstance(tokenizer, str | None) or not isinstance(tokens, int):
        raise InputError(
            f"{workdir}/description.json: tokenizer is no text, or max_tokens no number; restore "
            "the file, or take another --workdir."
        )
    there = _experiment_of(found)
    known = ["dataset", *dict.fromkeys((*_keys(there), *_keys(plain)))]
    for key in accepted:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"--accept {key}: a run has nothing of that name; did you mean {nearest}?"
            )
    differences = _differences(_comparable(there), _comparable(plain))
    of_data = _differences(found["dataset"], dataset) if found.get("dataset") and dataset else {}
    if of_data:
        listed = [f"{key} ({text})" for key, text in of_data.items()]
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        differences["dataset"] = f"differs in {', '.join(listed[:_LISTED])}{more}"
    elif found["data_fingerprint"] != fingerprint:
        differences["dataset"] = (
            f"of another recipe, seed or source ({found['data_fingerprint']} there, "
            f"{fingerprint} here)"
        )

    def covers(accept: str, key: str) -> bool:
        return key == accept or key.startswith(f"{accept}.")

    refused = {k: v for k, v in differences.items() if not any(covers(a, k) for a in accepted)}
    if refused:
        listed = "; ".join(f"{key} {text}" for key, text in refused.items())
        raise InputError(
            f"{workdir}: holds a run that differs: {listed}; take another --workdir, or the same "
            f"settings, or go on all the same with --accept {next(iter(refused))}."
        )
    told = [f"{key} {text}" for key, text in differences.items()]
    return told, [a for a in accepted if not any(covers(a, key) for key in differences)]


def changed_freely(found: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
    """What differs from a run's description, and needs nobody to accept it, in words.

    Args:
      found: the description.
      plain: the experiment that goes on, as plain JSON.
    """
    there = _experiment_of(found)
    bound = _differences(_comparable(there), _comparable(plain))
    every = _differences(there, plain)
    return [f"{key} {text}" for key, text in every.items() if key not in bound]


def _experiment_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """A description's, where what an older one leaves out is what it is by default."""
    return to_plain(from_plain(Experiment, found["experiment"]))


def _comparable(experiment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in experiment.items() if k not in _FREE_TO_CHANGE}
    for part, free in _FREE_TO_CHANGE_IN.items():
        kept[part] = {k: v for k, v in experiment.get(part, {}).items() if k not in free}
    return kept


def _keys(plain: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted keys of a plain tree, those of its branches too."""
    for name, value in plain.items():
        key = f"{path}.{name}".strip(".")
        yield key
        if isinstance(value, dict):
            yield from _keys(value, key)


def _differences(there: Any, here: Any, path: str = "") -> dict[str, str]:
    """Both values by dotted key, where two plain trees differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = {}
        for key in sorted(there.keys() | here.keys()):
            found |= _differences(there.get(key), here.get(key), f"{path}.{key}".strip("."))
        return found
    return {} if there == here else {path: f"{there!r} there, {here!r} here"}
